"""How DICOM stores values: shown white, padded, rescaled, deflated; against the values that were written."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless

from dae3d.errors import ScanError
from dae3d.scans.dicom.straighten import PADDING
from dae3d.scans.dicom.volume import read_series
from dicom_files import edit, evenly, pixels_of, write_series

MONOCHROME1 = {
    "12 bits": (0, 12, 0),
    "16 bits": (0, 16, 0),
    "16 bits, signed": (1, 16, 1500),
}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize(("signed", "bits", "less"), MONOCHROME1.values(), ids=MONOCHROME1)
@pytest.mark.parametrize("slope", [1, 2.5])
def test_least_shown_white_is_a_matter_of_display(tmp_path, signed, bits, less, slope, syntax):
    def pixels(number: int) -> np.ndarray:
        return (pixels_of(number).astype(np.int32) - less).astype(np.int16 if signed else np.uint16)

    rescale = {"PixelRepresentation": signed, "RescaleSlope": slope, "RescaleIntercept": -1000}
    white = {"PhotometricInterpretation": "MONOCHROME1"}
    files = write_series(tmp_path, evenly(3), "MR", pixels=pixels, **white, **rescale)
    for path in files:
        edit(path, BitsStored=bits, HighBit=bits - 1)
        if syntax == RLELossless:
            compressed = pydicom.dcmread(path)
            compressed.compress(RLELossless)
            compressed.save_as(path)
    volume = read_series(files)
    for k in range(3):
        assert np.array_equal(volume.array[:, :, k], pixels(k).T)


def test_least_shown_white_in_a_compression_that_one_decoder_knows(tmp_path):
    """JPEG 2000, which nothing is there to compare with."""
    files = write_series(tmp_path, evenly(2), "MR", PhotometricInterpretation="MONOCHROME1")
    writer = sitk.ImageFileWriter()
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG2000")
    writer.SetFileName(str(tmp_path / "compressed.dcm"))
    for path in files:
        header = pydicom.dcmread(path)
        writer.Execute(sitk.GetImageFromArray(header.pixel_array[None]))
        compressed = pydicom.dcmread(tmp_path / "compressed.dcm")
        header.file_meta.TransferSyntaxUID = compressed.file_meta.TransferSyntaxUID
        header["PixelData"] = compressed["PixelData"]
        for keyword in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
            setattr(header, keyword, compressed[keyword].value)
        header.save_as(path)
    assert header.file_meta.TransferSyntaxUID.name.startswith("JPEG 2000")
    volume = read_series(files)
    for k in range(2):
        assert np.array_equal(volume.array[:, :, k], pixels_of(k).T)


CORNERS = np.arange(120).reshape(12, 10) % 7 == 0


def with_corners(value: int, kind: type = np.uint16):
    return lambda number: np.where(CORNERS, kind(value), pixels_of(number).astype(kind))


@pytest.mark.parametrize("declared", [63536, -2000])
@pytest.mark.parametrize(("modality", "filling"), [("CT", PADDING), ("MR", 0)])
def test_padding_above_all_else_was_not_imaged(tmp_path, modality, filling, declared):
    """-2000 read as unsigned: 62512 HU, were it imaged."""
    files = write_series(tmp_path, evenly(3), modality, pixels=with_corners(63536))
    for path in files:
        header = pydicom.dcmread(path)
        header.add_new("PixelPaddingValue", "SS" if declared < 0 else "US", declared)
        header.save_as(path)
    values = read_series(files).intensities()
    intercept = -1024 if modality == "CT" else 0
    for k in range(3):
        assert np.array_equal(values[:, :, k].T, np.where(CORNERS, filling, pixels_of(k) + float(intercept)))


def test_a_range_of_padding(tmp_path):
    def pixels(number: int) -> np.ndarray:
        return np.where(CORNERS, 4000 + np.arange(120).reshape(12, 10) % 50, pixels_of(number)).astype(
            np.uint16
        )

    files = write_series(
        tmp_path, evenly(3), pixels=pixels, PixelPaddingValue=4095, PixelPaddingRangeLimit=4000
    )
    values = read_series(files).intensities()
    assert np.array_equal(values[:, :, 1].T, np.where(CORNERS, PADDING, pixels_of(1) - 1024.0))


@pytest.mark.parametrize("value", [-2000, 0])
def test_padding_that_is_low_or_none_stays_as_stored(tmp_path, value):
    """By its intensity it is known anyway; and 0, which some declare, may be water."""

    def pixels(number: int) -> np.ndarray:
        return np.where(CORNERS, value, pixels_of(number).astype(np.int16) - 1000).astype(np.int16)

    signed = {"PixelRepresentation": 1, "RescaleIntercept": 0, "PixelPaddingValue": value}
    volume = read_series(write_series(tmp_path, evenly(3), pixels=pixels, **signed))
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array[:, :, 2], pixels(2).T)


def test_a_deflated_series(tmp_path):
    files = write_series(tmp_path, evenly(3))
    for path in files:
        header = pydicom.dcmread(path)
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        header.save_as(path)
    volume = read_series(files)
    assert np.array_equal(volume.array[:, :, 2], pixels_of(2).T)
    assert volume.intercept == -1024


def test_without_photometric_interpretation(tmp_path):
    files = write_series(tmp_path, evenly(2), PhotometricInterpretation=None)
    assert np.array_equal(read_series(files).array[:, :, 1], pixels_of(1).T)


def test_without_pixel_representation(tmp_path):
    with pytest.raises(ScanError, match="no PixelRepresentation"):
        read_series(write_series(tmp_path, evenly(2), PixelRepresentation=None))


NAME = "Doe^Jane"


@pytest.mark.parametrize("keyword", ["RescaleType", "RescaleSlope", "RescaleIntercept", "BitsStored"])
def test_reasons_quote_nothing_of_the_header(tmp_path, keyword):
    files = write_series(tmp_path, evenly(2))
    for path in files:
        header = pydicom.dcmread(path)
        header.add_new(keyword, "LO", NAME)
        if keyword.startswith("Rescale"):
            header[keyword].VR = pydicom.datadict.dictionary_VR(keyword)
        header.save_as(path)
    with pytest.raises(ScanError) as error:
        read_series(files)
    assert "doe" not in str(error.value).lower()


@pytest.mark.parametrize("slope", ["NaN", "1,0", "1e999"])
def test_a_slope_that_is_no_number(tmp_path, slope):
    files = write_series(tmp_path, evenly(2))
    for path in files:
        header = pydicom.dcmread(path)
        header.add_new("RescaleSlope", "LO", slope)
        header["RescaleSlope"].VR = "DS"
        header.save_as(path)
    with pytest.raises(ScanError, match="unreadable: RescaleSlope"):
        read_series(files)


NO_RESCALE = {"RescaleIntercept": None, "RescaleSlope": None, "RescaleType": None}


def test_ct_without_rescaling(tmp_path):
    with pytest.raises(ScanError, match="without RescaleIntercept"):
        read_series(write_series(tmp_path / "unsigned", evenly(2), **NO_RESCALE))
    signed = write_series(
        tmp_path / "signed",
        evenly(2),
        pixels=lambda number: pixels_of(number).astype(np.int16) - 1024,
        PixelRepresentation=1,
        **NO_RESCALE,
    )
    volume = read_series(signed)  # air is there: stored as HU
    assert np.array_equal(volume.intensities()[:, :, 0], pixels_of(0).T.astype(np.float32) - 1024)


def test_ct_in_other_units(tmp_path):
    with pytest.raises(ScanError, match="CT in units of MGML, not HU"):
        read_series(write_series(tmp_path, evenly(2), RescaleType="MGML"))


def test_ct_slices_with_intercepts_of_their_own(tmp_path):
    files = write_series(tmp_path, evenly(3), each=lambda number: {"RescaleIntercept": -1000 - number})
    values = read_series(files).intensities()
    for k in range(3):
        assert np.array_equal(values[:, :, k], pixels_of(k).T.astype(np.float32) - 1000 - k)
