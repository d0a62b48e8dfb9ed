"""Modality labels from DICOM headers.

Only a certain modality becomes a label; otherwise it is None, and the user gives it by a rule. An MR contrast
comes from the words of the description or the sequence's parameters, unless they conflict.
"""

import re
from collections.abc import Iterator
from typing import Any

from pydicom import Dataset, Sequence
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from dae3d.scans.dicom.contrast import (
    DERIVED_PICTURES,
    PERFUSION_MAPS,
    Acquisition,
    agreed,
    contrast_agent_in_words,
    contrast_of_acquisition,
    contrasts_in_words,
    names_no_contrast,
    words,
)

# Every keyword that `label_by_header` uses; others need not be parsed.
read_tags: list[str] = [
    "AcquisitionContrast",
    "ContrastBolusAgent",
    "ContrastBolusAgentSequence",
    "CorrectedImage",
    "DiffusionBValue",
    "EchoPlanarPulseSequence",
    "EchoPulseSequence",
    "EchoTime",
    "ImageType",
    "InversionRecovery",
    "InversionTime",
    "MRAcquisitionType",
    "Manufacturer",
    "ManufacturerModelName",
    "Modality",
    "PerFrameFunctionalGroupsSequence",
    "ProtocolName",
    "RepetitionTime",
    "RescaleType",
    "SOPClassUID",
    "ScanningSequence",
    "SequenceName",
    "SeriesDescription",
    "SharedFunctionalGroupsSequence",
]

# Acquisition Contrast of enhanced MR, and the image flavour in its Image Type (DICOM PS3.3, C.8.13.3.1).
_ENHANCED_CONTRASTS = {
    "DIFFUSION": "dwi",
    "FLUID_ATTENUATED": "flair",
    "PROTON_DENSITY": "pd",
    "STIR": "stir",
    "T1": "t1",
    "T2": "t2",
    "T2_STAR": "t2star",
    "TOF": "angio",
}
# Values of an MR Image Type that are not images of a contrast: phase, real and imaginary part, maps,
# projections, time series, parts of Dixon.
_NO_CONTRAST = {
    *("P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY", "R_IR", "I_IR", "P_IR", "VELOCITY"),
    *("MAP", "T1 MAP", "T2 MAP", "T2_STAR MAP", "QMAP", "QSM", "FIELD_MAP", "B0", "B1", "LOCALIZER"),
    *("FA", "COLFA", "TENSOR", "EADC", "EXP", "FMRI", "MOSAIC", "T_MAP", "PERFUSION", "ASL", "TTP", "MTT"),
    *("CBF", "CBV", "RCBF", "RCBV", "PBP", "GBP", "RELCBF", "RELCBV", "RELMTT", "SUB", "SUBTRACTION"),
    *("MIP", "MNIP", "MIN IP", "MINIP", "MAX_IP", "MIN_IP", "PROJECTION IMAGE", "VOLUME_RENDERED"),
    *("FAT", "OUT_PHASE", "OPP_PHASE", "OPPOSED_PHASE", "FAT_FRACTION"),
}
_PROJECTIONS = {"MIP", "MINIP", "MIN_IP", "MAX_IP", "VRT", "SSD", "VOLUME_RENDERED", "PROJECTION IMAGE"}
# The same for CT: projections, renderings, and maps whose values are not HU.
_NO_HU = _PROJECTIONS | {
    "LOCALIZER",
    *("PERFUSION", "CBF", "CBV", "MTT", "TTP", "TMAX", "MATERIAL_SPECIFIC", "ELECTRON_DENSITY"),
    # Multi-energy CT (DICOM PS3.3, C.8.2.1.1.1); VMI, MAT_REMOVED and MAT_MODIFIED are in HU.
    *("EFF_ATOMIC_NUM", "MAT_SPECIFIC", "MAT_FRACTIONAL", "MAT_VALUE_BASED"),
}
_NO_HU_WORDS = re.compile(
    rf"\b(?:{DERIVED_PICTURES}|{PERFUSION_MAPS}|topo|topogram|scout|surview|iodine|uric ?acid|pbv"
    r"|z ?eff|z effective|eff(?:ective)? z|eff(?:ective)? atomic \w+|atomic number"
    r"|electron ?dens\w*|rho ?z?|material (?:density|map)|photoelectric)\b"
)
_PROJECTED = re.compile(rf"\b(?:{DERIVED_PICTURES})\b")
# X-Ray 3D Angiographic and X-Ray 3D Craniofacial Image Storage.
_CONE_BEAM_CLASSES = ("1.2.840.10008.5.1.4.1.1.13.1.1", "1.2.840.10008.5.1.4.1.1.13.1.2")
_CONE_BEAM = re.compile(
    r"\b(?:cbct|cone ?beam|on board imager|obi|xvi|i cat|newtom|accuitomo|veraview\w*|galileos|orthophos)\b"
)
# Words in Contrast/Bolus Agent that mean none was given; "non-ionic" is an agent.
_NO_AGENT = re.compile(
    r"$|[n0]$|(?:no|non(?! ?ionic)|none|not|nil|na|n a|native?|w o|without|ohne|keine?s?|nein|sans|aucun|sin"
    r"|ningun\w*|senza|nessuno|sem|nenhum|utan|ing[ae]n|inget|uden|uten|zonder|geen|bez|brak)\b"
)


def label_by_header(header: Dataset) -> str | None:
    """The modality label of a series by the header of one of its files, or None if it is not certain.

    In an enhanced file, the shared functional groups and those of the first frame are read too.
    """
    if _text(header, "SOPClassUID") in _CONE_BEAM_CLASSES:
        return "cbct"
    match _text(header, "Modality"):
        case "CT":
            return _ct_label(header)
        case "MR":
            return _mr_label(header)
        case "PT":
            return _pet_label(header)
        case "US":
            return "us"
    return None


def _ct_label(header: Dataset) -> str | None:
    description = _description(header)
    units = _values(header, "RescaleType") - {"US"}  # "US": unspecified
    if _values(header, "ImageType") & _NO_HU or _NO_HU_WORDS.search(description) or units - {"HU"}:
        return None
    device = words(f"{_text(header, 'Manufacturer')} {_text(header, 'ManufacturerModelName')}")
    return "cbct" if _CONE_BEAM.search(f"{description} {device}") else "ct"


def _pet_label(header: Dataset) -> str | None:
    if _values(header, "ImageType") & _PROJECTIONS or _PROJECTED.search(_description(header)):
        return None
    corrections = _values(header, "CorrectedImage")
    uncorrected = "ATTN" not in corrections if corrections else "nac" in _description(header).split()
    return None if uncorrected else "pet"


def _mr_label(header: Dataset) -> str | None:
    image_type, description = _values(header, "ImageType"), _description(header)
    if image_type & _NO_CONTRAST or names_no_contrast(description):
        return None
    named = contrasts_in_words(description)
    if image_type & {"ADC", "ADC_UNSPECIFIED"}:
        named.add("adc")
    enhanced = _values(header, "AcquisitionContrast") | (image_type if _is_enhanced(header) else set())
    named |= {label for value, label in _ENHANCED_CONTRASTS.items() if value in enhanced}
    label = agreed(named, contrast_of_acquisition(_acquisition(header)))
    return _t1_label(header, description) if label == "t1" else label


def _t1_label(header: Dataset, description: str) -> str | None:
    given = contrast_agent_in_words(description)
    if not given:
        agent = words(_text(header, "ContrastBolusAgent"))
        given = {not _NO_AGENT.match(agent) or bool(_value(header, "ContrastBolusAgentSequence"))}
    if len(given) > 1:
        return None
    return "t1ce" if True in given else "t1"


def _acquisition(header: Dataset) -> Acquisition:
    sequence = _values(header, "ScanningSequence")
    echo = _values(header, "EchoPulseSequence")
    diffusion = (_number(header, "DiffusionBValue") or 0) > 0 or "DIFFUSION" in _values(header, "ImageType")
    return Acquisition(
        spin_echo="SE" in sequence or bool(echo & {"SPIN", "BOTH"}),
        gradient_echo="GR" in sequence or bool(echo & {"GRADIENT", "BOTH"}),
        echo_planar="EP" in sequence or "YES" in _values(header, "EchoPlanarPulseSequence"),
        inversion="IR" in sequence or "YES" in _values(header, "InversionRecovery"),
        two_dimensional="2D" in _values(header, "MRAcquisitionType"),
        diffusion=diffusion or bool(re.search(r"\bep_b\d", _text(header, "SequenceName"))),
        echo_time=_number(header, "EchoTime", "EffectiveEchoTime"),
        repetition_time=_number(header, "RepetitionTime"),
        inversion_time=_number(header, "InversionTime", "InversionTimes"),
    )


def _is_enhanced(header: Dataset) -> bool:
    return "PerFrameFunctionalGroupsSequence" in header


def _description(header: Dataset) -> str:
    """The words of the series description, else of the protocol, which GE names after the whole visit."""
    return words(_text(header, "SeriesDescription") or _text(header, "ProtocolName"))


def _groups(header: Dataset) -> Iterator[Dataset]:
    """The header itself, then the items of its functional groups."""
    yield header
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in (_value(header, keyword) or [])[:1]:
            items = (_value(group, tag) for tag in sorted(group.keys()))
            yield from (item[0] for item in items if item and isinstance(item, Sequence))


def _first(header: Dataset, *keywords: str) -> list[Any]:
    """The values of the first element found under one of `keywords`."""
    for group in _groups(header):
        for keyword in keywords:
            value = _value(group, keyword)
            if value not in (None, ""):
                return list(value) if isinstance(value, MultiValue) else [value]
    return []


def _values(header: Dataset, keyword: str) -> set[str]:
    return {str(value).strip().upper() for value in _first(header, keyword)}


def _number(header: Dataset, *keywords: str) -> float | None:
    try:
        return next((float(value) for value in _first(header, *keywords)), None)
    except (TypeError, ValueError):
        return None


def _text(header: Dataset, keyword: str) -> str:
    return str(_value(header, keyword) or "")


def _value(group: Dataset, key: str | BaseTag) -> Any:
    """The value of an element, None if it is missing or malformed.

    A typing error in an echo time should not lose the series.
    """
    try:
        return group[key].value if key in group else None
    except Exception:  # pydicom raises many kinds
        return None
