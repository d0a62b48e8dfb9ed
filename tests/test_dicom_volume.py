"""DICOM series as volumes: against dcm2niix and ITK on real series, and against arithmetic on made ones."""

import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from scipy.ndimage import map_coordinates

from dae3d.errors import ScanError
from dae3d.scans.dicom import rescale
from dae3d.scans.dicom.straighten import PADDING
from dae3d.scans.dicom.volume import read_series
from dae3d.scans.manifest import Scan
from dae3d.scans.read import read_scan
from dicom_files import AXIAL, edit, evenly, pixels_of, tilted, write_enhanced, write_series
from second_opinion import by_dcm2niix, canonical


def unpack(archive: Path, folder: Path, count: int | None = None) -> list[Path]:
    """The first `count` files, by name, of an archive of DICOM files."""
    with tarfile.open(archive) as tar:
        members = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name)[:count]
        tar.extractall(folder, members, filter="data")
    return [folder / member.name for member in members]


REAL = {
    "dicom/mr_t1_datalad": 30,
    "awkward/dicom/generic_compressed_j2k": None,
    "awkward/dicom/generic_compressed_jpeg": None,
    "awkward/dicom/generic_compressed_jpegls": None,
    "awkward/dicom/generic_compressed_rle": None,
    "awkward/dicom/siemens_multiframe_anatomical": None,
    "awkward/dicom/philips_enhanced_anatomical": None,
}


@pytest.mark.parametrize(("name", "count"), REAL.items())
def test_real_series_agree_with_dcm2niix(shared_data, tmp_path, name, count):
    files = unpack(shared_data / f"{name}.tar.gz", tmp_path / "series", count)
    volume = read_series(files)
    ours, theirs = canonical(volume), nibabel.as_closest_canonical(by_dcm2niix(files, tmp_path / "out"))
    assert volume.array.dtype.kind in "iu"
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)
    # dcm2niix keeps the slope in single precision.
    np.testing.assert_allclose(ours.get_fdata(), theirs.get_fdata(), rtol=1e-6)


def test_a_real_series_agrees_with_itk(shared_data, tmp_path):
    files = unpack(shared_data / "dicom/mr_t1_datalad.tar.gz", tmp_path, 20)
    volume = read_series(files[::-1])
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(files[0].parent))
    image = sitk.ReadImage(names)
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(image).T)
    corner = np.array(volume.array.shape) - 1
    at_corner = image.TransformIndexToPhysicalPoint([int(i) for i in corner])
    world = nibabel.affines.apply_affine(volume.affine, [[0, 0, 0], corner])
    np.testing.assert_allclose(world * [-1, -1, 1], [image.GetOrigin(), at_corner], atol=1e-3)


def test_a_real_tilted_and_uneven_ct_agrees_with_dcm2niix(shared_data, tmp_path):
    files = unpack(shared_data / "dicom/ct_head_ge_variable_tilt.tar.gz", tmp_path / "series")
    volume = read_series(files)
    theirs = by_dcm2niix(files, tmp_path / "out", "_Tilt_Eq_1")
    assert volume.array.shape == (512, 611, 28)
    assert np.cross(*volume.affine[:3, :2].T) @ volume.affine[:3, 2] == pytest.approx(
        np.prod(volume.spacing)  # a right angle between all axes
    )
    # The first slice and those of the upper half lie where both have one: the head in them.
    heads = np.stack(np.meshgrid(range(150, 360, 5), range(150, 460, 5), (0, 12, 24), indexing="ij"), -1)
    heads = heads.reshape(-1, 3)
    world = nibabel.affines.apply_affine(volume.affine, heads)
    there = nibabel.affines.apply_affine(np.linalg.inv(theirs.affine), world)
    expected = map_coordinates(theirs.get_fdata(), there.T, order=1, mode="nearest")
    found = volume.intensities()[tuple(heads.T)]
    inside = (found > -1000) & (expected > -1000)
    assert inside.mean() > 0.8
    assert np.median(np.abs(found - expected)[inside]) < 1
    assert np.corrcoef(found[inside], expected[inside])[0, 1] > 0.99


def test_least_shown_white_agrees_with_dcm2niix(tmp_path):
    files = write_series(tmp_path / "series", evenly(4), "MR", PhotometricInterpretation="MONOCHROME1")
    theirs = nibabel.as_closest_canonical(by_dcm2niix(files, tmp_path / "out"))
    assert np.array_equal(canonical(read_series(files)).get_fdata(), theirs.get_fdata())


def world_value(lps: np.ndarray) -> np.ndarray:
    """HU that grow evenly with the place, so that linear interpolation anywhere is exact."""
    return 1.5 * lps[..., 0] - 2 * lps[..., 1] + 3 * lps[..., 2]


def write_ramp(
    folder: Path, positions: list[list[float]], orientation: list[float], side: int = 40
) -> list[Path]:
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    y, x = np.mgrid[:side, :side]

    def pixels(number: int) -> np.ndarray:
        world = np.array(positions[number]) + x[..., None] * row + y[..., None] * column
        return np.rint(world_value(world) + 1024).astype(np.uint16)

    return write_series(
        folder,
        positions,
        each=lambda number: {"SliceThickness": 2.0 if positions[number][2] <= 8 else 4.0},
        pixels=pixels,
        ImageOrientationPatient=orientation,
        PixelSpacing=[1.0, 1.0],
        Rows=side,
        Columns=side,
    )


EVEN = [2.0 * k for k in range(5)]
UNEVEN = [0.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 20.0, 24.0]


@pytest.mark.parametrize("degrees", [0.0, 15.0, -15.0])
@pytest.mark.parametrize("heights", [EVEN, UNEVEN])
def test_every_voxel_is_at_its_place(tmp_path, degrees, heights):
    files = write_ramp(tmp_path, [[-20.0, -20.0, z] for z in heights], tilted(degrees))
    volume = read_series(files)
    values = volume.intensities()
    places = nibabel.affines.apply_affine(volume.affine, np.stack(np.indices(values.shape), -1))
    imaged = values != PADDING
    # Half a HU is rounded away when written and again when read; slices a tenth off are taken as they are.
    slack = 1.1 + (0 if heights is EVEN else 0.1 * 4 * 3)
    assert np.abs(values - world_value(places * [-1, -1, 1]))[imaged].max() < slack
    # All that was imaged, 40 x 40 voxels a slice, is there but for edges that only one of two slices has.
    assert (imaged.sum((0, 1)) >= 40 * 38).all()
    normal = np.cross(volume.affine[:3, 0], volume.affine[:3, 1])
    np.testing.assert_allclose(np.cross(normal, volume.affine[:3, 2]), 0, atol=1e-6)
    extent = (heights[-1] - heights[0]) * np.cos(np.radians(degrees))
    assert volume.spacing[2] * (len(heights) - 1) == pytest.approx(extent)


def test_slices_aside_of_each_other_in_mr(tmp_path):
    """No gantry is tilted in MR, yet a stack can be slanted; what was not imaged is 0."""
    positions = [[-20.0, -30.0 + 0.8 * k, 2.5 * k] for k in range(4)]  # a row further each
    volume = read_series(write_series(tmp_path, positions, "MR"))
    assert volume.array.shape == (10, 15, 4)
    assert volume.array.dtype == np.float32
    for k in range(4):
        assert np.array_equal(volume.array[:, k : k + 12, k], pixels_of(k).T)
        assert not np.delete(volume.array[:, :, k], np.s_[k : k + 12], axis=1).any()


def test_corners_outside_the_field_of_view_do_not_bleed_into_the_image(tmp_path):
    def pixels(number: int) -> np.ndarray:
        plane = np.full((12, 10), 40, np.int16)
        plane[:4] = -3024
        return plane

    rescale = {"RescaleSlope": 1, "RescaleIntercept": 0, "PixelRepresentation": 1}
    files = write_series(tmp_path, evenly(6), pixels=pixels, ImageOrientationPatient=tilted(10), **rescale)
    assert set(np.unique(read_series(files).array)) == {int(PADDING), 40}


def test_the_noise_of_air_is_imaged(tmp_path):
    """Air is -1000 HU with noise; it becomes no hole where a tilted stack is set upright."""

    def pixels(number: int) -> np.ndarray:
        noise = np.random.default_rng(number).normal(-1000, 30, (24, 24))
        return np.rint(noise).astype(np.int16)

    positions = [[-20.0, -30.0 + 0.3 * k, 2.5 * k] for k in range(6)]  # a table that sinks
    signed = {"PixelRepresentation": 1, "RescaleIntercept": 0, "Rows": 24, "Columns": 24}
    array = read_series(write_series(tmp_path, positions, pixels=pixels, **signed)).array
    covered = array[:, 2:-2]  # 1.5 mm, two rows of 0.8 mm, are added
    assert array.shape == (24, 26, 6)
    assert covered.min() > -1200
    assert covered.mean() == pytest.approx(-1000, abs=2)


@given(order=st.permutations(range(6)))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_files_does_not_matter(tmp_path, order):
    files = sorted(tmp_path.glob("*.dcm")) or write_series(tmp_path, evenly(6))
    volume = read_series([files[i] for i in order])
    for k in range(6):
        assert np.array_equal(volume.array[:, :, k], pixels_of(k).T)
    assert (volume.slope, volume.intercept) == (1.0, -1024.0)
    # First voxel at LPS (-20, -30, -100), rows 0.8 mm and columns 0.5 mm apart.
    expected = [[-0.5, 0, 0, 20], [0, -0.8, 0, 30], [0, 0, 2.5, -100], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected)


def test_a_common_slope_leaves_stored_values(tmp_path):
    def pixels(number: int) -> np.ndarray:
        return pixels_of(number).astype(np.int16) - 1000

    volume = read_series(write_series(tmp_path, evenly(3), "PT", pixels=pixels, RescaleSlope=0.37))
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array[:, :, 1], pixels(1).T)
    assert (volume.slope, volume.intercept) == (0.37, 0.0)


def test_slices_of_different_slopes_become_intensities(tmp_path):
    slopes = [0.5, 1.25, 3.0]
    volume = read_series(
        write_series(tmp_path, evenly(3), "PT", each=lambda number: {"RescaleSlope": slopes[number]})
    )
    assert volume.array.dtype == np.float32
    for k, slope in enumerate(slopes):
        np.testing.assert_allclose(volume.array[:, :, k], pixels_of(k).T * slope, rtol=1e-6)


@pytest.mark.parametrize("slopes", [[2.5, 2.5, 2.5], [1.0, 2.0, 3.0], [2.0, 0.5, 1.0]])
def test_frames_of_an_enhanced_file_are_rescaled_one_by_one(tmp_path, slopes):
    path = write_enhanced(tmp_path / "enhanced.dcm", evenly(3))
    header = pydicom.dcmread(path)
    for frame, slope in zip(header.PerFrameFunctionalGroupsSequence, slopes, strict=True):
        rescale = Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slope, 10, "US"
        frame.PixelValueTransformationSequence = Items([rescale])
    header.save_as(path)
    values = read_series([path]).intensities()
    for k, slope in enumerate(slopes):
        np.testing.assert_allclose(values[:, :, k], pixels_of(k).T * slope + 10, rtol=1e-6)


def test_frames_stand_by_their_positions_not_by_their_numbers(tmp_path):
    path = write_enhanced(tmp_path / "enhanced.dcm", evenly(3)[::-1], "CT", AXIAL, RescaleType="HU")
    volume = read_series([path])
    assert np.array_equal(volume.array[:, :, 0], pixels_of(2).T)
    np.testing.assert_allclose(volume.affine[:3, 3], [20, 30, -100])


def test_overlays_in_unused_bits_are_no_part_of_the_image(tmp_path):
    files = write_series(tmp_path, evenly(2), pixels=lambda number: pixels_of(number) | 0x4000)
    for path in files:
        edit(path, BitsStored=12, HighBit=11)
    assert np.array_equal(read_series(files).array[:, :, 0], pixels_of(0).T)


def test_signed_values_of_twelve_bits(tmp_path):
    def pixels(number: int) -> np.ndarray:
        return (pixels_of(number).astype(np.int16) - 1500) & 0x0FFF  # no sign in the bits above

    files = write_series(tmp_path, evenly(2), pixels=pixels, PixelRepresentation=1, RescaleIntercept=0)
    for path in files:
        edit(path, BitsStored=12, HighBit=11)
    assert np.array_equal(read_series(files).array[:, :, 1], pixels_of(1).T.astype(int) - 1500)


def test_decoders_that_disagree(tmp_path, monkeypatch):
    files = write_series(tmp_path, evenly(2))
    monkeypatch.setattr(rescale, "pixel_array", lambda *a, **k: pixels_of(7))
    with pytest.raises(ScanError, match="two decoders give different pixels"):
        read_series(files)


def test_real_series_that_cannot_be_read(shared_data, tmp_path):
    awkward = shared_data / "awkward/dicom"
    for name, reason in [
        ("generic_rgb", "RGB or vector"),
        ("failing_sliceorientation", "mixed orientations"),
        ("failing_sliceincrement", "missing slices"),
    ]:
        with pytest.raises(ScanError, match=reason):
            read_series(unpack(awkward / f"{name}.tar.gz", tmp_path / name))


def test_pixels_that_cannot_be_decoded(shared_data, tmp_path):
    files = unpack(shared_data / "awkward/dicom/generic_compressed_jpegls.tar.gz", tmp_path)
    content = files[1].read_bytes()
    files[1].write_bytes(content[: len(content) // 2])
    with pytest.raises(ScanError, match="unreadable") as error:
        read_series(files)
    assert str(tmp_path) not in str(error.value)


def test_read_scan_takes_a_series_from_its_folder(tmp_path):
    files = write_series(tmp_path / "a", evenly(2)) + write_series(tmp_path / "b", evenly(2, start=-95))
    scan = Scan(
        path=tmp_path,
        modality="ct",
        subject="s",
        dataset="d",
        split="train",
        shape=(10, 12, 4),
        spacing=(0.5, 0.8, 2.5),
        dtype="uint16",
        orientation="LPS",
        series="0123456789abcdef",
        files=tuple(path.relative_to(tmp_path).as_posix() for path in files),
    )
    assert read_scan(scan).array.shape == (10, 12, 4)
