"""Which DICOM objects can be volumes, and descriptions of the others."""

import re

from pydicom.uid import UID

from dae3d.scans.dicom.header import Slice

# PS3.4 B.5: CT, MR, PET and X-ray 3-D images; classic, enhanced, and enhanced converted from classic.
_VOLUMES = {
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.4",
    "1.2.840.10008.5.1.4.1.1.128",
    "1.2.840.10008.5.1.4.1.1.128.1",
    "1.2.840.10008.5.1.4.1.1.130",
    "1.2.840.10008.5.1.4.1.1.13.1.1",
    "1.2.840.10008.5.1.4.1.1.13.1.2",
}
# The modality of some SOP classes, by prefix.
_SCANNERS = {
    "1.2.840.10008.5.1.4.1.1.2.": "CT",
    "1.2.840.10008.5.1.4.1.1.4.": "MR",
    "1.2.840.10008.5.1.4.1.1.128.": "PT",
    "1.2.840.10008.5.1.4.1.1.130.": "PT",
}

# Parts of the names of objects in PS3.6 (`UID.name`), and what they are called here.
_KINDS = (
    ("Secondary Capture", "secondary capture"),
    ("Dose SR", "dose report"),
    (" SR", "structured report"),
    ("Key Object", "structured report"),
    ("Presentation State", "presentation state"),
    ("Segmentation", "segmentation"),
    ("Encapsulated", "document"),
    ("Media Storage Directory", "directory of files (DICOMDIR)"),
    ("RT ", "radiotherapy object"),
    ("X-Ray", "projection"),
    ("Radiofluoroscopic", "projection"),
    ("Radiography", "projection"),
    ("Mammography", "projection"),
    ("Intra-Oral", "projection"),
    ("Ultrasound", "ultrasound pictures"),
    ("Nuclear Medicine", "nuclear medicine image"),
)

# Values of Image Type. A volume computed from another (DERIVED, SECONDARY) is still a volume.
_TYPES = {
    "LOCALIZER": "localiser",
    "SCOUT": "localiser",
    "SCREEN SAVE": "secondary capture",
    "SCREEN SHOT": "secondary capture",
    "SCREENSHOT": "secondary capture",
    "POSDISP": "secondary capture",
    "MIP": "projection: intensities of many slices in one",
    "MINIP": "projection: intensities of many slices in one",
    "MIN IP": "projection: intensities of many slices in one",
    "PROJECTION IMAGE": "projection: intensities of many slices in one",
    "MOSAIC": "mosaic: the slices of a time point tiled in one picture",
}
_LOCALISER_WORDS = re.compile(
    r"(?<![a-z])(loc|localizers?|localisers?|scouts?|survey|topograms?|surview)(?![a-z])", re.IGNORECASE
)
# A localiser has fewer slices: a "bone survey" with more is a scan.
_LOCALISER_SLICES = 16

_GREY = ("", "MONOCHROME1", "MONOCHROME2")
_COLOURS = (
    *("RGB", "PALETTE COLOR", "HSV", "ARGB", "CMYK", "XYB"),
    *("YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT"),
)


def refusal(one: Slice) -> str | None:
    """Why a file is not a slice of a volume, or None if it may be one.

    From the header, only values in the standard's own lists are quoted.
    """
    facts = one.facts
    if facts.sop_class not in _VOLUMES:
        name = UID(facts.sop_class).name
        if name == facts.sop_class:
            return "not an image volume: not a standard SOP class"
        kind = next((said for part, said in _KINDS if part in name), "not an image volume")
        return f"{kind}: {name}"
    parts = {part.strip().upper().replace("_", " ") for part in facts.image_type}
    said = next((_TYPES[part] for part in _TYPES if part in parts), None)
    if said is None and (facts.samples > 1 or facts.photometric.upper() not in _GREY):
        return f"colour pictures: {facts.photometric if facts.photometric in _COLOURS else 'other'}"
    return said


def scanner_by_class(sop_class: str) -> str:
    """The Modality (PS3.3 C.7.3.1.1.1) of an image of this SOP class; "" if it is not certain."""
    return next((scanner for start, scanner in _SCANNERS.items() if f"{sop_class}.".startswith(start)), "")


def is_localiser(description: str, slices: int) -> bool:
    """Whether a stack of so many slices is a localiser by its description."""
    return slices < _LOCALISER_SLICES and bool(_LOCALISER_WORDS.search(description))
