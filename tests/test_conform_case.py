"""Channels and labels on the network's grid, checked against MONAI and against world coordinates."""

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from nibabel.affines import apply_affine

from dae3d.errors import ScanError
from dae3d.scans.readers import Volume, read_volume
from dae3d.store.case_files import read_case
from dae3d.store.conform_case import ConformedCase, conform_case, labels_at, upright_label
from dae3d.store.recipe import CaseRecipe
from scan_files import phantom, write_nifti

SHAPE = (22, 25, 18)


def recipe(*modalities: str, **changes) -> CaseRecipe:
    labels = {0: "background", 1: "a", 2: "b", 7: "c"}
    return CaseRecipe(**{"modalities": modalities or ("t1",), "labels": labels} | changes)


def conform_label(label: Volume, case: ConformedCase, made: CaseRecipe) -> np.ndarray:
    return labels_at(case.grid, upright_label(label, case, made))


def rotated(degrees: float, spacing=(1.0, 1.0, 1.0), flips=(1, 1, 1), order=(0, 1, 2)) -> np.ndarray:
    """An oblique affine: stored axes permuted and flipped, then turned about two world axes."""
    turn = np.radians(degrees)
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(turn), np.sin(turn)], [0, -np.sin(turn), np.cos(turn)]])
    axes = np.zeros((3, 3))
    for axis, (world, flip) in enumerate(zip(order, flips, strict=True)):
        axes[world, axis] = flip * spacing[axis]
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ axes
    affine[:3, 3] = (-13, 40, 7)
    return affine


def blobs(seed: int, shape=SHAPE) -> np.ndarray:
    """Classes 0 to 3 in boxes of 3 voxels, as the values of `recipe`."""
    coarse = np.random.default_rng(seed).integers(0, 4, [-(-n // 3) for n in shape])
    fine = coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)[tuple(map(slice, shape))]
    return np.array([0, 1, 2, 7], np.uint8)[fine]


affines = st.builds(
    rotated,
    st.floats(-40, 40),
    st.tuples(*[st.floats(0.6, 3)] * 3),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.permutations([0, 1, 2]),
)
spacings = st.none() | st.tuples(*[st.floats(0.8, 2.5)] * 3)


@settings(max_examples=40)
@given(affine=affines, spacing=spacings, crop=st.booleans(), seed=st.integers(0, 99))
def test_every_voxel_keeps_its_place_in_the_world(affine, spacing, crop, seed):
    """Law: an image linear in world coordinates still is, and labels are those of the nearest voxel."""
    slopes = np.array([3.0, -2.0, 5.0])
    world = apply_affine(affine, np.moveaxis(np.indices(SHAPE), 0, -1))
    image = Volume((world @ slopes).astype(np.float32), affine)
    label = Volume(blobs(seed), affine)
    made = recipe(spacing=spacing, crop_foreground=crop)
    case = conform_case([image], made)
    indices = conform_label(label, case, made)
    assert indices.shape == case.grid.shape == case.volumes[0].array.shape
    assert indices.dtype == np.uint8
    assert "".join(nibabel.aff2axcodes(case.grid.affine)) == "RAS"
    if spacing is not None:
        np.testing.assert_allclose(case.grid.spacing, spacing, rtol=2e-3)
    there = apply_affine(case.grid.affine, np.moveaxis(np.indices(case.grid.shape), 0, -1))
    source = apply_affine(np.linalg.inv(affine), there)
    inside = ((source > 0) & (source < np.array(SHAPE) - 1)).all(axis=-1)
    values = case.volumes[0].intensities()
    np.testing.assert_allclose(values[inside], (there @ slopes)[inside], atol=0.02)
    nearest = np.rint(source).astype(int).clip(0, np.array(SHAPE) - 1)
    classes = np.searchsorted([0, 1, 2, 7], label.array)
    clear = (np.abs(source - np.floor(source) - 0.5) > 1e-3).all(axis=-1)
    np.testing.assert_array_equal(indices[clear], classes[tuple(np.moveaxis(nearest, -1, 0))][clear])


@settings(max_examples=20)
@given(affine=affines, spacing=st.tuples(*[st.floats(0.8, 2.5)] * 3))
def test_the_grid_has_axes_parallel_to_those_of_the_scan(affine, spacing):
    image = Volume(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE), affine)
    case = conform_case([image], recipe(spacing=spacing))
    assert case.original.shape == SHAPE
    np.testing.assert_array_equal(case.original.affine, affine)
    steps = (np.linalg.inv(affine) @ case.grid.affine)[:3, :3]
    # One of the scan's axes to each of the grid's, and each of them once.
    assert ((np.abs(steps) > 1e-5).sum(0) == 1).all()
    assert ((np.abs(steps) > 1e-5).sum(1) == 1).all()


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 2.0), (0.7, 2.0, 1.0)])
def test_as_monai_orients_and_resamples(spacing):
    affine = rotated(20, (0.9, 1.1, 2.5), (-1, 1, -1), (1, 2, 0))
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    label = blobs(3)

    def by_monai(array: np.ndarray, mode: str) -> np.ndarray:
        tensor = MetaTensor(torch.from_numpy(array.astype(np.float32))[None], affine=torch.from_numpy(affine))
        upright = Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(tensor)
        return Spacing(spacing, mode=mode, dtype=np.float64)(upright).numpy()[0]

    made = recipe(spacing=spacing)
    case = conform_case([Volume(image, affine)], made)
    np.testing.assert_allclose(case.volumes[0].array, by_monai(image, "bilinear"), atol=1e-4)
    indices = conform_label(Volume(label, affine), case, made)
    expected = np.searchsorted([0, 1, 2, 7], by_monai(label, "nearest"))
    # Half-way between two voxels, rounding errors decide.
    assert (indices != expected).mean() < 0.01


def body(*centre: int) -> np.ndarray:
    """A cube of side 10 around a place, in air."""
    volume = np.full((60, 60, 60), -1000, np.int16)
    volume[tuple(slice(n - 5, n + 5) for n in centre)] = 50
    return volume


def test_the_foreground_is_that_of_all_channels():
    channels = [Volume(body(20, 30, 30), np.eye(4)), Volume(body(40, 30, 20), np.eye(4))]
    made = recipe("ct", "pet", crop_foreground=True)
    case = conform_case(channels, made)
    # From 15 to 45, 25 to 35 and 15 to 35, and 10 mm more on each side.
    assert case.grid.shape == (50, 30, 40)
    np.testing.assert_array_equal(case.grid.affine[:3, 3], (5, 15, 5))
    assert case.foreground == ((10, 10, 10), (40, 20, 30))
    np.testing.assert_array_equal(case.volumes[1].array, body(40, 30, 20)[5:55, 15:45, 5:45])
    label = np.zeros((60, 60, 60), np.uint8)
    label[30, 30, 30] = 7
    assert np.argwhere(conform_label(Volume(label, np.eye(4)), case, made)).tolist() == [[25, 15, 25]]


def test_channels_are_scaled_each_by_its_own_rule():
    """CT by a window, written as HU + 1024 with an intercept; MR to mean 0 and deviation 1 off its zeros."""
    ct = np.clip(np.random.default_rng(0).normal(0, 600, SHAPE), -1024, 2000).astype(np.int16)
    mr = np.random.default_rng(1).integers(0, 5, SHAPE).astype(np.uint8)
    made = recipe("ct", "t1", intensity={"ct": "window:-175:250"})
    case = conform_case([Volume(ct + 1024, np.eye(4), 1.0, -1024.0), Volume(mr, np.eye(4))], made)
    image = case.normalised(made)
    assert (image.shape, image.dtype) == ((2, *SHAPE), np.float32)
    np.testing.assert_allclose(image[0], np.clip((ct + 175) / 425, 0, 1), atol=1e-5)
    assert abs(image[1][mr > 0].mean()) < 1e-5
    assert image[1][mr > 0].std() == pytest.approx(1, abs=1e-4)
    assert not image[1][mr == 0].any()


@pytest.mark.parametrize(
    ("values", "slope"), [("<i2", 1), (">i4", 1), ("<f4", 1), ("<f8", 1), ("u1", 1 / 255), ("<u2", 0.5)]
)
def test_labels_of_any_type(values, slope):
    """Whole numbers are, whatever they are written as, scaled ones too (1 as 255 / 255 is 1.0000001)."""
    label = blobs(1) if slope != 1 / 255 else (blobs(1) > 0).astype(int)
    stored = np.round(label / slope).astype(values)
    made = recipe()
    case = conform_case([Volume(np.arange(label.size).reshape(SHAPE), np.eye(4))], made)
    indices = conform_label(Volume(stored, np.eye(4), slope), case, made)
    np.testing.assert_array_equal(indices, np.searchsorted([0, 1, 2, 7], label))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (3, r"contains 3, which are not label values of the classes \(0 background, 1 a, 2 b, 7 c\)"),
        (-1, "contains -1, which are not label values"),
        (255, "contains 255, which"),
        (0.5, r"contains 0\.5, which are not whole numbers: interpolated"),
        (np.nan, "contains nan"),
        (1e9, r"contains 1e\+09, which"),
    ],
)
def test_values_without_a_class(value, why):
    label = np.zeros(SHAPE, np.float32)
    label[3, 4, 5] = value
    made = recipe()
    case = conform_case([Volume(np.arange(label.size).reshape(SHAPE), np.eye(4))], made)
    with pytest.raises(ScanError, match=why):
        conform_label(Volume(label, np.eye(4)), case, made)


def test_many_values_without_a_class_are_not_all_listed():
    label = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    made = recipe()
    case = conform_case([Volume(label, np.eye(4))], made)
    with pytest.raises(ScanError, match=r"contains 3, 4, 5, 6, 8 and others, which"):
        conform_label(Volume(label, np.eye(4)), case, made)


def test_a_label_on_another_grid_is_refused_with_both_values():
    image = Volume(np.arange(np.prod(SHAPE)).reshape(SHAPE), np.diag([1.0, 1, 2, 1]))
    made = recipe()
    case = conform_case([image], made)
    with pytest.raises(ScanError, match=r"another grid than the image: its shape is 22x25x17, not 22x25x18"):
        conform_label(Volume(np.zeros((22, 25, 17), np.uint8), image.affine), case, made)
    flipped = np.diag([-1.0, 1, 2, 1])
    with pytest.raises(ScanError, match=r"its affine is \[-1 0 0 0; .*\], not \[1 0 0 0; .*: .* 42 mm apart"):
        conform_label(Volume(np.zeros(SHAPE, np.uint8), flipped), case, made)
    # What a header's rounding makes of an origin does no harm: the image's affine counts.
    nearly = image.affine.copy()
    nearly[:3, 3] += 0.04
    conform_label(Volume(np.zeros(SHAPE, np.uint8), nearly), case, made)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (np.zeros(SHAPE), r"channel 2 \(t2\): constant"),
        (np.full(SHAPE, np.nan), r"channel 2 \(t2\): not finite"),
        (
            np.zeros((3, 4, 5)),
            r"channel 2 \(t2\) is on another grid than channel 1 \(t1\): its shape is 3x4x5",
        ),
    ],
)
def test_the_bad_channel_is_named(broken, why):
    good = np.arange(np.prod(SHAPE), dtype=float).reshape(SHAPE)
    with pytest.raises(ScanError, match=why):
        conform_case([Volume(good, np.eye(4)), Volume(broken, np.eye(4))], recipe("t1", "t2"))


def test_a_ct_without_its_intercept_is_refused_and_its_file_is_named(tmp_path):
    lost = phantom((40, 40, 20)).astype(np.int16) + 1024
    path = write_nifti(tmp_path / "sub-1_ct.nii.gz", lost)
    with pytest.raises(ScanError, match=r"sub-1_ct\.nii\.gz: not in HU: .*intercept"):
        read_case([path], recipe("ct"))
    with pytest.raises(ScanError, match=r"channel 2 \(ct\): not in HU"):
        conform_case([Volume(lost, np.eye(4))] * 2, recipe("t1", "ct"))
    conform_case([Volume(lost, np.eye(4), intercept=-1024.0)], recipe("ct"))


def test_the_number_of_channels_is_the_recipes():
    good = Volume(np.arange(np.prod(SHAPE)).reshape(SHAPE), np.eye(4))
    with pytest.raises(ScanError, match=r"channels: 1, expected 2 \(t1, flair\)"):
        conform_case([good], recipe("t1", "flair"))


def test_sheared_axes_are_resampled_by_nobody(shared_data):
    sheared = [shared_data / "awkward" / "sheared_affine_ct_shear.nii.gz"]
    with pytest.raises(ScanError, match=r"ct_shear\.nii\.gz: its axes are sheared"):
        read_case(sheared, recipe(spacing=(1, 1, 1)))
    assert len(read_case(sheared, recipe()).volumes) == 1


def test_real_channels_on_different_grids(shared_data):
    files = [
        shared_data / "labelled" / "isles22" / f"sub-strokecase0009_ses-0001_{sequence}.nii.gz"
        for sequence in ("adc", "dwi", "flair")
    ]
    made = recipe("adc", "dwi", spacing=(2, 2, 2))
    case = read_case(files[:2], made)
    mask = read_volume(files[0].with_name("sub-strokecase0009_ses-0001_msk.nii.gz"))
    indices = conform_label(mask, case, made)
    # Same spacing: nothing is interpolated, so no voxel of the lesion is lost.
    assert indices.sum() == mask.array.sum() > 0
    with pytest.raises(ScanError, match=r"flair\.nii\.gz: channel 3 .*512x512x29, not 112x112x73"):
        read_case(files, recipe("adc", "dwi", "flair"))


def test_a_file_that_cannot_be_read_is_named(shared_data, tmp_path):
    gone = tmp_path / "gone.nii.gz"
    with pytest.raises(ScanError, match=r"gone\.nii\.gz: unreadable"):
        read_case([gone], recipe())
    with pytest.raises(ScanError, match=r"truncated.*\.nii\.gz: unreadable"):
        read_case([next((shared_data / "awkward" / "corrupt").glob("*truncated*"))], recipe())
