"""Which crop a sample is: laws that resuming, loader workers and several devices rest on."""

import itertools
import math
import pickle
from collections import Counter
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import dae3d
from conftest import smooth_volume
from dae3d.errors import Dae3dError
from dae3d.training.batch import pack
from dae3d.training.data import CropDataset, training_data
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.sampling import (
    LAST_SAMPLE,
    BatchSampler,
    SampleStream,
    batch_quotas,
    random_start,
    validation_crops,
)

pytestmark = pytest.mark.slow


def scan(shape, foreground=None):
    box = foreground or ((0, 0, 0), shape)
    return SimpleNamespace(shape=shape, statistics=SimpleNamespace(foreground=box))


@st.composite
def scans(draw):
    """A scan's shape and a foreground box inside it, the last corner exclusive."""
    shape = tuple(draw(st.integers(1, 120)) for _ in range(3))
    first = tuple(draw(st.integers(0, side - 1)) for side in shape)
    last = tuple(draw(st.integers(a + 1, side)) for a, side in zip(first, shape, strict=True))
    return scan(shape, (first, last))


@st.composite
def streams(draw):
    """A stream over one to four modalities, and how many scans each has."""
    counts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    total = sum(counts)
    found = [draw(scans()) for _ in range(min(total, 4))]
    everything = [found[i % len(found)] for i in range(total)]
    ends = list(itertools.accumulate(counts, initial=0))
    training = {f"m{i}": list(range(ends[i], ends[i + 1])) for i in range(len(counts))}
    return SampleStream(
        everything,
        training,
        roi=(32, 32, 32),
        global_batch=draw(st.integers(1, 12)),
        seed=draw(st.integers(0, 2**31 - 1)),
        region=draw(st.sampled_from(["volume", "foreground"])),
        shuffle=draw(st.booleans()),
    )


def counts_in_batch(stream, batch):
    size = stream.global_batch
    return Counter(stream[i].modality for i in range(batch * size, (batch + 1) * size))


# A sample is a pure function of its number


@settings(max_examples=40)
@given(stream=streams(), numbers=st.lists(st.integers(0, 10**12), min_size=1, max_size=12), data=st.data())
def test_a_sample_is_the_same_in_any_order_and_after_any_other(stream, numbers, data):
    expected = {number: stream[number] for number in numbers}
    other = data.draw(st.permutations(numbers))
    for again in (stream, pickle.loads(pickle.dumps(stream))):
        assert {number: again[number] for number in other} == expected


@settings(max_examples=60)
@given(
    world_size=st.integers(1, 8),
    batch_size=st.integers(1, 5),
    first=st.integers(0, 10**6),
    steps=st.integers(1, 4),
)
def test_the_parts_of_all_ranks_in_order_are_the_global_batches(world_size, batch_size, first, steps):
    ranks = [iter(BatchSampler(first, batch_size, rank, world_size)) for rank in range(world_size)]
    seen = [number for _ in range(steps) for rank in ranks for number in next(rank)]
    size = world_size * batch_size
    assert seen == list(range(first * size, (first + steps) * size))


@settings(max_examples=40)
@given(batch_size=st.integers(1, 5), rank=st.integers(0, 3), done=st.integers(0, 50))
def test_resuming_at_a_batch_gives_the_tail_of_the_stream(batch_size, rank, done):
    whole = iter(BatchSampler(0, batch_size, rank, 4))
    resumed = iter(BatchSampler(done, batch_size, rank, 4))
    tail = itertools.islice(whole, done, done + 5)
    assert list(tail) == list(itertools.islice(resumed, 5))


def test_another_seed_draws_other_crops():
    box = [scan((100, 100, 100))] * 4
    one, two = (SampleStream(box, {"ct": [0, 1, 2, 3]}, (32, 32, 32), 4, seed, "volume") for seed in (0, 1))
    assert [one[i] for i in range(20)] != [two[i] for i in range(20)]
    assert len({one[i] for i in range(200)}) > 190


# Batches mix the modalities


@settings(max_examples=100)
@given(stream=streams(), batch=st.integers(0, 10**9))
def test_every_global_batch_draws_each_modality_floor_or_ceil_of_its_quota(stream, batch):
    size, counts = stream.global_batch, counts_in_batch(stream, batch)
    assert sum(counts.values()) == size
    # From 4 samples on, in twos; where the batch is odd, one has no fellow.
    each = 2 if size >= 4 else 1
    assert sum(count % each for count in counts.values()) == size % each
    for modality, quota in enumerate(np.round(stream.quotas, 9)):
        assert math.floor(quota) <= math.ceil(counts[modality] / each) <= math.ceil(quota)
    if size >= each * len(stream.modalities):
        assert set(counts) == set(range(len(stream.modalities)))


def test_by_default_shares_go_by_the_square_root_of_the_number_of_scans():
    # 1, 4 and 16 scans: shares 1/7, 2/7 and 4/7, whole numbers in a batch of 14.
    training = {"ct": [0], "t1": [1, 2, 3, 4], "t2": list(range(5, 21))}
    stream = SampleStream([scan((40, 40, 40))] * 21, training, (32, 32, 32), 14, 0, "volume")
    for batch in range(20):
        assert counts_in_batch(stream, batch) == {0: 2, 1: 4, 2: 8}


@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1), (1, 4, 9, 16, 25)], ids=str)
def test_any_two_modalities_meet_in_some_batch(counts):
    ends = list(itertools.accumulate(counts, initial=0))
    training = {f"m{i}": list(range(ends[i], ends[i + 1])) for i in range(5)}
    stream = SampleStream([scan((40, 40, 40))] * ends[-1], training, (32, 32, 32), 4, 5, "volume")
    batches = [counts_in_batch(stream, batch) for batch in range(1000)]
    # Two draws of two samples; shares 1 : 1 : 1 : 1 : 1, and 1 : 2 : 3 : 4 : 5.
    assert all(set(drawn.values()) == {2} for drawn in batches)
    assert {frozenset(drawn) for drawn in batches} == {
        frozenset(p) for p in itertools.combinations(range(5), 2)
    }
    roots = np.sqrt(counts)
    for modality, share in enumerate(roots / roots.sum()):
        # A modality is drawn or not: five deviations of the mean.
        mean = sum(modality in drawn for drawn in batches) / 1000
        assert mean == pytest.approx(2 * share, abs=5 * 0.5 / math.sqrt(1000))


def test_in_the_order_of_their_names_modalities_are_drawn_as_ever():
    shares = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 3.0, "e": 1.5}
    stream = SampleStream(
        [scan((40, 40, 40))] * 5,
        {name: [i] for i, name in enumerate(shares)},
        (32, 32, 32),
        6,
        11,
        "volume",
        weights=shares,
        shuffle=False,
    )
    # Three draws; each modality owns a piece of the line from 0 to 3, as long as its share of it.
    bounds = list(itertools.accumulate(3 * share / 8 for share in shares.values()))
    for batch in range(300):
        # Stream 1 of the run's generators is that of the batches.
        random = np.random.Generator(np.random.Philox(key=[11, 1], counter=[0, 0, 0, batch]))
        first = random.random()
        drawn = [sum(bound <= first + i for bound in bounds[:-1]) for i in range(3)]
        twos = [modality for modality in random.permutation(drawn) for _ in range(2)]
        expected = random.permutation(twos).tolist()
        assert [stream[batch * 6 + place].modality for place in range(6)] == expected


@pytest.mark.parametrize(
    ("global_batch", "expected"),
    [
        (2, 1.0),  # raised, as every batch is to mix them
        (6, 2.0),  # raised to two of its kind
        (8, 2.0),
        (9, 2.25),
        (10, 2.5),
    ],
)
def test_in_the_long_run_shares_are_the_weights(global_batch, expected):
    stream = SampleStream(
        [scan((40, 40, 40))] * 9,
        {"ct": [0], "t1": list(range(1, 9))},
        (32, 32, 32),
        global_batch,
        3,
        "volume",
        weights={"ct": 1.0, "t1": 3.0},
    )
    batches = 1500
    ct = sum(counts_in_batch(stream, batch)[0] for batch in range(batches))
    # A count of twos differs by less than 1 from its mean, on average: five deviations of the mean.
    assert ct / batches == pytest.approx(expected, abs=5 / math.sqrt(batches))


def test_no_place_in_the_batch_belongs_to_a_modality():
    # Places are ranks: a fixed order would show one device nothing but CT.
    stream = SampleStream([scan((40, 40, 40))] * 2, {"ct": [0], "t1": [1]}, (32, 32, 32), 4, 0, "volume")
    for place in range(4):
        drawn = Counter(stream[batch * 4 + place].modality for batch in range(400))
        assert 140 < drawn[0] < 260


def test_all_scans_of_a_modality_are_drawn_alike():
    stream = SampleStream([scan((40, 40, 40))] * 5, {"ct": [0, 1, 2, 3, 4]}, (32, 32, 32), 4, 0, "volume")
    drawn = Counter(stream[i].scan for i in range(2000))
    assert set(drawn) == {0, 1, 2, 3, 4}
    assert all(320 < count < 480 for count in drawn.values())


SHARES = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=6).map(np.array)


@settings(max_examples=200)
@given(shares=SHARES, global_batch=st.integers(1, 64))
def test_quotas_sum_to_the_batch_and_are_one_or_more_where_there_is_room(shares, global_batch):
    quotas = batch_quotas(shares, global_batch)
    assert quotas.sum() == pytest.approx(global_batch)
    if global_batch >= len(shares):
        assert quotas.min() > 1 - 1e-6
    # What was not raised stays in proportion.
    free = quotas > 1 + 1e-6 if global_batch >= len(shares) else quotas > 0
    proportion = quotas[free] / shares[free]
    np.testing.assert_allclose(proportion, np.full(free.sum(), proportion[:1]), rtol=1e-6)


def test_quotas_by_hand():
    np.testing.assert_allclose(batch_quotas(np.array([0.9, 0.05, 0.05]), 10), [8, 1, 1])
    # The second has enough until the third is raised.
    np.testing.assert_allclose(batch_quotas(np.array([5, 1.7, 0.001]), 4), [2, 1, 1])
    np.testing.assert_allclose(batch_quotas(np.array([9e-13, 1e-13]), 4), [3, 1])
    np.testing.assert_allclose(batch_quotas(np.array([1.0, 3.0, 4.0]), 2), [0.25, 0.75, 1.0])


@pytest.mark.parametrize(
    "weights",
    [{}, {"ct": 1.0}, {"ct": 1.0, "t1": 0.0}, {"ct": 1.0, "t1": -1.0}, {"ct": 1, "t1": 1, "pet": 1}],
)
def test_weights_are_above_zero_and_one_for_each_modality(weights):
    with pytest.raises(Dae3dError, match=r"modality_weights: .* ct, t1"):
        SampleStream(
            [scan((9, 9, 9))] * 2, {"t1": [0], "ct": [1]}, (32, 32, 32), 4, 0, "volume", weights=weights
        )


# Where crops lie


@settings(max_examples=300)
@given(
    scan=scans(),
    roi=st.tuples(*[st.sampled_from([1, 32, 64, 96])] * 3),
    region=st.sampled_from(["volume", "foreground"]),
    seed=st.integers(0, 99),
)
def test_crops_lie_inside_the_scan_or_have_it_in_their_middle(scan, roi, region, seed):
    start = random_start(scan, roi, region, np.random.default_rng(seed))
    for first, side, size in zip(start, scan.shape, roi, strict=True):
        before, behind = first, side - first - size
        if side > size:
            assert before >= 0
            assert behind >= 0
        else:
            assert before <= 0
            assert behind <= 0
            assert abs(before - behind) <= 1


@settings(max_examples=300)
@given(scan=scans(), roi=st.tuples(*[st.sampled_from([8, 32, 64])] * 3), seed=st.integers(0, 99))
def test_a_foreground_crop_covers_the_foreground_or_lies_in_it_along_each_axis(scan, roi, seed):
    start = random_start(scan, roi, "foreground", np.random.default_rng(seed))
    for first, size, low, high in zip(start, roi, *scan.statistics.foreground, strict=True):
        covers = first <= low and high <= first + size
        within = low <= first and first + size <= high
        assert covers or within


def test_every_place_that_fits_is_drawn():
    box = scan((35, 32, 40), foreground=((0, 0, 2), (35, 32, 37)))
    random = np.random.default_rng(0)
    volume = {random_start(box, (32, 32, 32), "volume", random) for _ in range(1000)}
    assert volume == set(itertools.product(range(4), [0], range(9)))
    foreground = {random_start(box, (32, 32, 32), "foreground", random) for _ in range(500)}
    assert foreground == set(itertools.product(range(4), [0], range(2, 6)))


# On a store


def settings_for(store, tmp_path, **changes):
    return PretrainSettings(data=store, out=tmp_path, roi=32, **changes)


def test_validation_crops_are_those_of_every_run(tiny_store, tmp_path):
    crops = training_data(settings_for(tiny_store, tmp_path), 1).validation
    for changes in (
        {"seed": 5},
        {"batch_size": 6},
        {"crop_region": "foreground"},
        {"modality_weights": {"ct": 9, "t1": 1}},
    ):
        assert training_data(settings_for(tiny_store, tmp_path, **changes), 3).validation == crops
    data = training_data(settings_for(tiny_store, tmp_path, val_crops=6), 1)
    assert [crop for crop in data.validation if crop in crops] == crops
    assert {data.store.scans[crop.scan].split for crop in data.validation} == {"val"}
    for number, name in enumerate(data.modalities):
        labels = [data.store.scans[c.scan].modality for c in data.validation if c.modality == number]
        assert labels == [name] * 6


def test_training_crops_are_those_of_training_scans(tiny_store, tmp_path):
    data = training_data(settings_for(tiny_store, tmp_path), 1)
    for crop in (data.stream[i] for i in range(100)):
        drawn = data.store.scans[crop.scan]
        assert (drawn.split, drawn.modality) == ("train", data.modalities[crop.modality])


def test_validation_crops_are_around_the_foreground():
    box = scan((200, 200, 200), foreground=((20, 60, 150), (80, 80, 190)))
    for crop in validation_crops([box], [[0]], roi=(32, 32, 32), count=20):
        assert 20 <= crop.start[0] <= 80 - 32
        assert 80 - 32 <= crop.start[1] <= 60
        assert 150 <= crop.start[2] <= 190 - 32


def test_validation_crops_take_turns_among_the_scans():
    boxes = [scan((50, 50, 50))] * 4
    crops = validation_crops(boxes, [[3], [0, 2]], roi=(32, 32, 32), count=4)
    assert [crop.scan for crop in crops] == [3, 3, 3, 3, 0, 2, 0, 2]
    assert [crop.modality for crop in crops] == [0] * 4 + [1] * 4
    assert len({crop.start for crop in crops[:4]}) == 4


@pytest.mark.parametrize("fixed", [False, True])
def test_loader_processes_read_the_same_tensors(tiny_store, tmp_path, fixed):
    data = training_data(settings_for(tiny_store, tmp_path, batch_size=4), 1)
    crops = data.validation if fixed else data.stream
    batches = []
    for workers in (0, 2):
        dataset = CropDataset(data.store, crops, (32, 32, 32), LAST_SAMPLE if fixed else None)
        numbers = [[0, 1, 2], [5, 4, 3], [7, 6, 0]]
        loader = DataLoader(dataset, batch_sampler=numbers, num_workers=workers, collate_fn=pack)
        batches.append([batch.unpack((32, 32, 32)) for batch in loader])
    for ours, theirs in zip(*batches, strict=True):
        assert ours["image"].shape == (3, 1, 32, 32, 32)
        assert ours["image"].dtype == torch.float32
        for key in ("image", "modality", "sample"):
            assert torch.equal(ours[key], theirs[key])
    numbers = [[0, 1, 2], [5, 4, 3], [7, 6, 0]]
    expected = [[2**32 - 1 - n for n in row] for row in numbers] if fixed else numbers
    assert [batch["sample"].tolist() for batch in batches[0]] == expected


def test_a_crop_is_the_scan_scaled_for_the_network(tiny_store, tmp_path):
    data = training_data(settings_for(tiny_store, tmp_path), 1)
    dataset = CropDataset(data.store, data.stream, (32, 32, 32))
    for number in range(6):
        crop = data.stream[number]
        drawn = data.store.scans[crop.scan]
        voxels = np.asarray(nibabel.load(drawn.path).dataobj, np.float64)
        if drawn.modality == "ct":
            scaled = np.clip((voxels + 1000) / 2000, 0, 1)
        else:
            scaled = (voxels - voxels.mean()) / voxels.std()  # no voxel of these is zero
        padded = np.pad(scaled, 32)
        box = padded[tuple(slice(s + 32, s + 64) for s in crop.start)]
        np.testing.assert_allclose(
            pack([dataset[number]]).unpack((32, 32, 32))["image"][0, 0].numpy(), box, atol=1e-5
        )


@pytest.fixture(scope="module")
def store_without_validation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lent")
    for number in range(2):
        voxels = np.round(smooth_volume(number, (34, 34, 34)) * 2000 - 1000).astype(np.int16)
        nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(folder / f"sub-{number}_ct.nii.gz")
    dae3d.index(folders=[folder], out=folder / "manifest.json", val_fraction=0)
    return dae3d.prepare(manifest=folder / "manifest.json", out=folder / "store", workers=1).path


def test_a_modality_without_validation_scans_lends_training_scans(store_without_validation, tmp_path):
    data = training_data(settings_for(store_without_validation, tmp_path, val_crops=3), 1)
    assert data.scans.held_out == {}
    assert [crop.scan for crop in data.validation] == [0, 1, 0]


def test_a_store_with_nothing_to_train_on_is_an_error(tiny_store, tmp_path, monkeypatch):
    held_out = SimpleNamespace(
        source=SimpleNamespace(path="s.nii", modality="ct", dataset="d", split="val"), shape=(32, 32, 32)
    )
    scans = SimpleNamespace(outlines=[held_out])
    monkeypatch.setattr("dae3d.training.data.Store", lambda path: SimpleNamespace(scans=scans))
    with pytest.raises(Dae3dError, match="no training scans"):
        training_data(settings_for(tiny_store, tmp_path), 1)
