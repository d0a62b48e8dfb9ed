"""The digest of voxels: one for the same intensities under any header, another for any others."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dae3d.scans.readers import Volume, read_volume
from dae3d.store.conform import to_ras
from dae3d.store.fingerprint import voxel_digest
from scan_files import write_nifti

VOXELS = arrays(np.int16, st.tuples(*[st.integers(1, 7)] * 3), elements=st.integers(-2000, 2000))


def digest(array: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> str:
    return voxel_digest(Volume(array, np.eye(4), slope, intercept))


@given(VOXELS, st.permutations([0, 1, 2]), st.lists(st.integers(0, 2), unique=True))
def test_order_and_direction_of_axes_do_not_count(
    array: np.ndarray, order: list[int], flips: list[int]
) -> None:
    assert digest(np.flip(array.transpose(order), flips)) == digest(array)


@given(VOXELS, st.sampled_from([1.0, 0.5, 2.0, -4.0]), st.sampled_from([0.0, -1024.0, 0.25]))
def test_type_and_scale_factors_do_not_count(array: np.ndarray, slope: float, intercept: float) -> None:
    # Powers of two, so that the scaled intensities are exact in every type.
    intensities = array * slope + intercept
    wanted = digest(intensities)
    assert digest(array, slope, intercept) == wanted
    assert digest(intensities.astype(np.float32)) == wanted
    assert digest(array.astype(">i4"), slope, intercept) == wanted


@given(VOXELS, st.data())
def test_one_other_voxel_is_another_scan(array: np.ndarray, data: st.DataObject) -> None:
    place = tuple(data.draw(st.integers(0, n - 1)) for n in array.shape)
    other = array.copy()
    other[place] += data.draw(st.sampled_from([-1, 1, 3]))
    assert digest(other) != digest(array)


def test_the_same_voxels_in_another_shape_are_another_scan() -> None:
    array = np.arange(64, dtype=np.uint8)
    assert digest(array.reshape(4, 4, 4)) != digest(array.reshape(2, 8, 4))
    assert digest(array.reshape(2, 8, 4)) == digest(array.reshape(8, 4, 2))


def test_zeros_of_either_sign_are_one() -> None:
    assert digest(np.full((2, 2, 2), -0.0)) == digest(np.zeros((2, 2, 2), np.uint8))


def test_values_that_swap_their_frequencies_are_another_scan() -> None:
    array = np.zeros((50, 60, 70), np.int16)
    array[:10] = 1
    assert digest(array) != digest(1 - array)


def test_a_scan_saved_by_other_programs_is_the_same(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "pretrain" / "elastix" / "3DCT_lung.mha"
    volume = read_volume(source)
    wanted = voxel_digest(volume)
    sitk.WriteImage(sitk.ReadImage(str(source), sitk.sitkFloat64), str(tmp_path / "double.nrrd"))
    turned = to_ras(volume)
    nibabel.save(nibabel.MGHImage(turned.array.astype(np.float32), turned.affine), tmp_path / "turned.mgz")
    affine = np.diag([3.0, 1.0, 2.0, 1.0])
    shifted = (volume.array.astype(np.int32) + 2048).astype(np.uint16)
    write_nifti(tmp_path / "shifted.nii.gz", shifted, affine, slope=1.0, intercept=-2048.0)
    for name in ("double.nrrd", "turned.mgz", "shifted.nii.gz"):
        assert voxel_digest(read_volume(tmp_path / name)) == wanted


@pytest.mark.parametrize("folder", ["labelled/msd_hippocampus/images"])
def test_no_two_different_scans_share_a_digest(shared_data: Path, folder: str) -> None:
    paths = sorted((shared_data / folder).glob("*.nii.gz"))
    contents = [read_volume(path) for path in paths]
    distinct = {(v.array.shape, v.intensities().tobytes()) for v in contents}
    assert len({voxel_digest(v) for v in contents}) == len(distinct) > 100
