"""Split a series into stacks: sets of slices of which no two are at one place.

Echoes, b-values, phases and parts of complex images come in one series as often as in several.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from dae3d.errors import ScanError
from dae3d.scans.dicom.geometry import ALIKE, geometry
from dae3d.scans.dicom.header import STACK_KEYS, Facts, Slice

_KEYS = tuple(STACK_KEYS)
# Stacks that differ in these alone are the volumes of a time series, or the directions of one b-value.
_VOLUMES = {
    *("gradient", "temporal position", "trigger time", "frame reference time"),
    *("acquisition", "acquisition time"),
}
# Of a slice's thickness, and at most in mm: positions that differ by less are the same.
_SAME, _SAME_AT_MOST = 0.02, 0.1
# mm: where the header says none.
_THICKNESS = 0.5
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
    """Split slices by frame of reference and plane, and by `STACK_KEYS` where these hold several images.

    That is as long as two of a stack are at one place, and where slices of one value lie evenly between those
    of another.
    """
    found = [Stack(list(slices))]
    for name, tell in (("frame of reference", _frames_of_reference), ("plane", _planes)):
        found = [part for stack in found for part in _told_apart(stack, name, tell(stack.slices))]
    return _numbered([part for stack in found for part in _split(stack, 0)])


def _told_apart(stack: Stack, name: str, texts: Sequence[str]) -> list[Stack]:
    parts = _parts(stack.slices, texts)
    if len(parts) == 1 or len(parts) * _LEAST > len(stack.slices):
        return [stack]
    return [Stack(part, (*stack.key, (name, text))) for text, part in parts.items()]


def repeats(slices: Sequence[Slice]) -> int:
    """How many slices are at a place where another one is."""
    return len(slices) - len(set(places(slices)))


def places(slices: Sequence[Slice]) -> list[int]:
    """For each slice a number, equal for those at one place; a slice without a position is at no other's."""
    numbers = list(range(len(slices)))
    placed = [i for i, one in enumerate(slices) if one.position and np.isfinite(one.position).all()]
    if len(placed) > 1:
        thicknesses = (slices[i].facts.thickness or 0.0 for i in placed)
        within = min(_SAME_AT_MOST, _SAME * min((mm for mm in thicknesses if mm > 0), default=_THICKNESS))
        leaders = _leaders(np.array([slices[i].position for i in placed]), within)
        for i, leader in zip(placed, leaders, strict=True):
            numbers[i] = placed[leader]
    return numbers


def _frames_of_reference(slices: Sequence[Slice]) -> list[str]:
    return [one.facts.frame_of_reference for one in slices]


def _planes(slices: Sequence[Slice]) -> list[str]:
    """For each slice a text of its size and orientation, the same for those that are nearly alike."""
    kinds = sorted({one.facts for one in slices}, key=_plane)  # the same texts whatever the order of files
    leaders = _leaders(np.array([_plane(facts) for facts in kinds]), ALIKE)
    texts = {facts: _plane_text(kinds[leader]) for facts, leader in zip(kinds, leaders, strict=True)}
    return [texts[one.facts] for one in slices]


def _plane(facts: Facts) -> list[float]:
    spacing, cosines = facts.pixel_spacing or (-1.0, -1.0), facts.orientation or [-2.0] * 6
    return [facts.rows, facts.columns, *np.nan_to_num([*spacing, *cosines], nan=-3.0)]


def _plane_text(facts: Facts) -> str:
    # Without a negative zero.
    numbers = [round(x, 4) + 0 for x in (*(facts.pixel_spacing or ()), *(facts.orientation or ()))]
    return f"{facts.rows}x{facts.columns} {numbers}"


def _leaders(vectors: np.ndarray, within: float) -> list[int]:
    """For each row the index of one nearly equal to it, by no more than `within` in any number."""
    # Takes a third of a second to import.
    from scipy.spatial import cKDTree

    # Equal ones count once, or memory would grow with their square.
    _, firsts, numbers = np.unique(vectors.round(6), axis=0, return_index=True, return_inverse=True)
    distinct = vectors[firsts]
    leaders = np.full(len(distinct), -1)
    for i, near in enumerate(cKDTree(distinct).query_ball_point(distinct, within, p=np.inf)):
        if leaders[i] < 0:
            leaders[[j for j in near if leaders[j] < 0]] = firsts[i]
    return [int(leader) for leader in leaders[numbers.ravel()]]


def _split(stack: Stack, first_key: int) -> list[Stack]:
    repeated = repeats(stack.slices)
    if not repeated:
        return _interleaved(stack)
    for number in range(first_key, len(_KEYS)):
        parts = _parts(stack.slices, [one.stack[number] for one in stack.slices])
        if len(parts) * _LEAST <= len(stack.slices) and sum(map(repeats, parts.values())) < repeated:
            return [part for one in _keyed(stack, number, parts) for part in _split(one, number + 1)]
    return [stack]


def _interleaved(stack: Stack) -> list[Stack]:
    """Part images of the same region whose slices lie between each other's.

    Passes of one acquisition do as well; together they are even. Nothing excuses another contrast.
    """
    for number, name in enumerate(_KEYS):
        parts = _parts(stack.slices, [one.stack[number] for one in stack.slices])
        if len(parts) == 1 or len(parts) * _LEAST > len(stack.slices):
            continue
        if name in _VOLUMES and _is_even(stack.slices):
            continue
        if all(map(_is_even, parts.values())) and _overlap(list(parts.values())):
            return [part for one in _keyed(stack, number, parts) for part in _interleaved(one)]
    return [stack]


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
