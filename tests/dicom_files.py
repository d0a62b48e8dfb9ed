"""Small DICOM series, written with pydicom as scanners write them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

ROWS, COLUMNS = 12, 10
SPACING = [0.8, 0.5]  # mm between rows, and between columns
AXIAL = [1, 0, 0, 0, 1, 0]
SAGITTAL = [0, 1, 0, 0, 0, -1]

_CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
_ENHANCED = {"CT": EnhancedCTImageStorage, "MR": EnhancedMRImageStorage}
_OF_MODALITY: dict[str, dict[str, Any]] = {
    "CT": {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "KVP": 120,
        "ConvolutionKernel": "B30f",
        "RescaleType": "HU",
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelRepresentation": 0,
    },
    "MR": {
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
        "ScanningSequence": "SE",
        "SequenceVariant": "NONE",
        "RepetitionTime": 500,
        "EchoTime": 12,
        "FlipAngle": 90,
        "PixelRepresentation": 0,
    },
    "PT": {
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "Units": "BQML",
        "RescaleSlope": 2.5,
        "RescaleIntercept": 0,
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "PixelRepresentation": 1,
    },
}


def tilted(degrees: float) -> list[float]:
    """Axial slices of a gantry tilted about the patient's x axis, the table moving along z."""
    angle = np.radians(degrees)
    return [1, 0, 0, 0, float(np.cos(angle)), -float(np.sin(angle))]


def along_z(*heights: float) -> list[list[float]]:
    """Positions (LPS, mm) one above the other."""
    return [[-20.0, -30.0, float(height)] for height in heights]


def evenly(count: int, distance: float = 2.5, start: float = -100.0) -> list[list[float]]:
    """Positions at even distances."""
    return along_z(*(start + distance * i for i in range(count)))


def pixels_of(number: int, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """Stored values 0 to 2999, other ones in each slice."""
    return np.random.default_rng(number).integers(0, 3000, (rows, columns)).astype(np.uint16)


def write_slice(path: Path, tags: dict[str, Any], pixels: np.ndarray | None) -> Path:
    """Write one DICOM file; `pixels` ([frames,] rows, columns[, samples]) or None for an object without."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = tags["SOPClassUID"]
    meta.MediaStorageSOPInstanceUID = tags["SOPInstanceUID"]
    header = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword, value in tags.items():
        if value is not None:
            setattr(header, keyword, value)
    if pixels is not None:
        bits = pixels.dtype.itemsize * 8
        header.BitsAllocated, header.BitsStored, header.HighBit = bits, bits, bits - 1
        header.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def series_tags(modality: str = "CT", **tags: Any) -> dict[str, Any]:
    """What the files of a new series have in common."""
    common = {
        "SOPClassUID": _CLASSES[modality],
        "Modality": modality,
        "Manufacturer": "SIEMENS",
        "PatientName": "Doe^Jane",
        "PatientID": "P-0815",
        "StudyDate": "20200229",
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "SeriesNumber": 3,
        "AcquisitionNumber": 1,
        "ImageOrientationPatient": AXIAL,
        "PixelSpacing": SPACING,
        "SliceThickness": 2.5,
        "Rows": ROWS,
        "Columns": COLUMNS,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
    }
    return common | _OF_MODALITY[modality] | tags


def write_series(
    folder: Path,
    positions: Sequence[Sequence[float]],
    modality: str = "CT",
    each: Callable[[int], dict[str, Any]] = lambda number: {},
    pixels: Callable[[int], np.ndarray] = pixels_of,
    name: str = "{:03d}.dcm",
    **tags: Any,
) -> list[Path]:
    """Write a series of one slice a file; `each` gives tags of its own to slice `number`."""
    common = series_tags(modality, **tags)
    return [
        write_slice(
            folder / name.format(number),
            common
            | {
                "SOPInstanceUID": generate_uid(),
                "InstanceNumber": number + 1,
                "ImagePositionPatient": None if position is None else list(position),
            }
            | each(number),
            pixels(number),
        )
        for number, position in enumerate(positions)
    ]


def write_enhanced(
    path: Path,
    positions: Sequence[Sequence[float]],
    modality: str = "MR",
    orientation: Sequence[float] = AXIAL,
    shared: bool = True,
    each: Callable[[int], dict[str, Dataset]] = lambda number: {},
    pixels: Callable[[int], np.ndarray] = pixels_of,
    **tags: Any,
) -> Path:
    """Write an enhanced multi-frame file; `shared` puts orientation and pixel size into the group of all.

    `each` gives functional groups of its own to frame `number`.
    """
    common = series_tags(modality, SOPClassUID=_ENHANCED[modality], SOPInstanceUID=generate_uid(), **tags)
    of_frames = {
        key: common.pop(key) for key in ("ImageOrientationPatient", "PixelSpacing", "SliceThickness")
    }
    plane = {"ImageOrientationPatient": list(orientation)}
    measures = {"PixelSpacing": of_frames["PixelSpacing"], "SliceThickness": of_frames["SliceThickness"]}
    everywhere = item(PlaneOrientationSequence=item(**plane), PixelMeasuresSequence=item(**measures))
    frames = [
        item(PlanePositionSequence=item(ImagePositionPatient=list(place)), **each(number))
        for number, place in enumerate(positions)
    ]
    if not shared:
        for frame in frames:
            frame.update(everywhere)
    common |= {
        "NumberOfFrames": len(positions),
        "SharedFunctionalGroupsSequence": Items([everywhere if shared else Dataset()]),
        "PerFrameFunctionalGroupsSequence": Items(frames),
    }
    return write_slice(path, common, np.stack([pixels(number) for number in range(len(positions))]))


def edit(path: Path, **tags: Any) -> None:
    """Change tags of a file; None takes them away."""
    header = pydicom.dcmread(path)
    for keyword, value in tags.items():
        if value is None:
            delattr(header, keyword)
        else:
            setattr(header, keyword, value)
    header.save_as(path)


def item(**values: Any) -> Dataset:
    """A data set of an item; a data set in it becomes a sequence of one item."""
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, Items([value]) if isinstance(value, Dataset) else value)
    return item
