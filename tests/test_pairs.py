"""Two crops of one scan that overlap, as the dense contrastive loss needs them."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dae3d.training.data import training_data
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.sampling import BatchSampler, SampleStream, near_start, philox, random_start


def scan(shape):
    return SimpleNamespace(shape=shape, statistics=SimpleNamespace(foreground=((0, 0, 0), shape)))


def stream(seed=0, global_batch=8, pairs=True, shape=(70, 50, 40)):
    """Over three modalities of two, three and four scans."""
    training = {"ct": [0, 1], "t1": [2, 3, 4], "t2": [5, 6, 7, 8]}
    return SampleStream(
        [scan(shape)] * 9, training, (32, 32, 32), global_batch, seed, "foreground", None, True, pairs
    )


sides = st.integers(1, 150)


@given(
    shape=st.tuples(sides, sides, sides),
    roi=st.tuples(*[st.sampled_from([8, 32, 64, 96, 160])] * 3),
    number=st.integers(0, 10**6),
)
@settings(max_examples=200)
def test_the_second_crop_overlaps_the_first_and_stays_by_the_scan(shape, roi, number):
    random = philox(0, 9, number)
    first = random_start(scan(shape), roi, "foreground", random)
    second = near_start(scan(shape), first, roi, random)
    for side, size, one, other in zip(shape, roi, first, second, strict=True):
        assert isinstance(other, int)
        assert (other - one) % 4 == 0
        assert size - abs(other - one) >= size * 5 / 8
        # Outside the scan by no more than 3/8 of the crop, or than the first crop is.
        before, after = -other, other + size - side
        assert before <= max(3 * size / 8, -one)
        assert after <= max(3 * size / 8, one + size - side)


def test_all_places_are_drawn_alike():
    # In the middle of a wide scan: 7 places along each axis.
    random = np.random.default_rng(0)
    starts = np.array([near_start(scan((200,) * 3), (80, 80, 80), (32, 32, 32), random) for _ in range(1400)])
    for axis in range(3):
        values, counts = np.unique(starts[:, axis], return_counts=True)
        assert values.tolist() == [68, 72, 76, 80, 84, 88, 92]
        # Binomial with n 1400, p 1/7: deviation 13.
        assert abs(counts - 200).max() < 4 * 13.1
    assert abs(np.corrcoef(starts.T) - np.eye(3)).max() < 0.15


def test_at_the_edge_of_a_scan_only_places_beside_it_are_left():
    random = np.random.default_rng(0)
    corner = np.array([near_start(scan((40, 40, 40)), (0, 8, 4), (32, 32, 32), random) for _ in range(300)])
    found = [np.unique(corner[:, axis]).tolist() for axis in range(3)]
    assert found == [[-12, -8, -4, 0, 4, 8, 12], [-4, 0, 4, 8, 12, 16, 20], [-8, -4, 0, 4, 8, 12, 16]]


def test_a_scan_much_smaller_than_a_crop_has_one_place():
    small = scan((4, 4, 4))
    assert near_start(small, (-14, -14, -14), (32, 32, 32), np.random.default_rng(0)) == (-14, -14, -14)


def test_samples_come_in_pairs_of_one_scan():
    crops = stream()
    moved = 0
    for number in range(0, 64, 2):
        first, second = crops[number], crops[number + 1]
        assert (first.scan, first.modality) == (second.scan, second.modality)
        assert all(abs(a - b) <= 12 for a, b in zip(first.start, second.start, strict=True))
        moved += first.start != second.start
    assert moved > 25


def test_a_crop_depends_on_its_number_alone():
    once = stream()
    backwards = stream()
    assert [once[number] for number in range(40)] == [backwards[number] for number in range(39, -1, -1)][::-1]
    other = stream(seed=1)
    assert [other[number] for number in range(40)] != [once[number] for number in range(40)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_rank_has_both_crops_of_a_pair(world_size):
    crops = stream(global_batch=4 * world_size)
    for rank in range(world_size):
        batches = iter(BatchSampler(3, 4, rank, world_size))
        for _ in range(5):
            batch = [crops[number] for number in next(batches)]
            assert [crop.scan for crop in batch[::2]] == [crop.scan for crop in batch[1::2]]


@pytest.mark.parametrize("global_batch", [2, 4, 8, 16])
def test_modalities_keep_their_shares(global_batch):
    crops = stream(global_batch=global_batch)
    drawn = np.zeros(3)
    batches = 400
    for batch in range(batches):
        modalities = crops._modalities_of(batch)
        assert len(modalities) == global_batch
        assert (modalities[::2] == modalities[1::2]).all()
        drawn += np.bincount(modalities, minlength=3)
    # Each modality's number in a batch is the floor or the ceiling of its quota, in twos.
    expected = 2 * crops.quotas * batches
    assert abs(drawn - expected).max() < 4 * 2 * 0.5 * np.sqrt(batches)


def test_settings_make_pairs_where_the_dense_loss_has_a_weight(tiny_store, tmp_path):
    given_ = {"data": tiny_store, "out": tmp_path, "roi": 32, "batch_size": 4}
    for weight in (0.0, 0.3):
        data = training_data(PretrainSettings(**given_, dense_weight=weight), 2)
        assert data.stream.pairs == (weight > 0)
        crops = [data.stream[number] for number in range(80)]
        paired = [a.scan == b.scan for a, b in zip(crops[::2], crops[1::2], strict=True)]
        assert all(paired) == (weight > 0)
