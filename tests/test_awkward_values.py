"""Padding outside the field of view, CT that is not in HU, and values at the ends of float32."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dae3d.errors import ScanError
from dae3d.scans.manifest import Scan
from dae3d.scans.readers import Volume, read_volume
from dae3d.store.convert import convert
from dae3d.store.ct_units import refuse_non_hounsfield
from dae3d.store.examine import conform
from dae3d.store.intensity import normalise
from dae3d.store.scan import PARTIAL, SCANS, Preparation
from dae3d.store.statistics import PERCENTILES, Statistics, measure, refuse_non_finite
from scan_files import described, phantom, write_nifti

SHAPE = (40, 40, 20)
INSIDE = np.add.outer(*[np.square(np.arange(40) - 19.5)] * 2)[..., None].repeat(20, 2) < 19.5**2
RULES = ["window:-100:100", "percentiles:1:99", "zscore", "zscore:foreground", "suv:10"]


def volume(array: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> Volume:
    return Volume(array, np.eye(4), slope, intercept)


def refuse(scan: Volume, modality: str) -> None:
    refuse_non_hounsfield(scan, measure(scan, modality), modality)


def mr() -> np.ndarray:
    """Noise around 30 in air, 600 in a body."""
    scan = np.random.default_rng(0).normal(30, 10, SHAPE)
    scan[10:30, 8:32] += 570
    return scan.clip(1).astype(np.int16)


@pytest.mark.parametrize("padding", [-2000, -3024, -32768])
@pytest.mark.parametrize("modality", ["ct", "t1"])
def test_padding_does_not_count(padding: int, modality: str) -> None:
    scan = phantom(SHAPE) if modality == "ct" else mr()
    padded = np.where(INSIDE, scan, np.int16(padding))
    found = measure(volume(padded), modality)
    imaged = padded[INSIDE].astype(np.float64)
    assert (found.minimum, found.maximum) == (padding, imaged.max())
    np.testing.assert_allclose(found.percentiles, np.percentile(imaged, PERCENTILES), atol=1e-4)
    assert found.mean == pytest.approx(imaged.mean())
    assert found.std == pytest.approx(imaged.std())
    assert found.foreground == measure(volume(np.where(INSIDE, scan, imaged.min())), modality).foreground
    for rule in RULES:
        scaled = normalise(padded, modality, found, {modality: rule})
        as_background = np.where(INSIDE, scan, -1024 if modality == "ct" else 0)
        np.testing.assert_array_equal(scaled, normalise(as_background, modality, found, {modality: rule}))


def test_a_scale_factor_may_turn_padding_around() -> None:
    padded = np.where(INSIDE, 2 - mr() // 2, np.int16(16384))
    found = measure(volume(padded, -2.0, 4.0), "t1")
    assert (found.minimum, found.padding) == (-32764, -32764)
    intensities = 4 - 2.0 * padded[INSIDE]
    assert found.mean == pytest.approx(intensities[intensities != 0].mean())


def test_the_noise_of_air_is_no_padding() -> None:
    scan = phantom(SHAPE)
    scan[0, 0, 0] = -1255  # the lowest value of a real chest CT of the shared data
    assert measure(volume(scan), "ct").padding is None


@pytest.mark.parametrize(
    "scan",
    [
        np.random.default_rng(0).normal(0, 500, SHAPE),  # both sides of zero, such as a phase
        np.where(INSIDE, mr() - 2000, -2100),  # near the rest
        np.where(INSIDE, 5, -2000),  # a mask
        mr() - 400,
    ],
)
def test_what_is_no_padding(scan: np.ndarray) -> None:
    assert measure(volume(scan.astype(np.int16)), "t1").padding is None


def test_a_ct_of_padding_alone_is_refused() -> None:
    scan = np.random.default_rng(0).integers(-3024, -2000, SHAPE).astype(np.int16)
    with pytest.raises(ScanError, match="no voxel is above -1500"):
        measure(volume(scan), "ct")


def test_padding_around_one_value_is_refused() -> None:
    with pytest.raises(ScanError, match="constant: every voxel is 40"):
        measure(volume(np.where(INSIDE, 40, -2000)), "ct")


@pytest.mark.parametrize(("modality", "background"), [("ct", -1024), ("t1", 0)])
def test_padding_does_not_bleed_into_what_is_resampled(modality: str, background: int) -> None:
    scan = phantom(SHAPE) if modality == "ct" else mr()
    padded = np.where(INSIDE, scan, np.int16(-32768))
    preparation = Preparation(spacing=(1.7, 1.7, 1.7), crop_foreground=False)
    resampled = conform(volume(padded), preparation, modality)
    filled = conform(volume(np.where(INSIDE, scan, np.int16(background))), preparation, modality)
    found = measure(resampled, modality)
    imaged = resampled.array > found.padding
    np.testing.assert_array_equal(resampled.array[imaged], filled.array[imaged])
    # A voxel is of the field of view where the nearest of the acquired ones is.
    nearest = [np.rint(1.7 * np.arange(n)).astype(int) for n in resampled.array.shape]
    np.testing.assert_array_equal(imaged, INSIDE[np.ix_(*nearest)])
    np.testing.assert_allclose(
        found.percentiles, np.percentile(filled.array[imaged], PERCENTILES), rtol=1e-5, atol=1e-3
    )
    assert found.mean == pytest.approx(filled.array[imaged].mean(dtype=np.float64), rel=1e-5)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (-1.0, 100.0)])
def test_strays_do_not_hide_padding(slope: float, intercept: float) -> None:
    wanted = np.where(INSIDE, mr(), np.int16(-3024))
    wanted[20, 20, :3] = -1600, -2900, -1700  # 3 of 23,880
    found = measure(volume(((wanted - intercept) / slope).astype(np.int16), slope, intercept), "t1")
    assert found.padding == -3024
    imaged = wanted[wanted > -3024].astype(np.float64)
    assert found.mean == pytest.approx(imaged.mean())
    wanted[20, :, :] = -1600  # 3 % are not strays
    assert measure(volume(wanted), "t1").padding is None


def test_a_few_voxels_of_padding_that_cropping_left_do_not_count() -> None:
    scan = mr()
    expected = measure(volume(np.where(np.arange(20) < 19, scan, np.int16(0))), "t1")
    scan[..., 19] = 0
    scan[0, :3, 0] = -32768
    found = measure(volume(scan), "t1")
    assert found.padding == -32768
    # Three of 30,000 voxels of noise are missing; as intensities they would make the deviation 280.
    assert found.mean == pytest.approx(expected.mean, rel=1e-3)
    assert found.std == pytest.approx(expected.std, rel=1e-3)


@pytest.mark.parametrize("padding", [None, -2000, -32768])
def test_measuring_holds_one_more_copy_at_most(padding: int | None) -> None:
    scan = np.random.default_rng(0).integers(-900, 1000, (150, 100, 100)).astype(np.int16)
    if padding is not None:
        scan[:40] = padding
    modality = "t1" if padding == -32768 else "ct"
    tracemalloc.start()
    try:
        found = measure(volume(scan), modality)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found.padding is None) == (padding is None)
    assert peak < 1.25 * scan.nbytes  # a quarter for planes and histograms


@pytest.mark.parametrize("modality", ["ct", "cbct", "ct-phantom"])
def test_a_ct_without_its_rescale_intercept_is_refused(modality: str) -> None:
    raw = (phantom(SHAPE).astype(np.int32) + 1024).astype(np.uint16)
    with pytest.raises(ScanError, match=r"is the rescale intercept, often -1024, missing.*ct-raw"):
        refuse(volume(raw), modality)
    padded = np.where(INSIDE, raw.astype(np.int16), np.int16(-2000))
    with pytest.raises(ScanError, match="rescale intercept"):
        refuse(volume(padded), modality)
    refuse(volume(raw, 1.0, -1024.0), modality)
    for other in ("ct-raw", "t1"):
        refuse(volume(raw), other)


HEAD = np.linalg.norm(np.stack(np.indices((48, 48, 48))) - 23.5, axis=0) < 17


def tissue(mean: float, deviation: float) -> np.ndarray:
    return np.random.default_rng(0).normal(mean, deviation, HEAD.shape)


@pytest.mark.parametrize(
    ("scan", "why"),
    [
        # Displayed from -160 to 240 HU, then 0 to 1, 0 to 255, -1 to 1.
        (
            (np.where(HEAD, tissue(40, 20), -1000).clip(-160, 240) + 160) / 400,
            "normalised, or is a label map",
        ),
        (
            (np.where(HEAD, tissue(40, 90), -1000).clip(-160, 240) + 160) / 400 * 255,
            "grey values of a picture",
        ),
        (np.where(HEAD, tissue(40, 20), -1000).clip(-1000, 1000) / 1000, "normalised"),
        (np.where(HEAD, 3, 0), "a label map"),
        # Without -1024: a small head in much air, a head in air that was set to 0, padding around it.
        (
            np.where(HEAD & (np.indices(HEAD.shape)[0] < 12), tissue(1064, 20), tissue(24, 8).clip(0)),
            "intercept",
        ),
        (np.where(HEAD, tissue(1064, 20), 0), "intercept"),
        (np.where(np.roll(HEAD, 9, 0) | HEAD, np.where(HEAD, tissue(1064, 20), 24), -2000), "intercept"),
    ],
)
def test_what_cannot_be_in_hounsfield_units(scan: np.ndarray, why: str) -> None:
    whole = scan if scan.max() < 10 else scan.astype(np.int16)
    with pytest.raises(ScanError, match=f"not in HU: .*{why}.*ct-raw"):
        refuse(volume(whole.astype(np.float32)), "ct")


@pytest.mark.parametrize(
    "scan",
    [
        np.where(HEAD, tissue(40, 10).clip(0, 80), 0),  # a brain without its skull
        np.where(HEAD, tissue(35, 8), 0).clip(0, 100),  # brain window
        tissue(110, 15),  # cut out of a liver with contrast
        np.where(HEAD, tissue(60, 20), -160).clip(-160, 240),
        np.where(HEAD, tissue(500, 150).clip(200), 0),  # bone
        np.where(HEAD, tissue(-850, 60), 40),
    ],
)
def test_parts_of_a_ct_are_accepted(scan: np.ndarray) -> None:
    refuse(volume(scan.astype(np.int16)), "ct")


def test_real_bone_is_accepted_and_real_ct_without_its_intercept_is_not(shared_data) -> None:
    for name in ("aorta_report", "pulmonary_report"):
        path = shared_data / "labelled" / "totalsegmentator" / name / "ct_cropped.nii.gz"
        scan = read_volume(path).intensities()[::2, ::2, ::2]
        for threshold in (200, 400):
            bone = np.where(scan > threshold, scan, 0)
            refuse(volume(bone), "ct")
        with pytest.raises(ScanError, match="intercept"):
            refuse(volume(scan.clip(-1024) + 1024), "ct")


IN_VIEW = np.linalg.norm(np.indices(HEAD.shape)[:2] - 23.5, axis=0) < 23.5
SKULL = HEAD & ~(np.linalg.norm(np.stack(np.indices(HEAD.shape)) - 23.5, axis=0) < 16)
HU = np.where(SKULL, tissue(700, 100), np.where(HEAD, tissue(40, 20), tissue(-995, 12))).astype(np.int16)


@pytest.mark.parametrize(
    ("scan", "why"),
    [
        (HU + 1024, "intercept, often -1024, missing"),  # noise of air reaches below 0
        (np.where(IN_VIEW, HU + 1024, -1), "intercept, often -1024, missing"),
        (np.where(IN_VIEW, HU + 1000, -1000), "intercept, often -1024, missing"),
        (np.where(IN_VIEW, HU + 1024, -1024), "intercept, often -1024, missing"),
        (np.where(IN_VIEW, HU.clip(-1024) + 1024, -2000), "intercept, often -1024, missing"),
        (np.where(HEAD, HU + 1024, -1024), "intercept, often -1024, missing"),
        (np.where(IN_VIEW, HU + 1024, np.where(HU > -990, -1, -1024)), "intercept, often -1024, missing"),
        (HU - 1024, "intercept, often -1024, applied twice"),
        (HU.clip(-1000) - 1024, "intercept, often -1024, applied twice"),
        (np.where(IN_VIEW, HU - 1024, -3024), "intercept, often -1024, applied twice"),
        (HU.astype(np.int32) * 10, "far below air"),
        (HU.astype(np.uint16).astype(np.int32), "count down from 65536"),
    ],
)
def test_an_intercept_lost_or_applied_twice_beside_a_filling(scan: np.ndarray, why: str) -> None:
    refuse(volume(HU), "ct")
    with pytest.raises(ScanError, match=f"not in HU: .*{why}.*ct-raw"):
        refuse(volume(scan), "ct")
    refuse(volume(scan), "ct-raw")


def test_a_phantom_of_dense_inserts_in_air_is_in_hu() -> None:
    phantom = np.full((32, 32, 32), -1000, np.int16)
    phantom[4:12, 10:20, 10:20] = phantom[20:28, 10:20, 10:20] = 900
    refuse(volume(phantom), "ct")


@pytest.mark.parametrize(
    "scan",
    [
        np.where(IN_VIEW, HU, -1024),
        np.where(IN_VIEW, HU, -3024),
        np.where(HEAD, HU, -1024),  # in air that was taken away
        np.where(SKULL, HU, -1024),
        HU[12:36, 12:36, 12:36],  # no air in it
        np.where(HEAD, tissue(-850, 60), -2000),  # a lung
        np.where(HEAD, tissue(-850, 60), np.random.default_rng(0).integers(-2600, -1600, HEAD.shape)),
    ],
)
def test_fillings_around_what_is_in_hounsfield_units(scan: np.ndarray) -> None:
    refuse(volume(scan.astype(np.int16)), "ct")


@pytest.mark.parametrize(
    "name",
    [
        "labelled/totalsegmentator/aorta_report/ct_cropped.nii.gz",
        "labelled/totalsegmentator/example_ct.nii.gz",
        "pretrain/elastix/3DCT_lung.mha",
        "pretrain/tcia_ct/lidc_0314.nii.gz",
    ],
)
def test_real_ct_with_a_filling_and_what_is_cut_out_of_it(shared_data, name: str) -> None:
    scan = read_volume(shared_data / name).intensities()[::3, ::3, ::3]
    first, second = (np.abs(np.linspace(-1, 1, side)) for side in scan.shape[:2])
    in_view = (np.hypot(first[:, None], second) < 1)[..., None]
    for filling in (-1, -1024, -2000):
        with pytest.raises(ScanError, match="intercept, often -1024, missing"):
            refuse(volume(np.where(in_view, scan + 1024, filling)), "ct")
        refuse(volume(np.where(in_view, scan, filling)), "ct")
    with pytest.raises(ScanError, match="intercept, often -1024, applied twice"):
        refuse(volume(scan - 1024), "ct")
    with pytest.raises(ScanError, match="far below air"):
        refuse(volume(scan * 10), "ct")
    refuse(volume(scan), "ct")
    refuse(volume(np.where(scan > 300, scan, -1024)), "ct")
    for filling in (0, -2000, -3024):
        lung = np.where(scan < -500, scan, filling).astype(np.float32)
        refuse(volume(lung), "ct")
        # As linear interpolation leaves it.
        refuse(volume((lung[1:] + lung[:-1]) / 2), "ct")


def test_real_grey_values_and_real_hu(shared_data) -> None:
    phantom_head = read_volume(shared_data / "awkward" / "oblique_uint8_ct_pitch_phantom.nii.gz")
    with pytest.raises(ScanError, match="grey values"):
        refuse(phantom_head, "ct-phantom")
    for name in (
        "awkward/sheared_affine_ct_shear.nii.gz",
        "pretrain/elastix/3DCT_lung.mha",
        "labelled/totalsegmentator/pulmonary_report/ct_cropped.nii.gz",
    ):
        refuse(read_volume(shared_data / name), "ct")


def prepared(scan: Scan, store) -> Statistics | str:
    (store / SCANS).mkdir(parents=True, exist_ok=True)
    (store / PARTIAL).mkdir(exist_ok=True)
    outcome = convert(scan, Preparation(spacing=None, crop_foreground=False), store)
    return outcome.stored.statistics if outcome.stored else outcome.reason


def test_preparing_refuses_what_cannot_be_hu_and_takes_it_under_another_label(tmp_path) -> None:
    raw = (phantom(SHAPE).astype(np.int32) + 1024).astype(np.uint16)
    path = write_nifti(tmp_path / "scan.nii", raw)
    assert str(prepared(described(path, "ct"), tmp_path / "store")).startswith("not in HU: ")
    assert prepared(described(path, "ct-raw"), tmp_path / "store").padding is None


def test_another_label_measures_padding_anew(tmp_path) -> None:
    # In HU all below air is padding; elsewhere a filling is one value.
    noisy = np.where(INSIDE, phantom(SHAPE), np.random.default_rng(0).integers(-2600, -1600, SHAPE))
    path = write_nifti(tmp_path / "scan.nii", noisy.astype(np.int16))
    assert prepared(described(path, "t1"), tmp_path / "store").padding is None
    assert prepared(described(path, "ct"), tmp_path / "store").padding == -1500
    assert prepared(described(path, "cbct"), tmp_path / "store").padding == -1500


EXTREMES = [0.0, 1e-45, 1e-38, 1e-30, 1.0, 1000.0, -1000.0, -2000.0, 1e30, -1e30, 3e38, np.inf, np.nan]
FLOATS = st.one_of(st.floats(width=32), st.sampled_from(np.float32(EXTREMES).tolist()))
SCANS_OF_ANY_KIND = st.one_of(
    arrays(np.float32, (2, 3, 4), elements=FLOATS, fill=st.sampled_from([0.0, -2000.0, 1.0])),
    arrays(np.float64, (2, 2, 3), elements=st.floats(width=64)),
    arrays(np.int16, (3, 2, 3), elements=st.integers(-32768, 32767), fill=st.just(0)),
    arrays(np.uint32, (2, 3, 2), elements=st.integers(0, 2**32 - 1)),
    arrays(np.uint8, (3, 3, 2), elements=st.integers(0, 3)),
)


@settings(max_examples=400)
@given(
    array=SCANS_OF_ANY_KIND,
    scale=st.one_of(
        st.just((1.0, 0.0)),
        st.tuples(st.floats(-1e38, 1e38).filter(bool), st.floats(-1e38, 1e38)),
        st.sampled_from([(1e-45, 0.0), (1e-300, 0.0), (-1.0, 1e30), (0.1, 1e10)]),
    ),
    modality=st.sampled_from(["ct", "t1"]),
    rule=st.sampled_from([None, "window:-1e30:1e30", "window:0:1e-30", *RULES]),
)
@pytest.mark.filterwarnings("error")
def test_no_accepted_scan_becomes_non_finite(array, scale, modality, rule) -> None:
    """Law: what is not refused is finite for the network, whatever its type, scale factors and rule."""
    rules = {modality: rule} if rule else None
    scan = volume(array, *scale)
    try:
        refuse_non_finite(scan)
        statistics = measure(scan, modality)
    except ScanError:
        return
    scaled = normalise(scan.intensities(), modality, statistics, rules)
    assert scaled.dtype == np.float32
    assert np.isfinite(scaled).all()
