"""From stored values to intensities: the rescaling of each slice, checked with a second decoder."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from dae3d.errors import ScanError
from dae3d.scans.dicom.header import Slice, read_header, reading

_TAGS = [
    "BitsAllocated",
    "BitsStored",
    "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence",
    "PhotometricInterpretation",
    "PixelPaddingRangeLimit",
    "PixelPaddingValue",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "SharedFunctionalGroupsSequence",
]
# A CT that shows air has values below this; stored values without their intercept do not.
_AIR = -500.0
# Rescale Types other than HU (PS3.3 C.11.1.1.2). Others are free text and must not be quoted.
_UNITS = ("OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT")
# Transfer syntaxes that pydicom decodes by itself, frame by frame.
_COMPARED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless)


@dataclass(frozen=True)
class Rescale:
    """Intensity = stored value * `slope` + `intercept`; `given` if it is in the header."""

    slope: float = 1.0
    intercept: float = 0.0
    units: str = ""
    given: bool = False


@dataclass(frozen=True)
class Storage:
    """How the pixels of a file are stored: compression, type, and the rescaling of each frame.

    `bits` of each value are used. `inverted` means that the lowest value is white (MONOCHROME1). `padding` is
    the range of stored values that mean "not imaged", by Pixel Padding Value.
    """

    syntax: UID | None
    dtype: np.dtype
    bits: int
    inverted: bool
    padding: tuple[int, int] | None
    rescales: tuple[Rescale, ...]


def read_storage(path: Path) -> Storage:
    """How the pixels of a DICOM file are stored.

    Raises:
        ScanError: if its header lacks it.
    """
    header = read_header(path, _TAGS)
    if header.get("PixelRepresentation") not in (0, 1):
        raise ScanError("no PixelRepresentation, which says whether values are signed")
    allocated = int(header.get("BitsAllocated") or 16)
    dtype = np.dtype(f"{'i' if header.PixelRepresentation else 'u'}{max(1, allocated // 8)}")
    frames = int(header.get("NumberOfFrames") or 1)
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    each = header.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * frames
    return Storage(
        syntax=header.file_meta.get("TransferSyntaxUID"),
        dtype=dtype,
        bits=int(header.get("BitsStored") or allocated),
        inverted=header.get("PhotometricInterpretation") == "MONOCHROME1",
        padding=_padding(header, dtype),
        rescales=tuple(_rescale(group, shared, header) for group in each),
    )


def _padding(header: Dataset, dtype: np.dtype) -> tuple[int, int] | None:
    values = [header.get(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    # Often written as 63536 instead of -2000, or the other way round.
    ends = [int(np.int64(value).astype(dtype)) for value in values if isinstance(value, int)]
    return (min(ends), max(ends)) if ends else None


def _rescale(frame: Dataset, shared: Dataset, header: Dataset) -> Rescale:
    """The frame's own rescaling, else that of all frames, else the file's."""
    groups = [group.get("PixelValueTransformationSequence") for group in (frame, shared)]
    for item in [*(group[0] for group in groups if group), header]:
        slope, intercept = _number(item, "RescaleSlope"), _number(item, "RescaleIntercept")
        if slope is not None or intercept is not None:
            # Zero would erase the image; some writers use it for "none".
            units = str(item.get("RescaleType") or "").strip().upper()
            return Rescale(slope or 1.0, intercept or 0.0, units, given=True)
    return Rescale()


def _number(item: Dataset, keyword: str) -> float | None:
    with reading(keyword):
        value = item.get(keyword)
        number = None if value is None else float(value)
    if number is not None and not math.isfinite(number):
        raise ScanError(f"unreadable: {keyword}: not finite")
    return number


def check_stored(one: Slice, plane: np.ndarray, storage: Storage) -> None:
    """Compare stored values (rows, columns) decoded by GDCM with those that pydicom decodes.

    Slices in a compression that pydicom alone cannot read are not compared.

    Raises:
        ScanError: if they differ.
    """
    if storage.syntax not in _COMPARED:
        return
    decoded = pixel_array(one.path, index=one.frame, raw=True, photometric_interpretation="MONOCHROME2")
    expected = decoded.astype(np.int64)
    expected &= (1 << storage.bits) - 1  # the bits above may hold an overlay
    if storage.dtype.kind == "i":
        expected -= (expected >> (storage.bits - 1)) << storage.bits
    if not np.array_equal(plane, expected):
        raise ScanError(f"{one.name}: two decoders give different pixels")


def check_hounsfield(rescales: set[Rescale], least: float) -> None:
    """Check that a CT whose `least` intensity is given is in HU.

    Raises:
        ScanError: if its header names other units, or has none and the values cannot be HU.
    """
    for rescale in rescales:
        if rescale.units not in ("", "HU", "US"):  # "US": unspecified
            units = rescale.units if rescale.units in _UNITS else "its own"
            raise ScanError(f"CT in units of {units}, not HU")
        if not rescale.given and least > _AIR:
            raise ScanError(f"CT without RescaleIntercept whose values cannot be HU: none is below {least:g}")
