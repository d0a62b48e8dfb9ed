"""Split a series into stacks: sets of slices of which no two are at one place.

Echoes, b-values, phases and parts of complex images come in one series as often as in several.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from dae3d.errors import ScanError
from dae3d.scans.dicom.geometry import geometry, same_orientation, same_size
from dae3d.scans.dicom.header import STACK_KEYS, Facts, Slice

_KEYS = tuple(STACK_KEYS)
_ACQUISITION = _KEYS.index("acquisition")
# Stacks that differ in these alone are the volumes of a time series, or the directions of one b-value.
_VOLUMES = {"gradient", "temporal position", "trigger time", "acquisition"}
# mm: positions that differ by less are the same.
_PLACES = 2
# Slices that stacks have on average, at least: where nearly each slice has a value of its own, it is no key.
_LEAST = 3


@dataclass(frozen=True)
class Stack:
    """Slices of a series that may be one volume.

    `key` says which of the series' stacks it is, empty where it has one only. Of `volumes` stacks that
    differ in time or diffusion direction alone it is number `volume`, from 0.
    """

    slices: list[Slice]
    key: tuple[tuple[str, str], ...] = ()
    volume: int = 0
    volumes: int = 1


def stacks(slices: Sequence[Slice]) -> list[Stack]:
    """Split slices by plane, and by the `STACK_KEYS` as long as two of a stack are at one place."""
    planes = _parts(slices, _planes(slices))
    if len(planes) == 1 or len(planes) * _LEAST > len(slices):
        return _numbered(_split(Stack(list(slices)), 0))
    found = [_split(Stack(part, (("plane", plane),)), 0) for plane, part in planes.items()]
    return _numbered([stack for plane in found for stack in plane])


def repeats(slices: Sequence[Slice]) -> int:
    """How many slices are at a place where another one is."""
    places = [place(one) for one in slices if one.position]
    return len(places) - len(set(places))


def place(one: Slice) -> tuple[float, ...]:
    """The position, where there is one, to a hundredth of a millimetre."""
    return tuple(round(x, _PLACES) for x in one.position or ())


def _planes(slices: Sequence[Slice]) -> list[str]:
    """For each slice a text of its size and orientation, the same for those that are nearly alike."""
    leaders: list[Facts] = []
    texts = []
    for facts in (one.facts for one in slices):
        alike = (one for one in leaders if same_size(one, facts) and same_orientation(one, facts))
        leader = next(alike, None)
        if leader is None:
            leader = facts
            leaders.append(facts)
        # Rounded, so that it is the same text whichever of them comes first; without a negative zero.
        numbers = [round(x, 2) + 0 for x in (*(leader.pixel_spacing or ()), *(leader.orientation or ()))]
        texts.append(f"{leader.rows}x{leader.columns} {numbers}")
    return texts


def _split(stack: Stack, first_key: int) -> list[Stack]:
    repeated = repeats(stack.slices)
    if not repeated:
        return _scanned_twice(stack)
    for number in range(first_key, len(_KEYS)):
        parts = _parts(stack.slices, [one.facts.stack[number] for one in stack.slices])
        if len(parts) * _LEAST <= len(stack.slices) and sum(map(repeats, parts.values())) < repeated:
            return [part for one in _keyed(stack, number, parts) for part in _split(one, number + 1)]
    return [stack]


def _scanned_twice(stack: Stack) -> list[Stack]:
    """Part two acquisitions of the same region whose slices lie between each other's."""
    parts = _parts(stack.slices, [one.facts.stack[_ACQUISITION] for one in stack.slices])
    if len(parts) == 1 or len(parts) * _LEAST > len(stack.slices) or _is_even(stack.slices):
        return [stack]
    if not all(map(_is_even, parts.values())) or not _overlap(list(parts.values())):
        return [stack]
    return _keyed(stack, _ACQUISITION, parts)


def _keyed(stack: Stack, number: int, parts: dict[str, list[Slice]]) -> list[Stack]:
    return [Stack(part, (*stack.key, (_KEYS[number], text))) for text, part in parts.items()]


def _parts(slices: Sequence[Slice], texts: Sequence[str]) -> dict[str, list[Slice]]:
    parts: dict[str, list[Slice]] = {}
    for one, text in zip(slices, texts, strict=True):
        parts.setdefault(text, []).append(one)
    return dict(sorted(parts.items(), key=lambda part: _in_order(part[0])))


def _in_order(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def _is_even(slices: list[Slice]) -> bool:
    try:
        return geometry(slices).kind != "uneven"
    except ScanError:
        return False


def _overlap(parts: list[list[Slice]]) -> bool:
    """Whether stacks of one orientation lie within each other's reach."""
    cosines = np.array(parts[0][0].facts.orientation)
    normal = np.cross(cosines[:3], cosines[3:])
    along = [np.array([one.position for one in part]) @ normal for part in parts]
    reaches = sorted((float(places.min()), float(places.max())) for places in along)
    return any(after[0] < before[1] for before, after in pairwise(reaches))


def _numbered(found: list[Stack]) -> list[Stack]:
    """Number the stacks that are the volumes of one 4-D series."""
    series: dict[tuple[tuple[str, str], ...], list[Stack]] = {}
    for stack in found:
        series.setdefault(tuple(pair for pair in stack.key if pair[0] not in _VOLUMES), []).append(stack)
    return [
        replace(stack, volume=number, volumes=len(volumes))
        for volumes in series.values()
        for number, stack in enumerate(volumes)
    ]
