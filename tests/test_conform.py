import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.orientations import aff2axcodes

from dae3d.errors import ScanError
from dae3d.scans.readers import Volume
from dae3d.store.conform import crop_to_foreground, narrowed, resample, to_ras
from dae3d.store.statistics import measure
from scan_files import phantom


def world_of(volume: Volume) -> np.ndarray:
    """The RAS+ millimetres of every voxel, shape (X, Y, Z, 3)."""
    voxels = np.moveaxis(np.indices(volume.array.shape), 0, -1)
    return apply_affine(volume.affine, voxels)


def ramp(world: np.ndarray) -> np.ndarray:
    return world @ (2.0, 3.0, -1.0) + 50


# Axes to the left, superior and anterior, 1.5 x 3 x 2 mm.
LSA = np.array([[-1.5, 0, 0, 20], [0, 0, 2, -30], [0, 3, 0, 5], [0, 0, 0, 1]], float)
# The same turned by 20 degrees about the body's long axis.
TURN = np.eye(4)
TURN[:2, :2] = [[np.cos(0.35), -np.sin(0.35)], [np.sin(0.35), np.cos(0.35)]]


@pytest.mark.parametrize("affine", [LSA, TURN @ LSA], ids=["straight", "oblique"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 2.5, 3.0), (1.5, 2.0, 1.0)])
def test_resampling_keeps_a_linear_ramp(affine, spacing):
    """Trilinear interpolation is exact on a ramp in millimetres, wherever the axes point."""
    volume = Volume(np.zeros((30, 24, 28), np.float32), affine)
    volume = to_ras(Volume(ramp(world_of(volume)).astype(np.float32), affine))
    resampled = resample(volume, spacing)
    assert resampled.array.dtype == np.float32
    np.testing.assert_allclose(resampled.spacing, spacing, rtol=1e-6)
    # The border is repeated beyond the centres of the outermost voxels.
    inside = apply_affine(np.linalg.inv(volume.affine), world_of(resampled))
    inside = ((inside >= 0) & (inside <= np.array(volume.array.shape) - 1)).all(axis=-1)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(resampled.array[inside], ramp(world_of(resampled))[inside], atol=2e-3)


def test_resampling_to_its_own_spacing_changes_nothing():
    volume = Volume(phantom((10, 11, 12)), np.diag([1.0001, 0.9999, 2.0, 1.0]))
    assert resample(volume, (1, 1, 2)) is volume


def test_resampling_keeps_the_scale_factors():
    array = phantom((20, 20, 20))
    volume = Volume(array, np.eye(4), slope=0.5, intercept=-100.0)
    plain = Volume(array * np.float32(0.5) - 100, np.eye(4))
    np.testing.assert_allclose(
        resample(volume, (2, 2, 2)).intensities(), resample(plain, (2, 2, 2)).array, atol=1e-3
    )


@pytest.mark.parametrize("affine", [LSA, TURN @ LSA, np.diag([-1.0, -1.0, 1.0, 1.0])])
def test_reorienting_moves_no_voxel_in_the_world(affine):
    volume = Volume(phantom((9, 8, 7)), affine)
    turned = to_ras(volume)
    assert aff2axcodes(turned.affine) == ("R", "A", "S")
    before = {tuple(place): value for place, value in _placed(volume)}
    assert {tuple(place): value for place, value in _placed(turned)} == before


def _placed(volume: Volume) -> list[tuple[list[float], int]]:
    places = np.round(world_of(volume).reshape(-1, 3), 3) + 0.0
    return list(zip(places.tolist(), volume.array.ravel().tolist(), strict=True))


def test_axes_that_point_the_same_way_are_refused():
    affine = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    with pytest.raises(ScanError, match="affine is singular"):
        to_ras(Volume(phantom((4, 4, 4)), affine))


def test_foreground_crop_keeps_a_margin_of_10_mm_and_the_world():
    array = np.full((90, 80, 40), -1000, np.int16)
    array[40:60, 30:50, 2:38] = 40
    array[50, 40, 20] = 700
    affine = np.diag([2.0, 1.0, 4.0, 1.0])
    affine[:3, 3] = (-7, 9, 100)
    cropped = crop_to_foreground(Volume(array, affine))
    # 10 mm are 5, 10 and 3 voxels; along the third axis the scan ends before.
    np.testing.assert_array_equal(cropped.array, array[35:65, 20:60, :])
    np.testing.assert_allclose(cropped.affine[:3, 3], (-7 + 70, 9 + 20, 100))
    place = np.argwhere(cropped.array == 700)[0]
    np.testing.assert_allclose(apply_affine(cropped.affine, place), apply_affine(affine, (50, 40, 20)))
    assert measure(cropped).foreground == ((5, 10, 2), (25, 30, 38))


@pytest.mark.parametrize(
    ("values", "given", "kept"),
    [
        ([0, 255], "float32", "uint8"),
        ([-1, 255], "float64", "int16"),
        ([0, 40000], "float32", "uint16"),
        ([-1, 40000], "float64", "int32"),
        ([0, 2.0**40], "float64", "float32"),
        ([0.5, 1], "float64", "float32"),
        ([0, 1], "float16", "uint8"),
        ([-1024, 3071], "int32", "int16"),
        ([0, 100], "int64", "uint8"),
        ([-(2**40), 1], "int64", "int64"),
        ([-3, 100], "int8", "int8"),
        ([0, 300], "uint16", "uint16"),
        ([0, 300], ">i2", "int16"),
    ],
)
def test_voxels_take_the_smallest_lossless_type(values, given, kept):
    array = np.array(values, given).reshape(1, 1, 2)
    narrow = narrowed(array)
    assert narrow.dtype.name == kept
    assert narrow.dtype.isnative
    np.testing.assert_array_equal(narrow.astype(np.float32), array.astype(np.float32))
