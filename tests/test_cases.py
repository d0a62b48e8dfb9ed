"""Labelled cases in the store: crops are slices of the conformed case, and only changes are done again."""

import logging
import os
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dae3d.errors import Dae3dError
from dae3d.scans.readers import read_volume
from dae3d.scans.task import TaskCase
from dae3d.store.case_files import read_case
from dae3d.store.cases import CaseStore, prepare_cases
from dae3d.store.conform_case import labels_at, upright_label
from dae3d.store.positions import draw_positions
from made_cases import SHAPE, labels, recipe, some_cases
from scan_files import phantom, write_nifti

pytestmark = pytest.mark.slow


def files(store: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in (store / "cases").rglob("*") if file.is_file()}


@settings(max_examples=30)
@given(
    shape=st.tuples(*[st.integers(2, 80)] * 2, st.integers(2, 30)),
    dtypes=st.lists(st.sampled_from(["u1", "<i2", ">i2", "<f4", "<f8"]), min_size=1, max_size=3),
    flips=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    spacing=st.none() | st.tuples(*[st.sampled_from([0.7, 1.0, 2.0])] * 3),
    crop=st.booleans(),
    scale=st.sampled_from([None, (0.5, -100.0)]),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_a_crop_is_a_slice_of_the_conformed_case(shape, dtypes, flips, spacing, crop, scale, seed, data):
    """Law: padded crops of image and label are slices of the case conformed as a whole and then padded."""
    random = np.random.default_rng(seed)
    affine = np.diag([*flips, 1.0])
    made = recipe(
        modalities=("ct", "t1", "pet")[: len(dtypes)],
        spacing=spacing,
        crop_foreground=crop,
        intensity={"ct": "window:-50:60"},
    )
    with TemporaryDirectory() as name:
        folder = Path(name)
        images = tuple(
            write_nifti(
                folder / f"{number}.nii",
                random.integers(0, 120, shape).astype(dtype),
                affine,
                *(scale or (None, None)),
            )
            for number, dtype in enumerate(dtypes)
        )
        label = write_nifti(folder / "label.nii", random.choice([0, 1, 4], shape).astype(np.uint8), affine)
        case = TaskCase("one", images, label, "one")
        store = prepare_cases([case], made, folder / "store", workers=1)
        whole = read_case(images, made)
        classes = labels_at(whole.grid, upright_label(read_volume(label), whole, made))
        start = tuple(data.draw(st.integers(-20, 80)) for _ in range(3))
        size = tuple(data.draw(st.integers(1, 40)) for _ in range(3))
        around = [(20, 130)] * 3
        box = tuple(slice(20 + s, 20 + s + n) for s, n in zip(start, size, strict=True))
        expected = np.pad(whole.normalised(made), [(0, 0), *around])[(slice(None), *box)]
        image = store.image(0, start, size, made.intensity)
        assert (image.dtype, image.shape) == (np.float32, (len(dtypes), *size))
        np.testing.assert_array_equal(image, expected)
        crop_of_label = store.label(0, start, size)
        assert crop_of_label.dtype == np.uint8
        np.testing.assert_array_equal(crop_of_label, np.pad(classes, around)[box])
        stored = store.cases[0]
        assert stored.shape == classes.shape
        np.testing.assert_allclose(stored.affine, whole.grid.affine)
        assert stored.voxels == tuple(np.bincount(classes.ravel(), minlength=3))
        for value, positions in enumerate(store.positions(0)):
            assert positions.shape == (min(stored.voxels[value], len(positions)), 3)
            assert (classes[tuple(positions.T)] == value).all()
            assert bool(len(positions)) == bool(stored.voxels[value])


@settings(max_examples=50)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    shares=st.tuples(*[st.floats(0, 1)] * 4),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_positions_carry_their_class(shape, shares, seed, data):
    """Law: as many as there are, or 10,000; none twice; each of its class; background inside the box."""
    random = np.random.default_rng(seed)
    total = sum(shares) or 1.0
    label = random.choice(5, shape, p=[*np.array(shares) / total, 0 if sum(shares) else 1]).astype(np.uint8)
    first = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    last = tuple(data.draw(st.integers(f + 1, n)) for f, n in zip(first, shape, strict=True))
    voxels, drawn = draw_positions(label, (first, last), 6, "case")
    assert voxels == tuple(np.bincount(label.ravel(), minlength=6))
    inside = label[tuple(map(slice, first, last))]
    available = [np.count_nonzero(inside == 0) or voxels[0], *voxels[1:]]
    for value, positions in enumerate(drawn):
        assert positions.dtype == np.int32
        assert len(positions) == len({*map(tuple, positions.tolist())}) == min(available[value], 10_000)
        assert (label[tuple(positions.T)] == value).all()
    if (inside == 0).any():
        assert ((drawn[0] >= first) & (drawn[0] < last)).all()
    _, again = draw_positions(label, (first, last), 6, "case")
    for one, other in zip(drawn, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_positions_are_drawn_uniformly():
    """Over 300 cases, each of 25,000 voxels of a class is drawn about 300 * 10,000 / 25,000 = 120 times."""
    label = np.zeros((50, 50, 20), np.uint8)
    label[:, :25] = 1
    times = np.zeros(label.shape, int)
    for case in range(300):
        _, drawn = draw_positions(label, ((0, 0, 0), label.shape), 2, f"case {case}")
        times[tuple(drawn[1].T)] += 1
    inside = times[:, :25]
    assert times[:, 25:].sum() == 0
    # Binomial: mean 120, variance 300 * 0.4 * 0.6 = 72.
    assert inside.mean() == 120
    assert 69 < inside.var() < 75
    assert np.abs(inside.mean(axis=(0, 1)) - 120).max() < 2


def test_cases_come_in_the_order_given(tmp_path):
    cases = some_cases(tmp_path, 4)
    mixed = [cases[2], cases[0], cases[3], cases[1]]
    store = prepare_cases(mixed, recipe(), tmp_path / "store", workers=2)
    assert [case.name for case in store.cases] == ["case2", "case0", "case3", "case1"]
    assert [store.number(f"case{i}") for i in range(4)] == [1, 3, 0, 2]
    assert [(case.subject, case.fold) for case in store.cases[:2]] == [("subject 2", 0), ("subject 0", 0)]
    for number, case in enumerate(mixed):
        stored = read_volume(case.label).array
        np.testing.assert_array_equal(
            store.label(number, (0, 0, 0), SHAPE), np.searchsorted([0, 1, 4], stored)
        )
    again = CaseStore(tmp_path / "store")
    assert again.cases == store.cases
    assert again.recipe == recipe()


def test_only_what_is_missing_or_changed_is_done(tmp_path):
    out = tmp_path / "store"
    cases = some_cases(tmp_path, 3)
    prepare_cases(cases[:2], recipe(), out, workers=1)
    before = files(out)
    prepare_cases(cases, recipe(), out, workers=1)
    assert before.items() <= files(out).items()
    before = files(out)
    prepare_cases(cases, recipe(), out, workers=1)
    assert files(out) == before

    # A label that is drawn again is the case's change, and no other's.
    write_nifti(cases[1].label, labels(SHAPE, 77))
    store = prepare_cases(cases, recipe(), out, workers=1)
    changed = {file for file, when in files(out).items() if when != before.get(file)}
    assert {Path(file).parent.name for file in changed} == {store.cases[1].folder}
    np.testing.assert_array_equal(
        store.label(1, (0, 0, 0), SHAPE), np.searchsorted([0, 1, 4], labels(SHAPE, 77))
    )


def test_a_touched_case_is_kept_and_a_damaged_one_is_mended(tmp_path):
    out = tmp_path / "store"
    cases = some_cases(tmp_path, 2)
    store = prepare_cases(cases, recipe(), out, workers=1)
    voxels = {file: when for file, when in files(out).items() if file.endswith((".b2nd", ".npy"))}
    os.utime(cases[0].images[0], ns=(1, 12345))
    store = prepare_cases(cases, recipe(), out, workers=1)
    assert voxels.items() <= files(out).items()
    assert store.cases[0].sources[0].stamp.mtime_ns == 12345
    for name in ("0.b2nd", "label.b2nd", "positions.npy", "case.json"):
        file = out / "cases" / store.cases[0].folder / name
        file.unlink()
        if name != "case.json":
            with pytest.raises(Dae3dError, match=f"{name}: .*run `dae3d finetune` again"):
                (store.image(0, (0, 0, 0), SHAPE), store.label(0, (0, 0, 0), SHAPE), store.positions(0))
        store = prepare_cases(cases, recipe(), out, workers=1)
        assert file.exists()
        assert store.image(0, (0, 0, 0), SHAPE).shape == (1, *SHAPE)


def test_runs_with_other_cases_and_geometries_share_a_store(tmp_path):
    out = tmp_path / "store"
    cases = some_cases(tmp_path, 2)
    first = prepare_cases(cases, recipe(), out, workers=1)
    coarse = prepare_cases(cases[1:], recipe(spacing=(2, 2, 2)), out, workers=1)
    assert coarse.cases[0].shape == (15, 17, 13) or coarse.cases[0].shape == (16, 18, 14)
    assert [case.name for case in first.cases] == ["case0", "case1"]
    assert first.label(1, (0, 0, 0), SHAPE).shape == SHAPE
    before = files(out)
    prepare_cases(cases, recipe(intensity={"ct": "zscore"}, roi=64, modalities=("cbct",)), out, workers=1)
    assert files(out) == before


def test_intensity_may_differ_between_runs_of_one_store(tmp_path):
    store = prepare_cases(some_cases(tmp_path, 1), recipe(), tmp_path / "store", workers=1)
    raw = phantom(SHAPE, 0).astype(np.float32)
    at = ((0, 0, 0), SHAPE)
    np.testing.assert_allclose(store.image(0, *at)[0], np.clip((raw + 1000) / 2000, 0, 1), atol=1e-6)
    windowed = store.image(0, *at, {"ct": "window:-175:250"})
    np.testing.assert_allclose(windowed[0], np.clip((raw + 175) / 425, 0, 1), atol=1e-5)


def test_every_bad_case_is_told_and_the_others_are_done(tmp_path):
    out = tmp_path / "store"
    cases = some_cases(tmp_path, 6)
    cases[0].images[0].write_bytes(b"\x00" * 500)
    write_nifti(cases[1].label, labels((30, 34, 25)))
    write_nifti(cases[2].label, np.where(labels(SHAPE) == 4, 9, 0).astype(np.uint8))
    write_nifti(cases[3].label, labels(SHAPE) * np.float32(0.3))
    cases[4].label.unlink()
    with pytest.raises(Dae3dError) as caught:
        prepare_cases(cases, recipe(), out, workers=2)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("5 of 6 cases cannot be used")
    for line, why in zip(
        lines,
        [
            "case0: .*/case0.nii: unreadable",
            "case1: .*/labels/case1.nii.gz: .*shape is 30x34x25, not 30x34x26",
            "case2: .*/labels/case2.nii.gz: contains 9",
            "case3: .*/labels/case3.nii.gz: contains 0.3.*not whole numbers",
            "case4: .*/labels/case4.nii.gz: unreadable: No such file",
        ],
        strict=True,
    ):
        assert re.search(why, line), line
    assert len(list((out / "cases").iterdir())) == 1
    before = files(out)
    prepare_cases(cases[5:], recipe(), out, workers=1)
    assert files(out) == before


def test_a_case_without_label_is_told(tmp_path):
    case = some_cases(tmp_path, 1)[0]
    with pytest.raises(Dae3dError, match="case0: has no label"):
        prepare_cases([TaskCase("case0", case.images, None, "x")], recipe(), tmp_path / "store", workers=1)


def test_a_label_of_another_subject_is_found(tmp_path):
    cases = some_cases(tmp_path, 3)
    shutil.copy(cases[0].label, cases[2].label)
    with pytest.raises(Dae3dError, match=r"case2: .*labels/case2.*same as a file of case0, another subject"):
        prepare_cases(cases, recipe(), tmp_path / "store", workers=1)
    # Two scans of one subject may have one label, and what has nothing labelled is like another such.
    same = [TaskCase(c.name, c.images, c.label, "one", None) for c in cases]
    prepare_cases(same, recipe(), tmp_path / "store", workers=1)
    for case in cases:
        write_nifti(case.label, np.zeros(SHAPE, np.uint8))
    store = prepare_cases(cases, recipe(), tmp_path / "store", workers=1)
    # The body of the phantom is 18 x 22 x 16 voxels, and its noise does not reach the threshold.
    assert [len(positions) for positions in store.positions(0)] == [18 * 22 * 16, 0, 0]


def test_labels_beyond_the_foreground_are_told(tmp_path, caplog):
    shape = (60, 60, 60)
    image = np.full(shape, -1000, np.int16)
    image[30:50, 30:50, 30:50] = 50
    label = np.zeros(shape, np.uint8)
    label[2:5, 2, 2] = 1
    label[40, 40, 40] = 4
    case = TaskCase(
        "far", (write_nifti(tmp_path / "i.nii", image),), write_nifti(tmp_path / "l.nii", label), "x"
    )
    with caplog.at_level(logging.WARNING):
        store = prepare_cases([case], recipe(crop_foreground=True), tmp_path / "store", workers=1)
    assert "crop_foreground removes labelled voxels in 1 cases: far (3 voxels)" in caplog.text
    assert store.cases[0].voxels == (40**3 - 1, 0, 1)
    # Background is drawn where the cube is, and not in the 10 mm of air around it.
    background = store.positions(0)[0]
    assert background.min() >= 10
    assert background.max() < 30


def test_a_store_can_be_moved_and_sent(tmp_path):
    store = prepare_cases(some_cases(tmp_path, 1), recipe(), tmp_path / "store", workers=1)
    here = store.image(0, (-3, 5, 5), (16, 16, 16))
    with ProcessPoolExecutor(1) as executor:
        np.testing.assert_array_equal(
            executor.submit(store.image, 0, (-3, 5, 5), (16, 16, 16)).result(), here
        )
    moved = CaseStore(shutil.move(tmp_path / "store", tmp_path / "moved"))
    np.testing.assert_array_equal(moved.image(0, (-3, 5, 5), (16, 16, 16)), here)


def test_what_is_no_store(tmp_path):
    with pytest.raises(Dae3dError, match="no prepared cases here"):
        CaseStore(tmp_path)
    prepare_cases(some_cases(tmp_path, 1), recipe(), tmp_path / "store", workers=1)
    index = tmp_path / "store" / "cases.jsonl"
    for text in ("", "{}\n", index.read_text().splitlines()[0] + "\n", index.read_text()[:-100]):
        index.write_text(text)
        with pytest.raises(Dae3dError, match=r"cases\.jsonl: damaged"):
            CaseStore(tmp_path / "store")


@pytest.mark.parametrize("order", [("mr", "ct"), ("ct", "mr")])
def test_runs_of_other_modalities_share_a_store_and_no_statistics(tmp_path, order):
    """In HU all from -1500 down is padding, of which statistics, foreground and resampling know nothing."""
    image = phantom(SHAPE)
    image[:3] = -2000
    image[3:5] = -3000
    path = write_nifti(tmp_path / "ct.nii", image)
    label = write_nifti(tmp_path / "label.nii", labels(SHAPE))
    case = TaskCase("one", (path,), label, "one")
    rules = {"ct": "zscore", "mr": "zscore"}
    read = {}
    for modality in (*order, *order):
        made = recipe(modalities=(modality,), crop_foreground=True, intensity=rules)
        store = prepare_cases([case], made, tmp_path / "store", workers=1)
        whole = read_case([path], made)
        assert store.cases[0].shape == whole.grid.shape
        read[modality] = store.image(0, (0, 0, 0), whole.grid.shape, rules)
        np.testing.assert_array_equal(read[modality], whole.normalised(made))
    assert not np.array_equal(read["ct"], read["mr"])
    # Neither run took the other's files away, and none was prepared twice.
    assert len(list((tmp_path / "store" / "cases").iterdir())) == 2


def test_a_ct_that_is_not_in_hu_does_not_pass_for_having_been_called_mr(tmp_path):
    path = write_nifti(tmp_path / "ct.nii", phantom(SHAPE) + np.int16(1100))
    case = TaskCase("one", (path,), write_nifti(tmp_path / "label.nii", labels(SHAPE)), "one")
    prepare_cases([case], recipe(modalities=("mr",)), tmp_path / "store", workers=1)
    with pytest.raises(Dae3dError, match=r"one: .*ct.nii: not in HU"):
        prepare_cases([case], recipe(modalities=("ct",)), tmp_path / "store", workers=1)


def test_channels_share_no_statistics_where_their_modalities_change_places(tmp_path):
    voxels = phantom(SHAPE)
    voxels[:4] = -2000
    images = tuple(write_nifti(tmp_path / f"{i}.nii", voxels) for i in range(2))
    case = TaskCase("one", images, write_nifti(tmp_path / "label.nii", labels(SHAPE)), "one")
    # Outside HU, padding would lie alone below half of its value; here there is air of -1015.
    for modalities, padding in ((("ct", "mr"), [-1500, None]), (("mr", "ct"), [None, -1500])):
        store = prepare_cases([case], recipe(modalities=modalities), tmp_path / "store", workers=1)
        assert [channel.statistics.padding for channel in store.cases[0].channels] == padding


def test_a_store_of_an_earlier_version_can_be_read(tmp_path):
    """Its cases do not say which channels are in HU; they are prepared again when they are next asked for."""
    cases = some_cases(tmp_path, 2)
    out = tmp_path / "store"
    prepare_cases(cases, recipe(), out, workers=1)
    index = out / "cases.jsonl"
    index.write_text(index.read_text().replace(',"hounsfield":[true]', ""))
    assert '"hounsfield"' not in index.read_text()
    assert CaseStore(out).label(1, (0, 0, 0), SHAPE).max() == 2


def test_voxels_to_ignore_are_of_no_class(tmp_path):
    [case] = some_cases(tmp_path, 1)
    written = labels(SHAPE, 0)
    written[3:6, 3:6, 3:6] = 9
    write_nifti(case.label, written)
    with pytest.raises(Dae3dError, match="contains 9"):
        prepare_cases([case], recipe(), tmp_path / "store", workers=1)
    store = prepare_cases([case], recipe(ignore=9), tmp_path / "store", workers=1)
    found = store.label(0, (0, 0, 0), SHAPE)
    expected = np.select([written == 9, written == 4, written == 1], [255, 2, 1], 0)
    np.testing.assert_array_equal(found, expected)
    assert store.cases[0].voxels == tuple(int((expected == value).sum()) for value in range(3))
    for value, drawn in enumerate(store.positions(0)):
        assert (expected[tuple(drawn.T)] == value).all()


def test_names_of_stored_cases_are_those_of_versions_without_values_to_ignore():
    fields = '"spacing":null,"crop_foreground":false,"label_values":[0,1,4],"hounsfield":[true]'
    assert recipe().geometry.model_dump_json() == f'{{"version":1,{fields}}}'
    assert recipe(ignore=9).geometry.model_dump_json() == f'{{"version":1,{fields},"ignore":9}}'
