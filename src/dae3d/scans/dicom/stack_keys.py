"""Header values that distinguish the images of one series, and how each may vary within an image."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag, Tag

# GE's b-value: the first value of the element.
_GE_B_VALUE = (0x0043, 0x1039)
# Without them the types of private elements are unknown in files with implicit VR.
PRIVATE_CREATORS = tuple((group, 0x0010) for group in (0x0019, 0x0043, 0x2001, 0x2005))
# Values of Image Type about the origin of an image.
_ORIGIN = ("ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY")
# In the functional group of diffusion.
_DIRECTION = Tag("DiffusionGradientDirectionSequence")


@dataclass(frozen=True)
class StackKey:
    """A value in the header of every slice, under `tags`.

    Within one image it may vary `never`, in `blocks` (each value in one block of slices, or at regular
    steps), or `freely`. Numbers that differ by at most a `share` of themselves are one value. Images that
    differ only in `repeated` keys are the volumes of one 4-D series. With `passes`, it may differ between
    passes of one image, each of which takes every n-th slice.
    """

    name: str
    tags: tuple[str | tuple[int, int], ...]
    varies: Literal["never", "blocks", "freely"]
    share: float = 0.0
    repeated: bool = False
    passes: bool = False

    def contrast(self, text: str) -> str:
        """A slice's text without the values of Image Type that do not concern contrast."""
        return " ".join(word for word in re.split(r"[ \\\\]+", text.upper()) if word not in _ORIGIN)


# In the order they are tried. Tags are those of classic files and of the functional groups of enhanced ones;
# numeric ones are private: the part of a complex image (GE), b-value and direction (Siemens, GE, Philips).
# Under gating the repetition time follows heart or breath, so less than twice as long is the same.
STACK_KEYS: tuple[StackKey, ...] = (
    StackKey("image type", ("ImageType", "FrameType", "ComplexImageComponent", (0x0043, 0x102F)), "never"),
    StackKey("kernel", ("ConvolutionKernel",), "never"),
    StackKey("slice thickness", ("SliceThickness",), "freely", share=0.01),
    StackKey("tube voltage", ("KVP",), "blocks", share=0.01),
    StackKey("echo", ("EchoTime", "EffectiveEchoTime", "EchoNumbers"), "never", share=0.01),
    StackKey("inversion time", ("InversionTime", "InversionTimes"), "never", share=0.01),
    StackKey("b-value", ("DiffusionBValue", (0x0019, 0x100C), _GE_B_VALUE, (0x2001, 0x1003)), "never", 0.01),
    StackKey(
        "gradient",
        (
            *("DiffusionGradientOrientation", (0x0019, 0x100E)),
            *((0x0019, element) for element in (0x10BB, 0x10BC, 0x10BD)),
            *((0x2005, element) for element in (0x10B0, 0x10B1, 0x10B2)),
        ),
        "never",
        share=1e-4,
        repeated=True,
    ),
    StackKey("flip angle", ("FlipAngle",), "never", share=0.01),
    StackKey("repetition time", ("RepetitionTime",), "never", share=1.0),
    StackKey("scan options", ("ScanOptions",), "never"),
    StackKey("contrast agent", ("ContrastBolusAgent",), "never"),
    StackKey("units", ("Units",), "never"),
    StackKey("corrections", ("CorrectedImage",), "never"),
    StackKey(
        "phase",
        ("NominalPercentageOfCardiacPhase", "NominalPercentageOfRespiratoryPhase"),
        "blocks",
        repeated=True,
        passes=True,
    ),
    StackKey(
        "temporal position",
        ("TemporalPositionIdentifier", "TemporalPositionIndex"),
        "never",
        repeated=True,
    ),
    StackKey("trigger time", ("TriggerTime",), "freely", repeated=True, passes=True),
    StackKey("frame reference time", ("FrameReferenceTime",), "blocks", repeated=True, passes=True),
    StackKey(
        "acquisition", ("AcquisitionNumber", "FrameAcquisitionNumber"), "blocks", repeated=True, passes=True
    ),
    StackKey("acquisition time", ("AcquisitionTime",), "freely", repeated=True, passes=True),
)
_TAGS = [[Tag(tag) for tag in key.tags] for key in STACK_KEYS]


def stack_texts(places: Mapping[BaseTag, Dataset], modality: str) -> list[str]:
    """The texts of a slice for each of the `STACK_KEYS`, "" if missing.

    `places` comes from `elements`. Private elements are used only in MR: elsewhere they mean something
    else.
    """
    said = []
    for tags in _TAGS:
        there = [tag for tag in tags if tag in places and (modality == "MR" or not tag.is_private)]
        parts = (optional_texts(places[tag], tag) for tag in there)
        said.append(" ".join("\\".join(part) for part in parts if part))
    return said


def elements(groups: Sequence[Dataset], header: Dataset | None = None) -> dict[BaseTag, Dataset]:
    """The data set that holds each element: one of the functional groups, else the header."""
    places: dict[BaseTag, Dataset] = {} if header is None else dict.fromkeys(header.keys(), header)
    for group in groups:
        for tag in list(group.keys()):
            for item in _inner(group, tag):
                places |= dict.fromkeys(item.keys(), item)
    return places


def _inner(dataset: Dataset, tag: BaseTag) -> Iterator[Dataset]:
    """The first item of a sequence, preceded by the diffusion direction in it."""
    try:
        value = dataset[tag].value
    except Exception:  # pydicom raises many kinds
        return
    if isinstance(value, Items) and value:
        if _DIRECTION in value[0]:
            yield from _inner(value[0], _DIRECTION)
        yield value[0]


def texts(value: Any) -> list[str]:
    """The values of an element."""
    if value is None:
        return []
    return [str(part) for part in value] if isinstance(value, MultiValue | list | tuple) else [str(value)]


def optional_texts(header: Dataset, tag: Any) -> list[str]:
    """The values of an optional element: empty if it is missing or malformed."""
    try:
        found = texts(header[tag].value) if tag in header else []
    except Exception:  # pydicom raises many kinds
        return []
    return found[:1] if tag == _GE_B_VALUE else found
