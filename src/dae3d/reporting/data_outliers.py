"""Outliers among the scans of a modality, and scans that do not look like images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dae3d.reporting.data_survey import Survey
from dae3d.store.intensity import IntensityWindow, scaling
from dae3d.store.statistics import PERCENTILES
from dae3d.words import figure

LEAST_SCANS = 10  # of a modality, to determine its usual range
DISTANCE = 5.0  # robust standard deviations from the median
FEW_LEVELS = 64  # distinct values of a label map at most; 8-bit images have more in their mid-slices
# Number and share of a modality's scans; if more are far from the median, they are another kind of scan
# rather than outliers.
_FEW, _FEW_SHARE = 5, 0.02
_LOOKED_AT = 200  # scans of a store whose mid-slices are read to detect label maps
_MAD_TO_STD = 1.4826  # of a normal distribution
_TINY = 1e-9  # replaces 0 in logarithms and quotients


@dataclass(frozen=True)
class Flagged:
    """A flagged scan with a short `kind` and detailed reasons; scans with larger `badness` come first."""

    number: int
    kind: str
    reasons: tuple[str, ...]
    badness: float


class _Remark(NamedTuple):
    """One reason to flag a scan."""

    number: int
    badness: float
    kind: str
    text: str


@dataclass(frozen=True)
class _Property:
    """A numeric property of scans.

    `least` is a lower bound for the standard deviation, of the logarithm if `ratio` is true.
    """

    name: str
    unit: str
    values: Callable[[np.ndarray], np.ndarray]
    ratio: bool
    least: float

    def text(self, value: float) -> str:
        """A value with its unit."""
        return figure(value) + self.unit

    def distances(self, values: np.ndarray) -> np.ndarray:
        """Distance of each value from the median in robust standard deviations."""
        scale = np.log(np.maximum(values, _TINY)) if self.ratio else values
        deviations = np.abs(scale - np.median(scale))
        return deviations / max(_MAD_TO_STD * float(np.median(deviations)), self.least)


_GRID = (
    _Property("largest voxel side", " mm", lambda rows: rows["spacing"].max(axis=1), True, 0.15),
    _Property("smallest voxel side", " mm", lambda rows: rows["spacing"].min(axis=1), True, 0.15),
    _Property("longest side", " mm", lambda rows: (rows["shape"] * rows["spacing"]).max(axis=1), True, 0.1),
    _Property("fewest voxels along an axis", "", lambda rows: rows["shape"].min(axis=1), True, 0.15),
)
# For intensities with a unit (HU), and for those without, whose scale differs between scanners.
_PHYSICAL = (
    _Property("mean", "", lambda rows: rows["mean"], False, 30.0),
    _Property("0.5th percentile", "", lambda rows: rows["percentiles"][:, 0], False, 30.0),
    _Property("99.5th percentile", "", lambda rows: rows["percentiles"][:, -1], False, 50.0),
)
_ARBITRARY = (
    _Property("99.5th percentile", "", lambda rows: rows["percentiles"][:, -1], True, 0.1),
    _Property(
        "mean as a share of the 99.5th percentile",
        "",
        lambda rows: rows["mean"] / np.maximum(np.abs(rows["percentiles"][:, -1]), _TINY),
        False,
        0.05,
    ),
)


def outliers(survey: Survey) -> tuple[dict[str, list[Flagged]], dict[str, list[str]]]:
    """Find outliers in each modality.

    Returns:
        By modality: the flagged scans, worst first; and the properties in which many scans differ so much
            that
        several sources are likely, for which no scan is flagged.
    """
    flagged: dict[str, list[Flagged]] = {}
    varied: dict[str, list[str]] = {}
    for name in survey.modalities:
        numbers = survey.of(name)
        remarks = list(_no_images(survey.rows, numbers))
        images = np.setdiff1d(numbers, [remark.number for remark in remarks])
        differences: list[str] = []
        remarks += _unusual(survey.rows, images, name, differences)
        by_scan: dict[int, list[_Remark]] = {}
        for remark in remarks:
            by_scan.setdefault(remark.number, []).append(remark)
        found = (_flagged(number, made) for number, made in by_scan.items())
        flagged[name] = sorted(found, key=lambda one: (-one.badness, one.number))
        if differences:
            varied[name] = differences
    return flagged, varied


def label_candidates(survey: Survey) -> list[int]:
    """Up to 200 scans with unknown `levels` that may be label maps by their percentiles, likeliest first."""
    rows = survey.rows
    ordered = rows["percentiles"]
    distinct = 1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1)
    # One percentile may be interpolated between two values.
    whole = np.count_nonzero(ordered != np.rint(ordered), axis=1) <= 1
    numbers = np.flatnonzero((distinct <= 4) & whole & (rows["levels"] < 0))
    return numbers[np.argsort(ordered[numbers, -1], kind="stable")][:_LOOKED_AT].tolist()


def _flagged(number: int, remarks: Sequence[_Remark]) -> Flagged:
    worst = max(remarks, key=lambda remark: remark.badness)
    return Flagged(number, worst.kind, tuple(remark.text for remark in remarks), worst.badness)


def _no_images(rows: np.ndarray, numbers: np.ndarray) -> Iterator[_Remark]:
    """Flag label maps and empty scans."""
    low, high = PERCENTILES.index(5.0), PERCENTILES.index(95.0)
    for number in numbers.tolist():
        row = rows[number]
        if 0 < row["levels"] <= FEW_LEVELS:
            text = f"looks like a label map: {row['levels']} different values, all integers"
            yield _Remark(number, 1e6, "likely label map", text)
        elif row["percentiles"][low] == row["percentiles"][high]:
            text = f"nearly empty: at least 90 % of its voxels are {row['percentiles'][low]:g}"
            yield _Remark(number, 1e5, "nearly empty scan", text)


def _unusual(
    rows: np.ndarray, numbers: np.ndarray, modality: str, differences: list[str]
) -> Iterator[_Remark]:
    """Flag scans far from the median; properties in which many scans differ are added to `differences`."""
    if len(numbers) < LEAST_SCANS:
        return
    few = max(_FEW, int(_FEW_SHARE * len(numbers)))
    intensity = _PHYSICAL if isinstance(scaling(modality), IntensityWindow) else _ARBITRARY
    for prop in (*_GRID, *intensity):
        values = prop.values(rows[numbers]).astype(np.float64)
        distances = prop.distances(values)
        # If more than a few are far off, they are another kind of scan: flag only those far beyond them.
        common = float(np.sort(distances)[-few - 1])
        unusual = distances > max(DISTANCE, 2 * common)
        low, high = np.percentile(values[~unusual], (5, 95), method="nearest").tolist()
        usual = prop.text(high) if low == high else f"{figure(low)} to {prop.text(high)}"
        if common > DISTANCE:
            far = np.count_nonzero(distances > DISTANCE)
            differences.append(f"{prop.name}: {far} of {len(numbers)} far from the median, most have {usual}")
        for place in np.flatnonzero(unusual):
            text = f"{prop.name} {prop.text(values[place])}, most have {usual}"
            yield _Remark(int(numbers[place]), float(distances[place]), "unusual scan", text)
