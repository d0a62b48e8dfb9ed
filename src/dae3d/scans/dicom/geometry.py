"""The geometry of a stack of slices.

A stack is regular if its slices are evenly spaced along their normal. CT is also accepted with a tilted
gantry or varying slice distances (thin slices through the skull base, thick ones above): both are resampled
when the series is read. Anything else fits no grid without inventing data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median_low
from typing import Literal

import numpy as np

from dae3d.errors import ScanError
from dae3d.scans.dicom.header import Slice

SAME_POSITION = "same position twice with different content"

# Degrees. Rounding of direction cosines reaches 0.1; gantries are set in steps of 0.5.
_TILT = 0.2
# Share of the slice distance by which a slice may deviate from an even grid.
_UNEVEN = 0.1
# mm: positions rounded to tenths may be off by half of that, and so may the ends that define the grid. At
# most this share of the slice distance, or a missing slice could go unnoticed.
_WRITTEN, _WRITTEN_AT_MOST = 0.1, 0.3
# Shares of the usual slice distance: above it slices are missing; below it two are at one position.
_MISSING = 1.5
_SAME = 0.01
# The largest difference of equal direction cosines (0.06 degrees) and pixel sizes (mm).
ALIKE = 1e-3

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Geometry:
    """A stack's grid as scanned: voxel axes run along a row, down a column and from slice to slice.

    `shape` is (columns, rows, slices), `spacing` in mm (uneven stacks: the mean slice distance), `affine`
    (4, 4) maps voxel indices to RAS+ mm and is sheared where the gantry was tilted by `tilt` degrees; `order`
    holds the indices of the slices given, sorted along their normal. An uneven stack can be tilted too.
    """

    kind: Literal["regular", "tilted", "uneven"]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: np.ndarray
    order: tuple[int, ...]
    tilt: float


def geometry(slices: Sequence[Slice]) -> Geometry:
    """The grid of slices in any order.

    Raises:
        ScanError: with the reason if they are not a stack: a single slice, missing or differing orientations,
            positions or pixel sizes, two slices at one position, slices that are missing or not in line,
            uneven distances in anything but CT.
    """
    if len(slices) == 1:
        raise ScanError("a single slice")
    rows_and_columns = _directions(slices)
    spacing = _pixel_spacing(slices)
    positions = _positions(slices)
    normal = np.cross(*rows_and_columns)
    order = np.argsort(positions @ normal, kind="stable")
    kind, step, tilt = _stacked(
        positions[order],
        normal,
        [slices[i].facts.thickness for i in order],
        min(spacing),
        slices[0].facts.modality,
    )
    first = slices[0].facts
    affine = np.eye(4)
    # PS3.3 C.7.6.2.1.1: pixel spacing is the distance between rows, then between columns.
    affine[:3, 0] = rows_and_columns[0] * spacing[1]
    affine[:3, 1] = rows_and_columns[1] * spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[order[0]]
    return Geometry(
        kind=kind,
        shape=(first.columns, first.rows, len(slices)),
        spacing=(spacing[1], spacing[0], float(np.linalg.norm(step))),
        affine=_LPS_TO_RAS @ affine,
        order=tuple(int(i) for i in order),
        tilt=tilt,
    )


def _stacked(
    positions: np.ndarray,
    normal: np.ndarray,
    thicknesses: Sequence[float | None],
    pixel: float,
    modality: str,
) -> tuple[Literal["regular", "tilted", "uneven"], np.ndarray, float]:
    """Kind, mean step (LPS, mm) and tilt (degrees) of slices sorted along their normal."""
    along = positions @ normal
    distances = np.diff(along)
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    _refuse_same_position(distances)
    places = positions[0] + np.outer((along - along[0]) / (step @ normal), step)
    aside = float(np.linalg.norm(positions - places, axis=1).max())
    if aside > pixel / 2:
        raise ScanError(f"slices not in line: up to {aside:.3g} mm off")
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(np.cross(step, normal)), step @ normal)))
    even = along[0] + np.arange(len(along)) * (step @ normal)
    if np.abs(along - even).max() <= _slack(positions, float(step @ normal)):
        return ("tilted" if tilt > _TILT else "regular"), step, tilt
    _refuse_missing(distances, thicknesses)
    if modality != "CT":
        raise ScanError(f"uneven slice distances: {distances.min():.3g} to {distances.max():.3g} mm")
    return "uneven", step, tilt


def _slack(positions: np.ndarray, distance: float) -> float:
    """How far (mm) a slice may be from its place on an even grid."""
    written_to_tenths = np.allclose(positions, positions.round(1), rtol=0, atol=1e-6)
    rounded = min(_WRITTEN, _WRITTEN_AT_MOST * distance) if written_to_tenths else 0.0
    return max(_UNEVEN * distance, rounded)


def _refuse_same_position(distances: np.ndarray) -> None:
    if distances.min() <= _SAME * median_low(distances):
        raise ScanError(SAME_POSITION)


def _refuse_missing(distances: np.ndarray, thicknesses: Sequence[float | None]) -> None:
    """Compare each gap with the usual one for slices of that thickness; thicker slices are further apart."""
    ends = list(pairwise(thicknesses))
    usual = {
        thickness: median_low(
            [gap for gap, pair in zip(distances, ends, strict=True) if pair == (thickness,) * 2]
        )
        for thickness in {one for one, other in ends if one == other}
    }
    for gap, pair in zip(distances, ends, strict=True):
        expected = max((usual[one] for one in pair if one in usual), default=median_low(distances))
        if gap > _MISSING * expected:
            raise ScanError(f"missing slices: a gap of {gap:.3g} mm where slices are {expected:.3g} mm apart")


def _close(ones: tuple[float, ...] | None, others: tuple[float, ...] | None) -> bool:
    """Whether no number differs from its counterpart by more than `ALIKE`."""
    if ones is None or others is None:
        return ones is others
    return all(abs(one - other) <= ALIKE for one, other in zip(ones, others, strict=True))


def _directions(slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (LPS) along a row and down a column."""
    cosines = slices[0].facts.orientation
    if cosines is None:
        raise ScanError("no orientation in the header")
    if not all(_close(cosines, one.facts.orientation) for one in slices):
        raise ScanError("mixed orientations")
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not np.allclose([*lengths, 1 + row @ column], 1, atol=0.01):
        raise ScanError("no orientation: direction cosines not at right angles")
    return row / lengths[0], column / lengths[1]


def _pixel_spacing(slices: Sequence[Slice]) -> tuple[float, float]:
    first = slices[0].facts
    if not (first.rows and first.columns):
        raise ScanError("no rows or columns in the header")
    sizes = {(one.facts.rows, one.facts.columns) for one in slices}
    spacing = first.pixel_spacing
    if len(sizes) > 1 or not all(_close(spacing, one.facts.pixel_spacing) for one in slices):
        raise ScanError("mixed sizes of slices")
    if spacing is None or not (min(spacing) > 0 and np.isfinite(spacing).all()):
        raise ScanError(f"zero or non-finite spacing: {spacing or 'none in the header'}")
    return spacing


def _positions(slices: Sequence[Slice]) -> np.ndarray:
    if any(one.position is None for one in slices):
        raise ScanError("no position in the header")
    positions = np.array([one.position for one in slices])
    if not np.isfinite(positions).all():
        raise ScanError("no position: not a number")
    return positions
