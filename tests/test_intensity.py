"""Statistics of scans against NumPy and SimpleITK, intensity scaling against MONAI."""

import re

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import NormalizeIntensity, ScaleIntensityRange, ScaleIntensityRangePercentiles

from dae3d.errors import Dae3dError, ScanError
from dae3d.scans.readers import Volume
from dae3d.store.intensity import (
    IntensityWindow,
    PercentileRange,
    UptakeRatio,
    ZScore,
    denormalise,
    normalise,
    parse_scaling,
    scaling,
)
from dae3d.store.statistics import PERCENTILES, measure, refuse_non_finite
from dae3d.training.batch import pack
from dae3d.training.data import CropLoaders, training_data
from dae3d.training.pretrain_settings import PretrainSettings


def volume(array: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> Volume:
    return Volume(array, np.eye(4), slope, intercept)


def brain(seed: int = 0) -> np.ndarray:
    """An MR-like float32 scan: zero background, two tissues with noise."""
    random = np.random.default_rng(seed)
    scan = np.zeros((40, 36, 30), np.float32)
    scan[8:32, 6:30, 5:25] = 700
    scan[14:26, 12:24, 10:20] = 1100
    return np.where(scan > 0, scan + random.normal(0, 60, scan.shape), 0).astype(np.float32)


@settings(max_examples=40)
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


@pytest.mark.parametrize("modality", ["ct-raw", "gm-map", "wm-map"])
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
    assert scaling("ct") == IntensityWindow(-1000, 1000)
    assert scaling("gm-map") == PercentileRange(0.5, 99.5)
    assert scaling("pet") == UptakeRatio(10)
    assert scaling("t1ce") == ZScore()


def test_foreground_deviation_leaves_the_noise_of_air_out():
    random = np.random.default_rng(0)
    scan = random.normal(40, 10, (60, 60, 60))
    tissue = np.zeros(scan.shape, bool)
    tissue[15:45, 10:50, 20:50] = True
    scan[tissue] = random.normal(900, 80, np.count_nonzero(tissue))
    scan = scan.clip(1).astype(np.float32)
    found = measure(volume(scan))
    # The bins are 4 wide, and what is above the 99.5th percentile is clipped.
    assert found.foreground_mean == pytest.approx(900, abs=4)
    assert found.foreground_std == pytest.approx(80, abs=4)
    scaled = normalise(scan, "t1", found, {"t1": "zscore:foreground"})
    np.testing.assert_allclose(scaled, (scan - found.foreground_mean) / found.foreground_std, atol=1e-4)
    assert abs(normalise(scan, "t1", found)[tissue].mean()) > 1  # over all non-zero voxels, air is in it
    back = denormalise(scaled, "t1", found, {"t1": "zscore:foreground"})
    np.testing.assert_allclose(back, scan, atol=1e-2)


def emission() -> tuple[np.ndarray, np.ndarray]:
    """A PET-like scan in Bq/ml, and its body: noise in air, soft tissue, a liver, a hot bladder."""
    random = np.random.default_rng(0)
    scan = np.abs(random.normal(0, 30, (60, 50, 80)))
    body = np.zeros(scan.shape, bool)
    body[15:45, 15:35] = True
    scan[body] = 4000
    scan[20:35, 18:30, 40:50] = 9000
    scan[28:32, 20:24, 8:12] = 90000
    return scan.astype(np.float32), body


@pytest.mark.parametrize("modality", ["pet", "spect"])
def test_emission_is_scaled_in_multiples_of_the_body(modality):
    scan, body = emission()
    found = measure(volume(scan))
    # The bladder, a thousandth of the body, counts no more than the 99.5th percentile.
    assert found.body_mean == pytest.approx(scan[body].clip(0, np.percentile(scan, 99.5)).mean(), rel=0.01)
    scaled = normalise(scan, modality, found)
    np.testing.assert_allclose(scaled, (scan / found.body_mean / 10).clip(0, 1), atol=1e-6)
    # Another dose or another unit changes nothing.
    tenfold = normalise(scan * 10, modality, measure(volume(scan * 10)))
    np.testing.assert_allclose(scaled, tenfold, atol=1e-5)
    back = denormalise(scaled, modality, found)
    np.testing.assert_allclose(back, scan.clip(0, 10 * found.body_mean), rtol=1e-4, atol=1)


def test_a_rule_gives_the_highest_uptake():
    scan, _ = emission()
    found = measure(volume(scan))
    scaled = normalise(scan, "pet", found, {"pet": "suv:4"})
    np.testing.assert_allclose(scaled, (scan / found.body_mean / 4).clip(0, 1), atol=1e-6)


def test_differences_of_uptake_stay_finite():
    scan = -emission()[0] - 5
    found = measure(volume(scan))
    assert found.body_mean < 0
    assert not normalise(scan, "pet", found).any()


@pytest.mark.parametrize(
    "rule", ["suv", "suv:0", "suv:-1", "suv:inf", "suv:a", "zscore:body", "window:0:1e31"]
)
def test_what_is_no_rule(rule):
    with pytest.raises(ValueError, match=re.escape(rule)):
        parse_scaling(rule)


def test_nearly_full_scan_has_a_foreground():
    scan = np.full((30, 30, 30), 5, np.uint8)
    scan[0, 0, :3] = 1
    assert measure(volume(scan)).foreground == ((0, 0, 0), (30, 30, 30))


def test_pretraining_scales_by_its_own_rules(tiny_store):
    settings = PretrainSettings(
        data=tiny_store,
        out=tiny_store.parent / "run",
        roi=32,
        intensity={"ct": "window:-200:300", "t1": "zscore:foreground"},
    )
    loaders = CropLoaders(training_data(settings, 1), settings)
    data = loaders.data
    samples = [pack([crop]).unpack((32, 32, 32)) for crop in loaders.val_dataloader().dataset]
    for crop, sample in zip(data.validation, samples, strict=True):
        scan = data.store.scans[crop.scan]
        size = tuple(min(32, side) for side in scan.shape)
        acquired = data.store.read(crop.scan, crop.start, size)
        if scan.modality == "ct":
            expected = ((acquired + 200) / 500).clip(0, 1)
        else:
            expected = (acquired - scan.statistics.foreground_mean) / scan.statistics.foreground_std
        found = sample["image"].numpy()[0, 0][tuple(slice(side) for side in size)]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_rule_for_a_modality_that_the_store_lacks_is_refused(tiny_store):
    settings = PretrainSettings(data=tiny_store, out=tiny_store.parent / "run", intensity={"t2": "zscore"})
    with pytest.raises(Dae3dError, match=r"intensity: .* has no t2; it has ct, t1"):
        training_data(settings, 1)
