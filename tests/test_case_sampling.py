"""Which labelled crop a sample is, and which cases a run has."""

import json
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

from conftest import write_task
from dae3d.errors import Dae3dError
from dae3d.scans.task import Task, TaskCase, read_task
from dae3d.training.case_sampling import CaseStream
from dae3d.training.cases import CaseLoaders, LabelledCrops, labelled_data, subset
from dae3d.training.finetune_settings import FinetuneSettings

ROI = 32
UNCHANGED = {"flip_prob": 0, "rotate_prob": 0, "scale_prob": 0, "shift_prob": 0}


def settings_with(**changes):
    return FinetuneSettings(**({"data": "task.json", "out": "run", "roi": ROI} | changes))


class MadeUpStore:
    """Cases that are label maps; their image has the labels' values in two channels."""

    def __init__(self, labels, classes=3):
        self.labels = labels
        self.cases = [
            SimpleNamespace(
                name=f"case {number}",
                shape=label.shape,
                voxels=tuple(int((label == value).sum()) for value in range(classes)),
            )
            for number, label in enumerate(labels)
        ]
        self._positions = [[np.argwhere(label == value) for value in range(classes)] for label in labels]

    def positions(self, number):
        return self._positions[number]

    def label(self, number, start, size):
        padded = np.pad(self.labels[number], ROI)
        box = tuple(slice(first + ROI, first + ROI + side) for first, side in zip(start, size, strict=True))
        return np.ascontiguousarray(padded[box])

    def image(self, number, start, size, intensity):
        label = self.label(number, start, size).astype(np.float32)
        return np.stack([label, -label])


def label_map(seed, shape, share):
    """A map with a `share` of voxels of the classes 1 and 2, and background in one corner at least."""
    random = np.random.default_rng(seed)
    label = np.where(random.random(shape) < share, random.integers(1, 3, shape), 0).astype(np.uint8)
    label[0, 0, 0] = 0
    return label


label_maps = st.builds(
    label_map,
    st.integers(0, 99),
    st.tuples(*[st.integers(2, 48)] * 3),
    st.sampled_from([0.0, 0.001, 0.1, 0.9]),
)
rois = st.tuples(*[st.sampled_from([8, 16, ROI])] * 3)


@st.composite
def streams(draw, **changes):
    store = MadeUpStore(draw(st.lists(label_maps, min_size=1, max_size=4)))
    training = draw(st.permutations(range(len(store.cases))))
    chosen = {
        "seed": draw(st.integers(0, 2**31 - 1)),
        "crops_per_case": draw(st.integers(1, 5)),
        "positive_share": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "crop_balance": draw(st.sampled_from(["voxels", "classes"])),
        "roi": draw(rois),
    }
    return CaseStream(store, training, settings_with(**(chosen | changes)))


def one_case(label, **changes):
    return CaseStream(MadeUpStore([label]), [0], settings_with(**changes))


def centres(stream, count):
    """The class in the middle of each crop that was not moved to lie inside its case."""
    for crop in (stream[i] for i in range(count)):
        label = stream.store.labels[crop.case]
        if all(0 < first < side - ROI for first, side in zip(crop.start, label.shape, strict=True)):
            yield int(label[tuple(first + ROI // 2 for first in crop.start)])


# A sample is a pure function of its number


@settings(max_examples=30)
@given(stream=streams(), numbers=st.lists(st.integers(0, 10**9), min_size=1, max_size=8), data=st.data())
def test_a_sample_is_the_same_in_any_order_and_in_any_process(stream, numbers, data):
    expected = {number: stream[number] for number in numbers}
    other = data.draw(st.permutations(numbers))
    for again in (stream, pickle.loads(pickle.dumps(stream))):
        assert {number: again[number] for number in other} == expected


def test_another_seed_draws_other_crops_and_no_two_samples_are_augmented_alike():
    label = label_map(0, (60, 60, 60), 0.1)
    one, two = (one_case(label, seed=seed) for seed in (0, 1))
    assert [one[i].start for i in range(20)] != [two[i].start for i in range(20)]
    assert len({stream[i].seed for stream in (one, two) for i in range(100)}) == 200


@settings(max_examples=30)
@given(stream=streams(), epoch=st.integers(0, 1000))
def test_an_epoch_has_as_many_crops_of_each_training_case_as_asked_for(stream, epoch):
    drawn = Counter(stream[i].case for i in range(epoch * stream.per_epoch, (epoch + 1) * stream.per_epoch))
    assert drawn == dict.fromkeys(stream.training, stream.settings.crops_per_case)


def test_every_epoch_has_its_own_order_and_crops():
    label = label_map(0, (60, 60, 60), 0.1)
    stream = CaseStream(MadeUpStore([label] * 5), list(range(5)), settings_with())
    epochs = [[stream[epoch * 20 + place] for place in range(20)] for epoch in range(5)]
    assert len({tuple(crop.case for crop in crops) for crops in epochs}) == 5
    assert len({crop.start for crops in epochs for crop in crops}) > 70


# Where crops lie


@settings(max_examples=60)
@given(stream=streams(), sample=st.integers(0, 10**6))
def test_crops_lie_inside_the_case_or_have_it_in_their_middle(stream, sample):
    crop = stream[sample]
    roi, shape = stream.settings.roi, stream.store.cases[crop.case].shape
    for first, side, size in zip(crop.start, shape, roi, strict=True):
        before, behind = first, side - first - size
        if side > size:
            assert before >= 0
            assert behind >= 0
        else:
            assert before <= 0
            assert behind <= 0
            assert abs(before - behind) <= 1


@settings(max_examples=60)
@given(stream=streams(positive_share=1.0), sample=st.integers(0, 10**6))
def test_a_positive_crop_holds_a_labelled_voxel_wherever_its_case_has_one(stream, sample):
    crop = stream[sample]
    held = stream.store.label(crop.case, crop.start, stream.settings.roi).any()
    assert held == stream.store.labels[crop.case].any()


@pytest.mark.parametrize(("share", "expected"), [(1.0, {True}), (0.0, {False})])
def test_the_middle_of_a_crop_is_labelled_or_background_as_asked_for(share, expected):
    # Half of the voxels are labelled, so that a crop off by one voxel is found out.
    stream = one_case(label_map(3, (70, 70, 70), 0.5), positive_share=share)
    found = list(centres(stream, 200))
    assert len(found) > 20
    assert {value > 0 for value in found} == expected


def test_the_share_of_positive_crops_is_the_one_asked_for():
    label = np.zeros((200, 200, 200), np.uint8)
    label[95:105, 95:105, 95:105] = 1
    # Background is drawn from all over the case, but never from within the label.
    stream = one_case(label, positive_share=0.3)
    starts = np.array([stream[i].start for i in range(1000)])
    positive = ((starts + ROI // 2 >= 95) & (starts + ROI // 2 < 105)).all(axis=1).sum()
    assert abs(positive - 300) < 5 * np.sqrt(1000 * 0.3 * 0.7)


@pytest.mark.parametrize(("balance", "expected"), [("classes", 0.5), ("voxels", 1 / 9)])
def test_rare_classes_are_drawn_by_their_voxels_or_like_the_others(balance, expected):
    label = np.zeros((64, 64, 64), np.uint8)
    label[20:30, 20:30, 20:28] = 1
    label[40:45, 40:45, 40:44] = 2  # 100 voxels to 800
    stream = one_case(label, positive_share=1.0, crop_balance=balance)
    drawn = Counter(centres(stream, 600))
    assert set(drawn) == {1, 2}
    assert drawn.total() == 600
    assert abs(drawn[2] / 600 - expected) < 5 * np.sqrt(expected * (1 - expected) / 600)


def test_a_case_without_labels_or_without_background_gives_what_it_has():
    empty = np.zeros((40, 40, 40), np.uint8)
    full = np.ones((40, 40, 40), np.uint8)
    stream = CaseStream(MadeUpStore([empty, full]), [0, 1], settings_with(positive_share=0.5))
    assert {stream[i].case for i in range(50)} == {0, 1}
    lacking_one = np.where(label_map(0, (70, 70, 70), 0.3) > 0, 2, 0).astype(np.uint8)
    classes = one_case(lacking_one, positive_share=1.0, crop_balance="classes")
    assert set(centres(classes, 100)) == {2}


# Crops as the network gets them


@settings(max_examples=20)
@given(
    label=label_maps,
    sample=st.integers(0, 10**6),
    seed=st.integers(0, 99),
    roi=rois,
)
def test_an_augmented_crop_has_its_label_where_its_image_shows_it(label, sample, seed, roi):
    asked = settings_with(seed=seed, roi=roi, flip_prob=0.5, rotate_prob=0.5, scale_prob=0, shift_prob=0)
    store = MadeUpStore([label])
    crops = LabelledCrops(
        SimpleNamespace(
            store=store, stream=CaseStream(store, [0], asked), recipe=SimpleNamespace(intensity={})
        ),
        asked,
    )
    item = crops[sample]
    assert item["image"].shape == (2, *roi)
    assert item["label"].shape == (1, *roi)
    assert item["label"].dtype == torch.uint8
    assert torch.equal(item["image"][0], item["label"][0].float())
    assert torch.equal(item["image"][1], -item["label"][0].float())
    assert set(item["label"].unique().tolist()) <= {0, *np.unique(label).tolist()}


# On prepared cases


@pytest.fixture(scope="module")
def prepared(tiny_finetune, tmp_path_factory):
    """The tiny task's data, and the settings."""
    asked = FinetuneSettings(**tiny_finetune, out=tmp_path_factory.mktemp("out"))
    return labelled_data(asked), asked


def test_loader_processes_make_the_same_crops(prepared):
    crops = LabelledCrops(*prepared)
    numbers = [[0, 1, 2], [25, 24, 3]]
    here, there, sent = (
        list(DataLoader(made, batch_sampler=numbers, num_workers=workers))
        for made, workers in ((crops, 0), (crops, 2), (pickle.loads(pickle.dumps(crops)), 0))
    )
    for ours, *others in zip(here, there, sent, strict=True):
        assert ours["image"].shape == (3, 1, ROI, ROI, ROI)
        assert ours["label"].shape == (3, 1, ROI, ROI, ROI)
        for key in ("image", "label", "sample"):
            assert all(torch.equal(ours[key], theirs[key]) for theirs in others)
    assert [batch["sample"].tolist() for batch in here] == numbers


def test_a_crop_that_is_not_augmented_is_the_file_scaled_with_classes_by_rank(prepared):
    data, asked = prepared
    crops = LabelledCrops(data, asked.model_copy(update=UNCHANGED))
    for sample in range(8):
        crop = data.stream[sample]
        source = data.store.cases[crop.case].sources
        image, label = (nibabel.load(file.path).get_fdata() for file in source)
        scaled = (image - image.mean()) / image.std()  # no voxel is zero
        box = tuple(slice(first + ROI, first + 2 * ROI) for first in crop.start)
        item = crops[sample]
        np.testing.assert_allclose(item["image"][0], np.pad(scaled, ROI)[box], atol=1e-5)
        # The values 0, 1 and 4 in the file are the classes 0, 1 and 2.
        np.testing.assert_array_equal(item["label"][0], np.pad(np.where(label == 4, 2, label), ROI)[box])


def test_training_crops_are_of_training_cases_alone(prepared):
    data, _ = prepared
    assert set(data.training).isdisjoint(data.validation)
    drawn = {data.store.cases[data.stream[i].case].name for i in range(data.stream.per_epoch)}
    assert drawn == {f"sub-{i}_T1w" for i in range(5)}
    assert [data.store.cases[n].name for n in data.validation] == [f"sub-{i}_T1w" for i in (5, 6, 7)]


def test_the_cases_of_a_batch_are_named(prepared):
    data, _ = prepared
    cases = [data.stream[i].case for i in range(4, 8)]
    assert data.scans_of(6, 4) == sorted({data.store.cases[number].name for number in cases})


@settings(max_examples=50)
@given(cases=st.integers(1, 20), world=st.integers(1, 6))
def test_ranks_share_the_validation_cases_and_take_as_many_steps(cases, world):
    places = []
    for rank in range(world):
        loaders = CaseLoaders(SimpleNamespace(validation=list(range(cases))), settings_with())
        loaders.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        places.append(list(loaders.val_dataloader()))
    assert len({len(own) for own in places}) == 1
    assert sorted(place for own in places for place in own if place >= 0) == list(range(cases))


# Which cases a run has


def case(name, subject=None, fold=None):
    return TaskCase(name, (), None, subject or name, fold)


def task_of(tmp_path, training, validation=()):
    labels = {0: "background", 1: "organ"}
    return Task(tmp_path / "task.json", "t", labels, ("t1",), tuple(training), tuple(validation), ())


@settings(max_examples=60)
@given(count=st.integers(1, 40), data=st.data(), seed=st.integers(0, 2**31 - 1))
def test_more_training_cases_are_a_superset(count, data, seed):
    cases = [case(str(number)) for number in range(count)]
    fewer = data.draw(st.integers(1, count))
    more = data.draw(st.integers(fewer, count))
    one, other = (subset(cases, settings_with(train_cases=n, seed=seed)) for n in (fewer, more))
    assert len(set(one)) == len(one) == fewer
    assert len(set(other)) == len(other) == more
    assert set(one) <= set(other) <= set(cases)


@settings(max_examples=60)
@given(count=st.integers(1, 40), fraction=st.floats(0.001, 1), seed=st.integers(0, 99))
def test_a_fraction_of_labels_is_the_nearest_number_of_cases_and_never_none(count, fraction, seed):
    cases = [case(str(number)) for number in range(count)]
    chosen = subset(cases, settings_with(label_fraction=fraction, seed=seed))
    assert abs(len(chosen) - max(1, count * fraction)) <= 0.5
    assert list(chosen) == list(subset(cases, settings_with(train_cases=len(chosen), seed=seed)))


def test_another_seed_takes_other_cases_and_without_a_number_it_is_all():
    cases = [case(str(number)) for number in range(20)]
    chosen = {tuple(subset(cases, settings_with(train_cases=4, seed=seed))) for seed in range(10)}
    assert len(chosen) == 10
    assert subset(cases, settings_with(seed=3)) == cases
    assert subset(cases, settings_with(seed=3, label_fraction=1)) == cases


def test_more_cases_than_there_are_is_an_error():
    with pytest.raises(Dae3dError, match=r"train_cases: task.json has 3 training cases, not 4"):
        subset([case(name) for name in "abc"], settings_with(train_cases=4))


def test_a_fold_is_held_out_beside_the_validation_cases(tmp_path):
    training = [case(str(number), fold=number % 3) for number in range(7)]
    task = task_of(tmp_path, training, [case("held out")])
    trained, validated = task.sides(1)
    assert [c.name for c in trained] == ["0", "2", "3", "5", "6"]
    assert [c.name for c in validated] == ["1", "4", "held out"]
    # Without a fold, folds do not matter where the list has validation cases.
    trained, validated = task.sides()
    assert (len(trained), [c.name for c in validated]) == (7, ["held out"])


def test_wrong_folds_are_errors_that_say_which_there_are(tmp_path):
    folds = task_of(tmp_path, [case(str(number), fold=number % 3) for number in range(7)])
    with pytest.raises(Dae3dError, match="fold 5; there are: 0, 1, 2"):
        folds.sides(5)
    with pytest.raises(Dae3dError, match=r"fold: .*task\.json has folds; .*: 0, 1, 2"):
        folds.sides()
    with pytest.raises(Dae3dError, match=r"task\.json: .*fold 0; entries have no `fold`"):
        task_of(tmp_path, [case("a"), case("b")]).sides(0)


@settings(max_examples=60)
@given(subjects=st.lists(st.integers(0, 12), min_size=2, max_size=30).filter(lambda s: len(set(s)) > 1))
def test_without_validation_cases_whole_subjects_are_held_out(tmp_path_factory, subjects):
    cases = [case(f"case {place}", f"subject {subject}") for place, subject in enumerate(subjects)]
    task = task_of(tmp_path_factory.getbasetemp(), cases)
    trained, validated = task.sides()
    assert trained
    assert validated
    assert sorted([*trained, *validated], key=cases.index) == cases
    assert not {c.subject for c in trained} & {c.subject for c in validated}


def test_about_a_fifth_is_held_out(tmp_path):
    cases = [case(f"case {number}") for number in range(400)]
    _, validated = task_of(tmp_path, cases).sides()
    assert 50 < len(validated) < 110


def test_one_subject_is_too_few(tmp_path):
    with pytest.raises(Dae3dError, match="two subjects"):
        task_of(tmp_path, [case("a", "s"), case("b", "s")]).sides()


@pytest.fixture(scope="module")
def listed(tiny_task):
    """The entries of the tiny task, of all splits."""
    content = json.loads(tiny_task.read_text())
    return content["training"] + content["validation"]


def test_the_cases_held_out_are_those_of_every_seed(tiny_task, tiny_finetune, listed, tmp_path):
    whole = write_task(tiny_task.parent, "unsplit", training=listed)
    runs = [
        labelled_data(FinetuneSettings(**(tiny_finetune | {"data": whole, "out": tmp_path} | changes)))
        for changes in ({}, {"seed": 7}, {"seed": 7, "train_cases": 2}, {"seed": 8, "train_cases": 2})
    ]
    held_out = [{run.store.cases[number].name for number in run.validation} for run in runs]
    trained = [{run.store.cases[number].name for number in run.training} for run in runs]
    assert held_out == [held_out[0]] * 4
    assert trained[0] == trained[1] == {c.name for c in read_task(whole).training} - held_out[0]
    assert trained[2] < trained[0]
    assert trained[2] != trained[3]


def test_cases_are_drawn_in_proportion_to_their_weights():
    labels = [label_map(seed, (12, 12, 12), 0.1) for seed in range(4)]
    given = settings_with(crops_per_case=4, roi=8)
    stream = CaseStream(MadeUpStore(labels), [0, 1, 2, 3], given, [1, 1, 0.5, 0.25])
    assert stream.per_epoch == 11
    for epoch in range(5):
        drawn = Counter(stream[epoch * 11 + place].case for place in range(11))
        assert drawn == {0: 4, 1: 4, 2: 2, 3: 1}
    # 1.6 and 0.4 samples of an epoch of two: one or two of the first.
    stream = CaseStream(MadeUpStore(labels), [0, 1], settings_with(crops_per_case=1, roi=8), [1.6, 0.4])
    drawn = Counter(stream[sample].case for sample in range(2000))
    assert drawn[1] == pytest.approx(400, abs=60)
    assert all(0 in {stream[2 * epoch].case, stream[2 * epoch + 1].case} for epoch in range(1000))


def test_equal_weights_draw_as_no_weights():
    store = MadeUpStore([label_map(seed, (12, 12, 12), 0.1) for seed in range(3)])
    plain, weighted = (CaseStream(store, [0, 1, 2], settings_with(roi=8), w) for w in (None, [1.0] * 3))
    assert [plain[sample] for sample in range(50)] == [weighted[sample] for sample in range(50)]


@pytest.mark.parametrize("weight", [0, -1, "inf", "often"])
def test_a_weight_is_a_positive_number(tmp_path, weight):
    def of_weight(value):
        return write_task(
            tmp_path, "task", training=[{"image": "a.nii.gz", "label": "b.nii.gz", "weight": value}]
        )

    with pytest.raises(Dae3dError, match=r"training\.0\.weight"):
        read_task(of_weight(weight))
    assert read_task(of_weight(0.25)).training[0].weight == 0.25
