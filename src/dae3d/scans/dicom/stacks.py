"""Split a series into stacks: sets of slices with no two at one place.

Echoes, b-values, phases and parts of complex images are often stored in one series.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median_low

import numpy as np

from dae3d.errors import ScanError
from dae3d.scans.dicom.alike import alike_texts, leaders
from dae3d.scans.dicom.geometry import ALIKE, Geometry, geometry
from dae3d.scans.dicom.header import Slice, SliceFacts
from dae3d.scans.dicom.stack_keys import STACK_KEYS, StackKey

PLACE = ("frame of reference", "plane")
MIXED = "slices of several images mixed"

_NUMBER = {key: number for number, key in enumerate(STACK_KEYS)}
_REPEATED = {key.name for key in STACK_KEYS if key.repeated}
# If slices at one place differ by less than the share, even that separates them.
_TRIES = [*((key, key.share) for key in STACK_KEYS), *((key, 0.0) for key in STACK_KEYS if key.share)]
# Share of a slice's thickness, and at most mm: positions that differ by less are the same.
_SAME, _SAME_AT_MOST = 0.02, 0.1
# mm: if not in the header.
_THICKNESS = 0.5
# Least number of slices per stack, on average: a value that differs for nearly every slice is not a key.
_LEAST = 3


@dataclass(frozen=True)
class Stack:
    """Slices of a series that may be one volume.

    `key` identifies the stack within the series, empty if it is the only one. It is number `volume`, from 0,
    of `volumes` stacks that differ only in time or diffusion direction. `mixed` names a key: some slices are
    missing, and others that differ in this key are in their places.
    """

    slices: list[Slice]
    key: tuple[tuple[str, str], ...] = ()
    volume: int = 0
    volumes: int = 1
    mixed: str = ""


def stacks(slices: Sequence[Slice]) -> list[Stack]:
    """Split slices by frame of reference and plane, and by `STACK_KEYS` if they hold several images.

    They do if two slices of a stack are at one place, if slices of one value are evenly between those of
    another, or if a key varies that does not vary within one image.
    """
    found = [Stack(list(slices))]
    for name, tell in zip(PLACE, (_frames_of_reference, _planes), strict=True):
        found = [part for stack in found for part in _told_apart(stack, name, tell(stack.slices))]
    return numbered([part for stack in found for part in _split(stack, 0)])


def _told_apart(stack: Stack, name: str, texts: Sequence[str]) -> list[Stack]:
    parts = _parts(stack.slices, texts)
    if len(parts) == 1 or len(parts) * _LEAST > len(stack.slices):
        return [stack]
    return [Stack(part, (*stack.key, (name, text))) for text, part in parts.items()]


def repeats(slices: Sequence[Slice]) -> int:
    """The number of slices at a place of another one."""
    return len(slices) - len(set(places(slices)))


def places(slices: Sequence[Slice]) -> list[int]:
    """For each slice a number, equal for those at one place; slices without a position get their own."""
    numbers = list(range(len(slices)))
    placed = [i for i, one in enumerate(slices) if one.position and np.isfinite(one.position).all()]
    if len(placed) > 1:
        thicknesses = (slices[i].facts.thickness or 0.0 for i in placed)
        within = min(_SAME_AT_MOST, _SAME * min((mm for mm in thicknesses if mm > 0), default=_THICKNESS))
        first = leaders(np.array([slices[i].position for i in placed]), within)
        for i, leader in zip(placed, first, strict=True):
            numbers[i] = placed[leader]
    return numbers


def _frames_of_reference(slices: Sequence[Slice]) -> list[str]:
    return [one.facts.frame_of_reference for one in slices]


def _planes(slices: Sequence[Slice]) -> list[str]:
    """For each slice a text of its size and orientation, the same for nearly equal ones."""
    kinds = sorted({one.facts for one in slices}, key=_plane)  # the same texts whatever the order of files
    first = leaders(np.array([_plane(facts) for facts in kinds]), ALIKE)
    texts = {facts: _plane_text(kinds[leader]) for facts, leader in zip(kinds, first, strict=True)}
    return [texts[one.facts] for one in slices]


def _plane(facts: SliceFacts) -> list[float]:
    spacing, cosines = facts.pixel_spacing or (-1.0, -1.0), facts.orientation or [-2.0] * 6
    return [facts.rows, facts.columns, *np.nan_to_num([*spacing, *cosines], nan=-3.0)]


def _plane_text(facts: SliceFacts) -> str:
    # Without a negative zero.
    numbers = [round(x, 4) + 0 for x in (*(facts.pixel_spacing or ()), *(facts.orientation or ()))]
    return f"{facts.rows}x{facts.columns} {numbers}"


def _split(stack: Stack, first_try: int) -> list[Stack]:
    repeated = repeats(stack.slices)
    if not repeated:
        return _of_one_image(stack)
    for number in range(first_try, len(_TRIES)):
        key, share = _TRIES[number]
        parts = _by_key(stack.slices, key, share)
        if len(parts) * _LEAST <= len(stack.slices) and sum(map(repeats, parts.values())) < repeated:
            return [part for one in _keyed(stack, key, parts) for part in _split(one, number + 1)]
    return [stack]


def _of_one_image(stack: Stack) -> list[Stack]:
    """Separate the images in a stack whose slices are at different places."""
    slices = stack.slices
    for key in STACK_KEYS:
        parts = _by_key(slices, key, key.share)
        if len(parts) == 1:
            continue
        found = _keyed(stack, key, parts)
        if not _lie_between(key, slices, parts):
            if not _are_mixed(key, slices, parts):
                continue
            blocks = _steps(slices, parts)
            found = [
                one if blocks[text] <= {1} else replace(one, mixed=key.name)
                for text, one in zip(parts, found, strict=True)
            ]
        return [part for one in found for part in _of_one_image(one)]
    return [stack]


def _lie_between(key: StackKey, slices: list[Slice], parts: dict[str, list[Slice]]) -> bool:
    """Whether the slices of each value are a complete image, interleaved with the others."""
    if len(parts) * _LEAST > len(slices):
        return False
    if not (all(map(_is_even, parts.values())) and _overlap(list(parts.values()))):
        return False
    # So are passes of one image; together they are even.
    return not (key.passes and _is_even(slices)) or _are_complete(slices, parts)


def _are_mixed(key: StackKey, slices: list[Slice], parts: dict[str, list[Slice]]) -> bool:
    """Whether slices that look like one image are of several, because the key does not vary so in one."""
    if _grid(slices) is None or len({key.contrast(text) for text in parts}) == 1:
        return False
    # A CT may change its technique between skull base and vertex; it is in HU throughout.
    if key.varies == "never" and slices[0].facts.modality != "CT":
        # A value per slice is a slice counter.
        return not (key.repeated and len(parts) == len(slices))
    if key.varies == "freely" or len(parts) * _LEAST > len(slices):
        return False
    return any(len(steps) > 1 for steps in _steps(slices, parts).values())


def _are_complete(slices: list[Slice], parts: dict[str, list[Slice]]) -> bool:
    """Whether the slice distance in the header fits the slices of one value, rather than all slices."""
    said = median_low([one.facts.distance or one.facts.thickness or 0.0 for one in slices])
    together = geometry(slices).spacing[2]
    apart = min(geometry(part).spacing[2] for part in parts.values())
    return said**2 > together * apart  # nearer to `apart`


def _steps(slices: list[Slice], parts: dict[str, list[Slice]]) -> dict[str, set[int]]:
    """The steps, in slices, from one slice of a value to the next: 1 in a block."""
    ranks = {id(slices[i]): rank for rank, i in enumerate(geometry(slices).order)}
    return {
        text: set(np.diff(sorted(ranks[id(one)] for one in part)).tolist()) for text, part in parts.items()
    }


def _by_key(slices: list[Slice], key: StackKey, share: float) -> dict[str, list[Slice]]:
    texts = [one.stack[_NUMBER[key]] for one in slices]
    first = alike_texts(texts, share)
    return _parts(slices, [first[text] for text in texts])


def _keyed(stack: Stack, key: StackKey, parts: dict[str, list[Slice]]) -> list[Stack]:
    return [replace(stack, slices=part, key=(*stack.key, (key.name, text))) for text, part in parts.items()]


def _parts(slices: Sequence[Slice], texts: Sequence[str]) -> dict[str, list[Slice]]:
    parts: dict[str, list[Slice]] = {}
    for one, text in zip(slices, texts, strict=True):
        parts.setdefault(text, []).append(one)
    return dict(sorted(parts.items(), key=lambda part: in_order(part[0])))


def in_order(text: str) -> tuple[float, str]:
    """The sort key of texts: as numbers, if they are numbers."""
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def _grid(slices: list[Slice]) -> Geometry | None:
    try:
        return geometry(slices)
    except ScanError:
        return None


def _is_even(slices: list[Slice]) -> bool:
    grid = _grid(slices)
    return grid is not None and grid.kind != "uneven"


def _overlap(parts: list[list[Slice]]) -> bool:
    """Whether the extents of stacks of one orientation overlap."""
    cosines = np.array(parts[0][0].facts.orientation)
    normal = np.cross(cosines[:3], cosines[3:])
    along = [np.array([one.position for one in part]) @ normal for part in parts]
    reaches = sorted((float(places.min()), float(places.max())) for places in along)
    return any(after[0] < before[1] for before, after in pairwise(reaches))


def numbered(found: list[Stack]) -> list[Stack]:
    """Number the stacks that are volumes of one 4-D series."""
    series: dict[tuple[tuple[str, str], ...], list[Stack]] = {}
    for stack in found:
        series.setdefault(tuple(pair for pair in stack.key if pair[0] not in _REPEATED), []).append(stack)
    return [
        replace(stack, volume=number, volumes=len(volumes))
        for volumes in series.values()
        for number, stack in enumerate(volumes)
    ]
