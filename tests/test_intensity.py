"""Statistics of scans against NumPy and SimpleITK, intensity scaling against MONAI."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import NormalizeIntensity, ScaleIntensityRange, ScaleIntensityRangePercentiles

from dae3d.errors import ScanError
from dae3d.scans.readers import Volume
from dae3d.store.intensity import PercentileRange, Window, ZScore, denormalise, normalise, scaling
from dae3d.store.statistics import PERCENTILES, measure, refuse_non_finite


def volume(array: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> Volume:
    return Volume(array, np.eye(4), slope, intercept)


def brain(seed: int = 0) -> np.ndarray:
    """An MR-like float32 scan: zero background, two tissues with noise."""
    random = np.random.default_rng(seed)
    scan = np.zeros((40, 36, 30), np.float32)
    scan[8:32, 6:30, 5:25] = 700
    scan[14:26, 12:24, 10:20] = 1100
    return np.where(scan > 0, scan + random.normal(0, 60, scan.shape), 0).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    dtype=st.sampled_from(["u1", "i2", "u2", "i4", "f4"]),
    scale=st.sampled_from([(1.0, 0.0), (1.0, -1024.0), (0.5, 0.25), (-2.0, 7.0)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_statistics_are_those_of_the_scaled_intensities(shape, dtype, scale, seed):
    array = np.random.default_rng(seed).integers(0, 9, shape).astype(dtype) * np.array(20, dtype)
    slope, intercept = scale
    intensities = array.astype(np.float64) * slope + intercept
    if array.min() == array.max():
        with pytest.raises(ScanError, match="constant"):
            measure(volume(array, slope, intercept))
        return
    found = measure(volume(array, slope, intercept))
    non_zero = intensities[intensities != 0]
    assert (found.minimum, found.maximum) == (intensities.min(), intensities.max())
    assert found.mean == pytest.approx(non_zero.mean(), abs=1e-9)
    assert found.std == pytest.approx(non_zero.std(), abs=1e-9)
    np.testing.assert_allclose(found.percentiles, np.percentile(intensities, PERCENTILES), atol=1e-4)
    assert found.percentile(25.0) == found.percentiles[3]


def test_a_large_offset_does_not_spoil_the_deviation():
    array = np.random.default_rng(0).normal(1e5, 0.5, (50, 50, 50)).astype(np.float32)
    assert measure(volume(array)).std == pytest.approx(array.astype(np.float64).std(), rel=1e-6)


@pytest.mark.parametrize("scale", [(1.0, 0.0), (1.0, -1024.0), (-1.0, 0.0)])
def test_foreground_box_ignores_specks(scale):
    slope, intercept = scale
    array = np.random.default_rng(1).normal(24, 10, (60, 70, 50))
    array[10:45, 20:60, 5:40] += 1000
    array[0, 0, 0] = array[59, 69, 49] = array[59, 0, 0] = 1000
    array[30, 30, 20] = 30000  # metal
    raw = np.rint((array - intercept) / slope).astype(np.int16)
    # Of 35 planes, each holds 3 % of the foreground, so none is taken for specks.
    assert measure(volume(raw, slope, intercept)).foreground == ((10, 20, 5), (45, 60, 40))


def test_foreground_is_what_simpleitks_otsu_finds():
    scan = brain()
    image = sitk.OtsuThreshold(sitk.GetImageFromArray(scan), 0, 1, 256)
    inside = np.argwhere(sitk.GetArrayFromImage(image))
    first, last = measure(volume(scan)).foreground
    np.testing.assert_array_equal(first, inside.min(axis=0))
    np.testing.assert_array_equal(last, inside.max(axis=0) + 1)


def test_nearly_empty_scan_has_a_foreground():
    scan = np.zeros((30, 30, 30), np.uint8)
    scan[4:7, 5:8, 6:9] = 1
    assert measure(volume(scan)).foreground == ((4, 5, 6), (7, 8, 9))


def test_non_finite_voxels_are_counted():
    scan = brain()
    refuse_non_finite(volume(scan))
    scan[0, 0, 0], scan[1, 2, 3], scan[4, 5, 6] = np.nan, np.inf, -np.inf
    with pytest.raises(ScanError, match="not finite: 3 of 43200 voxels"):
        refuse_non_finite(volume(scan))


@pytest.mark.parametrize("modality", ["ct", "ct-phantom", "cbct"])
def test_ct_is_scaled_as_monai_does(modality):
    scan = np.random.default_rng(0).uniform(-3000, 3000, (20, 21, 22)).astype(np.float32)
    expected = np.asarray(ScaleIntensityRange(-1000, 1000, 0, 1, clip=True)(scan.copy()))
    scaled = normalise(scan, modality, measure(volume(scan)))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, expected, atol=1e-7)
    back = denormalise(scaled, modality, measure(volume(scan)))
    np.testing.assert_allclose(back, scan.clip(-1000, 1000), atol=1e-3)


@pytest.mark.parametrize("modality", ["t1", "flair", "adc", "a label of its own"])
def test_mr_is_scaled_as_monai_does(modality):
    scan = brain()
    expected = np.asarray(NormalizeIntensity(nonzero=True)(scan.copy()))
    statistics = measure(volume(scan))
    # Crop by crop, the scan is scaled as a whole.
    scaled = np.concatenate([normalise(half, modality, statistics) for half in np.split(scan, 2)])
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, expected, atol=1e-5)
    assert (scaled[scan == 0] == 0).all()
    np.testing.assert_allclose(denormalise(scaled, modality, statistics), scan, atol=1e-2)


@pytest.mark.parametrize("modality", ["pet", "gm-map", "wm-map"])
def test_maps_are_scaled_as_monai_does(modality):
    scan = np.random.default_rng(0).gamma(2.0, 3.0, (30, 30, 30)).astype(np.float32)
    expected = np.asarray(ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True)(scan.copy()))
    statistics = measure(volume(scan))
    scaled = normalise(scan, modality, statistics)
    np.testing.assert_allclose(scaled, expected, atol=1e-5)
    back = denormalise(scaled, modality, statistics)
    low, high = np.percentile(scan, (0.5, 99.5))
    np.testing.assert_allclose(back, scan.clip(low, high), atol=1e-4)


def test_nearly_empty_map_is_scaled_by_its_extremes():
    scan = np.zeros((30, 30, 30), np.float32)
    scan[0, 0, :2] = 0.5, 1.0
    scaled = normalise(scan, "gm-map", measure(volume(scan)))
    np.testing.assert_array_equal(scaled, scan)


def test_a_mask_given_as_mr_stays_finite():
    scan = np.zeros((8, 8, 8), np.uint8)
    scan[2:4] = 3
    expected = np.asarray(NormalizeIntensity(nonzero=True)(scan.astype(np.float32)))
    np.testing.assert_array_equal(normalise(scan, "t2", measure(volume(scan))), expected)


def test_scaling_leaves_the_crop_as_it_is():
    scan = brain()
    before = scan.copy()
    for modality in ("ct", "t1", "pet"):
        normalise(scan, modality, measure(volume(scan)))
    np.testing.assert_array_equal(scan, before)


def test_rules():
    assert scaling("ct") == Window(-1000, 1000)
    assert scaling("pet") == PercentileRange(0.5, 99.5)
    assert scaling("t1ce") == ZScore()
