"""The slices of a DICOM file by its header; no pixels are read.

An enhanced multi-frame file holds many slices, any other file one. Tags are those of DICOM PS3.6.
"""

import logging
import math
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from dae3d.errors import ScanError
from dae3d.scans.dicom.bare import begins_with_elements
from dae3d.scans.dicom.polarity import POLARITY_TAGS, rows_are_reversed
from dae3d.scans.dicom.stack_keys import (
    PRIVATE_CREATORS,
    STACK_KEYS,
    elements,
    optional_texts,
    stack_texts,
    texts,
)
from dae3d.scans.limits import refuse_irregular, refuse_no_utf8

Vector = tuple[float, float, float]

# Many headers in archives break the rules of their value types, which users need not know; and the warnings
# quote header content.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pydicom")

# Suffixes of DICOM, for files without its preamble ("IMA" is Siemens').
_SUFFIXES = (".dcm", ".ima", ".dicom")
_MAGIC_AT = 128
_HEAD = 512  # bytes that are read to recognise a file

# Bytes: the largest uncompressed pixel data in DICOM.
_LARGEST = 1 << 32
# A compressed file has at least one byte for this many bytes of pixels: an empty slice takes about 100.
_COMPRESSION = 10_000
# Depth of nested sequences. Real ones are about ten deep; pydicom fails at 150, GDCM crashes at thousands.
_NESTED = 100
# Start of an item with its length, and end of one of undefined length.
_ITEM = re.compile(rb"\xfe\xff(?:\x00\xe0(....)|\x0d\xe0)", re.DOTALL)
_UNSAID = 0xFFFFFFFF
_TOO_DEEP = "unreadable: sequences nested more than a hundred deep"

_TAGS = [
    Tag(tag)
    for tag in (
        "SOPInstanceUID",
        "Modality",
        "PatientID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "Rows",
        "Columns",
        "NumberOfFrames",
        "SamplesPerPixel",
        "BitsAllocated",
        "PhotometricInterpretation",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "SpacingBetweenSlices",
        "ConcatenationUID",
        "InConcatenationNumber",
        "InConcatenationTotalNumber",
        "InstanceNumber",
        *POLARITY_TAGS,
        *PRIVATE_CREATORS,
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        *(tag for key in STACK_KEYS for tag in key.tags),
    )
]


@dataclass(frozen=True, slots=True)
class SliceFacts:
    """The header values that slices of a series mostly share.

    UIDs and the patient's identifier are as read, "" if missing. `orientation` holds the directions
    (LPS) along a row and down a column, `pixel_spacing` the distances in mm between rows and between
    columns, `distance` that between slices in the header. In a volume of several files (a
    `concatenation`) a file is number `part`, from 1, of `parts`; 0 if not in the header.
    `rows_reversed` is None if it cannot be told.
    """

    sop_class: str
    modality: str
    patient: str
    study: str
    series: str
    frame_of_reference: str
    rows: int
    columns: int
    samples: int
    photometric: str
    image_type: tuple[str, ...]
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, float] | None
    thickness: float | None
    distance: float | None = None
    concatenation: str = ""
    part: int = 0
    parts: int = 0
    rows_reversed: bool | None = False


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice: a file, or one of its `frames`, `frame` counting from 0.

    `position` is the centre of the first voxel in mm, LPS; `instance` a hash of the SOP Instance UID, which
    identifies copies of a file; `stack` holds a text for each of the `STACK_KEYS`; `number` is the Instance
    Number of a multi-frame file, 0 if missing.
    """

    folder: Path
    name: str
    instance: int
    frame: int
    frames: int
    position: Vector | None
    facts: SliceFacts
    stack: tuple[str, ...]
    number: int = 0

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.name


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its suffix, its preamble or, without one, its first elements."""
    if path.name.lower().endswith(_SUFFIXES):
        return True
    head = _head(path)
    return head[_MAGIC_AT : _MAGIC_AT + 4] == b"DICM" or begins_with_elements(head)


def has_preamble(path: Path) -> bool:
    """Whether a file has the preamble of DICOM; False if it cannot be opened."""
    return _head(path)[_MAGIC_AT : _MAGIC_AT + 4] == b"DICM"


def _head(path: Path) -> bytes:
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def read_slices(path: Path) -> list[Slice]:
    """The slices of one file: one for each frame.

    Raises:
        ScanError: if it is not DICOM, is cut short or malformed, or its path is not in UTF-8.
    """
    refuse_no_utf8(path)
    with _opened(path) as file:
        header = _read(file, _TAGS)
        size, read = path.stat().st_size, file.tell()
        if read > size:
            raise ScanError("truncated: within its header")
        syntax = header.file_meta.get("TransferSyntaxUID")
        _refuse_cut_short(header, syntax, size if syntax == DeflatedExplicitVRLittleEndian else size - read)
        _refuse_nested(file, read)
        return _slices(path, header)


def read_header(path: Path, tags: Sequence[BaseTag | str], pixels: bool = False) -> Dataset:
    """The given tags of a file's header; its pixels only if they are among them.

    Raises:
        ScanError: if it cannot be read.
    """
    with _opened(path) as file:
        return _read(file, tags, pixels)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with reading():
        refuse_irregular(path)
        with path.open("rb") as file:
            yield file


def _read(file: BinaryIO, tags: Sequence[BaseTag | str], pixels: bool = False) -> Dataset:
    wanted: list[Any] = ["SOPClassUID", *tags]
    header = pydicom.dcmread(file, stop_before_pixels=not pixels, specific_tags=wanted, force=True)
    if "SOPClassUID" not in header and "MediaStorageSOPClassUID" not in header.file_meta:
        raise ScanError("not DICOM, despite its name")
    return header


@contextmanager
def reading(keyword: str = "") -> Iterator[None]:
    """Turn any error of pydicom's into one that a file, or its value of `keyword`, is malformed.

    The original messages are dropped, because they quote the header.

    Raises:
        ScanError: instead of any error.
    """
    try:
        yield
    except ScanError:
        raise
    except RecursionError:
        raise ScanError(_TOO_DEEP) from None
    except OSError as error:
        raise ScanError(f"unreadable: {error.strerror or type(error).__name__}") from error
    except Exception as error:
        place = f"{keyword}: " if keyword else ""
        raise ScanError(f"unreadable: {place}{type(error).__name__}") from error


def _slices(path: Path, header: Dataset) -> list[Slice]:
    frames = _count(header, "NumberOfFrames") or 1
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * frames
    if len(per_frame) != frames:
        raise ScanError(f"unreadable: its header describes {len(per_frame)} of {frames} frames")
    facts, common = _facts(header), elements([shared], header)
    instance = hash(header.get("SOPInstanceUID") or path)
    number = _whole(header, "InstanceNumber") if frames > 1 else 0
    slices = []
    for frame, groups in enumerate(per_frame):
        position, of_frame = _placed(facts, header, [groups, shared])
        stack = tuple(map(sys.intern, stack_texts(common | elements([groups]), facts.modality)))
        one = Slice(path.parent, path.name, instance, frame, frames, position, of_frame, stack, number)
        slices.append(one)
    return slices


def _facts(header: Dataset) -> SliceFacts:
    """The values of a file as a whole."""
    return SliceFacts(
        sop_class=str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""),
        modality=str(header.get("Modality") or ""),
        patient=str(header.get("PatientID") or "").strip(),
        study=str(header.get("StudyInstanceUID") or ""),
        series=str(header.get("SeriesInstanceUID") or ""),
        frame_of_reference=str(header.get("FrameOfReferenceUID") or ""),
        rows=_count(header, "Rows"),
        columns=_count(header, "Columns"),
        samples=_count(header, "SamplesPerPixel") or 1,
        photometric=str(header.get("PhotometricInterpretation") or ""),
        image_type=tuple(optional_texts(header, "ImageType")),
        orientation=None,
        pixel_spacing=None,
        thickness=None,
        concatenation=str(header.get("ConcatenationUID") or ""),
        part=_whole(header, "InConcatenationNumber"),
        parts=_whole(header, "InConcatenationTotalNumber"),
        rows_reversed=rows_are_reversed(header),
    )


def _placed(facts: SliceFacts, header: Dataset, groups: list[Dataset]) -> tuple[Vector | None, SliceFacts]:
    """The position of a frame, and the facts with its orientation and size."""
    position = _floats(header, groups, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _floats(header, groups, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _floats(header, groups, "PixelMeasuresSequence", "PixelSpacing")
    thickness, distance = (
        _measure(header, groups, keyword) for keyword in ("SliceThickness", "SpacingBetweenSlices")
    )
    of_frame = replace(
        facts,
        orientation=orientation if len(orientation) == 6 else None,
        pixel_spacing=(spacing[0], spacing[1]) if len(spacing) == 2 else None,
        thickness=thickness,
        distance=distance,
    )
    return ((position[0], position[1], position[2]) if len(position) == 3 else None), of_frame


def _measure(header: Dataset, groups: list[Dataset], keyword: str) -> float | None:
    """An optional number, None if it is missing or malformed."""
    with suppress(ScanError):
        return next(iter(_floats(header, groups, "PixelMeasuresSequence", keyword)), None)
    return None


def _floats(header: Dataset, groups: list[Dataset], sequence: str, keyword: str) -> tuple[float, ...]:
    """Numbers of the frame's functional group, else of the shared group, else of the file."""
    items = [group[sequence][0] for group in groups if group.get(sequence)]
    with reading(keyword):
        value = next((item[keyword].value for item in [*items, header] if keyword in item), None)
        return tuple(float(text) for text in texts(value))


def _count(header: Dataset, keyword: str) -> int:
    with reading(keyword):
        return int(header.get(keyword) or 0)


def _whole(header: Dataset, keyword: str) -> int:
    """An optional whole number, 0 if it is missing or malformed."""
    with suppress(ScanError):
        return _count(header, keyword)
    return 0


def _refuse_cut_short(header: Dataset, syntax: UID | None, there: int) -> None:
    """Refuse a file that is too short for the pixels in its header, before memory is allocated for them."""
    frames = _count(header, "NumberOfFrames")
    needed = _count(header, "Rows") * _count(header, "Columns") * max(1, frames)
    needed *= (_count(header, "SamplesPerPixel") or 1) * _count(header, "BitsAllocated")
    needed //= 8
    if needed > _LARGEST:
        raise ScanError(f"too large: {needed} bytes of pixels, more than 4 GiB")
    compressed = syntax is not None and not syntax.is_private and (syntax.is_compressed or syntax.is_deflated)
    if there < (needed // _COMPRESSION if compressed else needed):
        raise ScanError(f"truncated: {there} of {needed} bytes of pixels")
    if there < frames and frames > 1:
        raise ScanError(f"truncated: {there} bytes for {frames} frames")


def _refuse_nested(file: BinaryIO, length: int) -> None:
    """Refuse a header (the first `length` bytes) with sequences nested deeper than `_NESTED`."""
    file.seek(0)
    header = file.read(length)
    if header.count(b"\xfe\xff\x00\xe0") <= _NESTED:
        return
    ends: list[float] = []
    for found in _ITEM.finditer(header):
        while ends and ends[-1] <= found.start():
            ends.pop()
        if found[1] is None:
            if ends and ends[-1] == math.inf:
                ends.pop()
        else:
            said = int.from_bytes(found[1], "little")
            ends.append(math.inf if said == _UNSAID else found.end() + said)
        if len(ends) > _NESTED:
            raise ScanError(_TOO_DEEP)
