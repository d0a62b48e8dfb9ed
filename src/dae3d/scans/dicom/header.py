"""What the header of a DICOM file says of its slices; no pixels are read.

An enhanced multi-frame file holds many slices, any other file one. Tags are those of DICOM PS3.6.
"""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from dae3d.errors import ScanError
from dae3d.scans.limits import refuse_irregular
from dae3d.scans.readers import refuse_no_utf8

Vector = tuple[float, float, float]

# Headers in archives break the rules of their value types by the thousand, which is no news to the user; the
# warnings quote what headers hold.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pydicom")

# Names that say DICOM, for the files that lack its preamble ("IMA" is Siemens').
_SUFFIXES = (".dcm", ".ima", ".dicom")
_MAGIC_AT = 128

# By which slices at one position are told apart, in the order they are tried: name and tags. Those in numbers
# are private: what part of a complex image it is (GE), b-value and direction (GE, Philips, Siemens).
STACK_KEYS: dict[str, tuple[str | tuple[int, int], ...]] = {
    "image type": ("ImageType", "ComplexImageComponent", (0x0043, 0x102F)),
    "kernel": ("ConvolutionKernel",),
    "slice thickness": ("SliceThickness",),
    "tube voltage": ("KVP",),
    "echo": ("EchoTime", "EchoNumbers"),
    "inversion time": ("InversionTime",),
    "b-value": ("DiffusionBValue", (0x0019, 0x100C), (0x0043, 0x1039), (0x2001, 0x1003)),
    "gradient": (
        "DiffusionGradientOrientation",
        (0x0019, 0x100E),
        *((0x0019, element) for element in (0x10BB, 0x10BC, 0x10BD)),
        *((0x2005, element) for element in (0x10B0, 0x10B1, 0x10B2)),
    ),
    "temporal position": ("TemporalPositionIdentifier", "TemporalPositionIndex"),
    "trigger time": ("TriggerTime",),
    "frame reference time": ("FrameReferenceTime",),
    "acquisition": ("AcquisitionNumber",),
    "acquisition time": ("AcquisitionTime",),
}

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
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        *(tag for tags in STACK_KEYS.values() for tag in tags),
    )
]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the slices of a series mostly have in common.

    UIDs and the patient's identifier are as read, "" where missing. `orientation` holds the directions
    (LPS) along a row and down a column, `pixel_spacing` the distances in mm between rows and between
    columns.
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


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice: a file, or one of its `frames`, `frame` counting from 0.

    `position` is the centre of the first voxel in mm, LPS; `instance` a hash of the SOP Instance UID, by
    which copies of a file are told; `stack` holds the texts of the `STACK_KEYS`.
    """

    folder: Path
    name: str
    instance: int
    frame: int
    frames: int
    position: Vector | None
    facts: Facts
    stack: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.name


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its preamble, or by its suffix where it has none or cannot be opened."""
    return path.name.lower().endswith(_SUFFIXES) or has_preamble(path)


def has_preamble(path: Path) -> bool:
    """Whether a file begins as DICOM files do; False where it is none, or cannot be opened."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(_MAGIC_AT + 4)[_MAGIC_AT:] == b"DICM"
    except OSError:
        return False


def read_slices(path: Path) -> list[Slice]:
    """The slices of one file: one, or as many as it has frames.

    Raises:
        ScanError: where it is no DICOM, cut short, its values are malformed, or its path is not in UTF-8.
    """
    refuse_no_utf8(path)
    with _opened(path) as file:
        header = _read(file, _TAGS)
        there = path.stat().st_size - file.tell()
        needed = 0 if _is_compressed(header) else _pixel_bytes(header)
        if there < 0:
            raise ScanError("truncated: within its header")
        if there < needed:
            raise ScanError(f"truncated: {there} of {needed} bytes of pixels")
        return _slices(path, header, there)


def read_header(path: Path, tags: Sequence[BaseTag | str], pixels: bool = False) -> Dataset:
    """The tags given of a file's header, and of its pixels where these are among them.

    Raises:
        ScanError: where it cannot be read.
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
        raise ScanError("not DICOM, whatever its name says")
    return header


@contextmanager
def reading(keyword: str = "") -> Iterator[None]:
    """Say that a file, or what it has under `keyword`, is malformed in the place of any error of pydicom's.

    Errors' own words are not passed on: they quote what the header holds.

    Raises:
        ScanError: in the place of any error.
    """
    try:
        yield
    except ScanError:
        raise
    except OSError as error:
        raise ScanError(f"unreadable: {error.strerror or type(error).__name__}") from error
    except Exception as error:
        place = f"{keyword}: " if keyword else ""
        raise ScanError(f"unreadable: {place}{type(error).__name__}") from error


def _slices(path: Path, header: Dataset, pixel_bytes: int) -> list[Slice]:
    frames = _count(header, "NumberOfFrames") or 1
    # However compressed, a frame takes more than a byte.
    if frames > max(1, pixel_bytes):
        raise ScanError(f"unreadable: {frames} frames in {pixel_bytes} bytes of pixels")
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * frames
    if len(per_frame) != frames:
        raise ScanError(f"unreadable: {len(per_frame)} frames described of {frames}")
    facts = _facts(header)
    stack = tuple(sys.intern(_stack_text(header, tags)) for tags in STACK_KEYS.values())
    instance = hash(header.get("SOPInstanceUID") or path)
    slices = []
    for frame, groups in enumerate(per_frame):
        position, of_frame = _placed(facts, header, [groups, shared])
        slices.append(Slice(path.parent, path.name, instance, frame, frames, position, of_frame, stack))
    return slices


def _facts(header: Dataset) -> Facts:
    """What is said of a file as a whole."""
    return Facts(
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
        image_type=tuple(_optional(header, "ImageType")),
        orientation=None,
        pixel_spacing=None,
        thickness=None,
    )


def _placed(facts: Facts, header: Dataset, groups: list[Dataset]) -> tuple[Vector | None, Facts]:
    """Where a frame lies, and the facts with its orientation and size."""
    position = _floats(header, groups, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _floats(header, groups, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _floats(header, groups, "PixelMeasuresSequence", "PixelSpacing")
    thickness: tuple[float, ...] = ()
    with suppress(ScanError):  # can be done without
        thickness = _floats(header, groups, "PixelMeasuresSequence", "SliceThickness")
    of_frame = replace(
        facts,
        orientation=orientation if len(orientation) == 6 else None,
        pixel_spacing=(spacing[0], spacing[1]) if len(spacing) == 2 else None,
        thickness=thickness[0] if thickness else None,
    )
    return ((position[0], position[1], position[2]) if len(position) == 3 else None), of_frame


def _floats(header: Dataset, groups: list[Dataset], sequence: str, keyword: str) -> tuple[float, ...]:
    """Numbers of the frame's functional group, else of the group that all frames share, else of the file."""
    items = [group[sequence][0] for group in groups if group.get(sequence)]
    with reading(keyword):
        value = next((item[keyword].value for item in [*items, header] if keyword in item), None)
        return tuple(float(text) for text in _texts(value))


def _count(header: Dataset, keyword: str) -> int:
    with reading(keyword):
        return int(header.get(keyword) or 0)


def _optional(header: Dataset, tag: str | tuple[int, int]) -> list[str]:
    """The texts of a value that can be done without: none where it is malformed."""
    if tag in header:
        with suppress(ScanError), reading():
            return _texts(header[tag].value)
    return []


def _stack_text(header: Dataset, tags: tuple[str | tuple[int, int], ...]) -> str:
    return " ".join("\\".join(texts) for texts in (_optional(header, tag) for tag in tags) if texts)


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(part) for part in value] if isinstance(value, MultiValue | list | tuple) else [str(value)]


def _is_compressed(header: Dataset) -> bool:
    syntax = header.file_meta.get("TransferSyntaxUID")
    return syntax is not None and syntax.is_private is False and (syntax.is_compressed or syntax.is_deflated)


def _pixel_bytes(header: Dataset) -> int:
    voxels = _count(header, "Rows") * _count(header, "Columns") * (_count(header, "NumberOfFrames") or 1)
    return voxels * (_count(header, "SamplesPerPixel") or 1) * _count(header, "BitsAllocated") // 8
