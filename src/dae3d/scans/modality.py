"""Modality labels: open, lower-case words such as "ct", "t1", "t1ce", "t2", "flair", "adc".

A label comes from the user, a list, or a BIDS suffix. It is never guessed from a part of a path:
`dataset1/scan.nii.gz` is not T1, and neither is `patient03_T1.nii.gz` unless a rule says so.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

# https://bids-specification.readthedocs.io: suffixes of images with three spatial axes. "ct" is still a
# proposal (BEP 24), "adc" and "flair" are also met in lower case (ISLES), so all are compared in lower case.
BIDS_SUFFIXES = {
    "t1w": "t1",
    "inplanet1": "t1",
    "t2w": "t2",
    "inplanet2": "t2",
    "t2starw": "t2star",
    "t2star": "t2star",
    "pdw": "pd",
    "pd": "pd",
    "flair": "flair",
    "unit1": "unit1",
    "t1map": "t1map",
    "t2map": "t2map",
    "angio": "angio",
    "swi": "swi",
    "dwi": "dwi",
    "adc": "adc",
    "ct": "ct",
    "pet": "pet",
}

# Names in the lists of data sets (Medical Segmentation Decathlon, BraTS, OpenMind).
LIST_NAMES = BIDS_SUFFIXES | {
    "t1n": "t1",
    "t1c": "t1ce",
    "t1gd": "t1ce",
    "t1post": "t1ce",
    "t2f": "flair",
    "mri": "mr",
    "unit1_denoised": "unit1",
}

_BIDS_NAME = re.compile(r"sub-[^_]+(?P<entities>(?:_[A-Za-z0-9]+-[^_]+)*)_(?P<suffix>[A-Za-z0-9]+)")
_LABEL = re.compile(r"[a-z0-9][a-z0-9_+.-]*")

# Prefix of a glob for the description of a DICOM series.
DESCRIPTION = "description:"


class Rule(NamedTuple):
    """Scans whose name or path matches `glob` have the modality `label`."""

    glob: str
    label: str


def parse_label(text: str) -> str:
    """A label in lower case.

    Raises:
        ValueError: if `text` is not one word of letters, digits, `_`, `+`, `.` and `-`.
    """
    label = text.strip().lower()
    if not _LABEL.fullmatch(label):
        raise ValueError(f"{text!r} is not a modality label: one word such as ct, t1, flair")
    return label


def parse_rule(text: str) -> Rule:
    """Read `GLOB=LABEL`, split at the last "=".

    Raises:
        ValueError: if it has no "=", no glob, or no valid label.
    """
    glob, _, label = text.rpartition("=")
    if not glob:
        raise ValueError(f"{text!r} is not GLOB=LABEL, such as '*_t1.nii.gz=t1'")
    return Rule(glob, parse_label(label))


def _checked_rule(text: str) -> str:
    parse_rule(text)
    return text


# For settings: a label, and a rule kept as it was written.
Label = Annotated[str, AfterValidator(parse_label)]
RuleText = Annotated[str, AfterValidator(_checked_rule)]


def matches(glob: str, path: str, folder: str, *descriptions: str) -> bool:
    """Whether `glob` matches a file's name, or its `path` from the folder given.

    It is case-sensitive, and `*` also matches "/". The name of the `folder` given is not part of the path, so
    `*t1*` does not match all of `dataset1`; but a glob may begin with it and "/", to match in that folder
    alone. A glob `description:GLOB` matches the `descriptions` of a DICOM series instead, ignoring case.
    The path of a series is its folder's and ends in "/", which a glob may omit.
    """
    if glob.startswith(DESCRIPTION):
        wanted = glob.removeprefix(DESCRIPTION).casefold()
        return any(text and fnmatchcase(text.casefold(), wanted) for text in descriptions)
    globs = (glob, glob.removeprefix(f"{folder}/"))
    paths = {path, path.rstrip("/")}
    name = path.rstrip("/").rpartition("/")[2]
    return any(fnmatchcase(one, pattern) for one in paths for pattern in globs) or fnmatchcase(name, glob)


def label_by_rules(rules: Sequence[Rule], path: str, folder: str, *descriptions: str) -> str | None:
    """The label of the first rule that matches."""
    return next((rule.label for rule in rules if matches(rule.glob, path, folder, *descriptions)), None)


def label_in_list(text: str) -> str:
    """The label of a modality named in a data set's list: "T1w" -> "t1", "MRI" -> "mr".

    Raises:
        ValueError: as `parse_label`.
    """
    label = parse_label(text)
    return LIST_NAMES.get(label, label)


def label_by_bids(stem: str) -> str | None:
    """The label of a file by its BIDS name, `sub-<label>[_key-value...]_<suffix>`, without extension.

    A T1-weighted image with a `ce-` entity (contrast agent) is "t1ce". Phase, real and imaginary parts
    are not images of their contrast, so they have no label.
    """
    name = _BIDS_NAME.fullmatch(stem)
    if name is None:
        return None
    entities = dict(entity.split("-", 1) for entity in name["entities"].split("_")[1:])
    if entities.get("part", "mag") != "mag":
        return None
    label = BIDS_SUFFIXES.get(name["suffix"].lower())
    return "t1ce" if label == "t1" and "ce" in entities else label
