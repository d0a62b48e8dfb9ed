"""From stored values to intensities: the rescaling of every slice, checked by a second decoder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import RLELossless

from dae3d.errors import ScanError
from dae3d.scans.dicom.header import Slice

_TAGS = [
    "BitsAllocated",
    "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "SharedFunctionalGroupsSequence",
]
# A CT with air in it has values below; stored values that still await their intercept have not.
_AIR = -500.0


@dataclass(frozen=True)
class Rescale:
    """Intensity = stored value * `slope` + `intercept`; `given` where the header says so."""

    slope: float = 1.0
    intercept: float = 0.0
    units: str = ""
    given: bool = False


@dataclass(frozen=True)
class Storage:
    """How the pixels of a file are stored: the type of its values, and the rescaling of each frame."""

    dtype: np.dtype
    rescales: tuple[Rescale, ...]


def read_storage(path: Path) -> Storage:
    """How the pixels of a DICOM file are stored."""
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
    kind = "i" if header.get("PixelRepresentation") == 1 else "u"
    dtype = np.dtype(f"{kind}{max(1, int(header.get('BitsAllocated', 16)) // 8)}")
    frames = int(header.get("NumberOfFrames") or 1)
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    each = header.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * frames
    return Storage(dtype, tuple(_rescale(group, shared, header) for group in each))


def _rescale(frame: Dataset, shared: Dataset, header: Dataset) -> Rescale:
    """The frame's own rescaling, else that of all frames, else the file's."""
    groups = [group.get("PixelValueTransformationSequence") for group in (frame, shared)]
    for item in [*(group[0] for group in groups if group), header]:
        if item.get("RescaleIntercept") is not None or item.get("RescaleSlope") is not None:
            # Zero would leave nothing of the image; some writers put it for "none".
            slope = float(item.get("RescaleSlope") or 1.0)
            intercept = float(item.get("RescaleIntercept") or 0.0)
            return Rescale(slope, intercept, str(item.get("RescaleType") or "").upper(), given=True)
    return Rescale()


def check_stored(one: Slice, plane: np.ndarray) -> None:
    """Compare a slice as decoded by GDCM, (rows, columns) of stored values, with what pydicom decodes.

    Slices in a compression that pydicom alone cannot read are not compared.

    Raises:
        ScanError: where they differ, so that neither can be trusted.
    """
    header = pydicom.dcmread(one.path, specific_tags=["BitsStored", "PixelRepresentation"], force=True)
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None or (syntax.is_compressed and syntax != RLELossless):
        return
    bits = int(header.BitsStored)
    expected = pixel_array(one.path, index=one.frame, raw=True).astype(np.int64)
    expected &= (1 << bits) - 1  # the bits above may hold an overlay
    if header.PixelRepresentation == 1:
        expected -= (expected >> (bits - 1)) << bits
    if not np.array_equal(plane, expected):
        raise ScanError(f"{one.name}: its pixels come out differently from two decoders")


def check_hounsfield(rescales: set[Rescale], least: float) -> None:
    """Check that a CT whose `least` intensity is given is in HU.

    Raises:
        ScanError: where its header names other units, or says nothing and its values cannot be HU.
    """
    for rescale in rescales:
        if rescale.units not in ("", "HU", "US"):  # "US": unspecified
            raise ScanError(f"CT in units of {rescale.units}, not HU")
        if not rescale.given and least > _AIR:
            raise ScanError(f"CT without RescaleIntercept whose values cannot be HU: none is below {least:g}")
