"""Scans unlike the others of their modality, and scans that look like no image at all."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dae3d.reporting.data_survey import Survey
from dae3d.store.intensity import IntensityWindow, scaling
from dae3d.store.statistics import PERCENTILES
from dae3d.words import figure

LEAST_SCANS = 10  # of a modality, to say what is usual for it
DISTANCE = 5.0  # robust standard deviations from the median
FEW_LEVELS = 64  # values of a label map; an image of 8 bits has more in its mid-slices
# Of a modality's scans: where more are far from the median, they are another kind of scan and no outliers.
_FEW, _FEW_SHARE = 5, 0.02
_LOOKED_AT = 200  # scans of a store whose mid-slices are read to tell a label map
_MAD_TO_STD = 1.4826  # of a normal distribution
_TINY = 1e-9  # in the place of 0 in logarithms and quotients


@dataclass(frozen=True)
class Flagged:
    """A scan to look at, and why: in two or three words, and in detail; the larger `badness`, the sooner."""

    number: int
    kind: str
    reasons: tuple[str, ...]
    badness: float


class _Remark(NamedTuple):
    """What is wrong with a scan."""

    number: int
    badness: float
    kind: str
    text: str


@dataclass(frozen=True)
class _Measure:
    """A number of each scan.

    `least` is the smallest standard deviation that is taken for real, of the logarithm where `ratio` is true.
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
        """How many robust standard deviations each value is from the median."""
        scale = np.log(np.maximum(values, _TINY)) if self.ratio else values
        deviations = np.abs(scale - np.median(scale))
        return deviations / max(_MAD_TO_STD * float(np.median(deviations)), self.least)


_GRID = (
    _Measure("largest voxel side", " mm", lambda rows: rows["spacing"].max(axis=1), True, 0.15),
    _Measure("smallest voxel side", " mm", lambda rows: rows["spacing"].min(axis=1), True, 0.15),
    _Measure("longest side", " mm", lambda rows: (rows["shape"] * rows["spacing"]).max(axis=1), True, 0.1),
    _Measure("fewest voxels along an axis", "", lambda rows: rows["shape"].min(axis=1), True, 0.15),
)
# Of intensities with a unit (HU), and of those without, which differ from scanner to scanner.
_PHYSICAL = (
    _Measure("mean", "", lambda rows: rows["mean"], False, 30.0),
    _Measure("0.5th percentile", "", lambda rows: rows["percentiles"][:, 0], False, 30.0),
    _Measure("99.5th percentile", "", lambda rows: rows["percentiles"][:, -1], False, 50.0),
)
_ARBITRARY = (
    _Measure("99.5th percentile", "", lambda rows: rows["percentiles"][:, -1], True, 0.1),
    _Measure(
        "mean as a share of the 99.5th percentile",
        "",
        lambda rows: rows["mean"] / np.maximum(np.abs(rows["percentiles"][:, -1]), _TINY),
        False,
        0.05,
    ),
)


def outliers(survey: Survey) -> tuple[dict[str, list[Flagged]], dict[str, list[str]]]:
    """Find scans to look at in each modality.

    Returns:
        By modality: the flagged scans, the worst first; and in what the scans differ so much that several
        sources are likely, for which none of them is flagged.
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
    """Scans of unknown `levels` that may be label maps by percentiles: up to 200, the likeliest first."""
    rows = survey.rows
    ordered = rows["percentiles"]
    distinct = 1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1)
    # One of them may lie between two values.
    whole = np.count_nonzero(ordered != np.rint(ordered), axis=1) <= 1
    numbers = np.flatnonzero((distinct <= 4) & whole & (rows["levels"] < 0))
    return numbers[np.argsort(ordered[numbers, -1], kind="stable")][:_LOOKED_AT].tolist()


def _flagged(number: int, remarks: Sequence[_Remark]) -> Flagged:
    worst = max(remarks, key=lambda remark: remark.badness)
    return Flagged(number, worst.kind, tuple(remark.text for remark in remarks), worst.badness)


def _no_images(rows: np.ndarray, numbers: np.ndarray) -> Iterator[_Remark]:
    """Label maps and empty scans."""
    low, high = PERCENTILES.index(5.0), PERCENTILES.index(95.0)
    for number in numbers.tolist():
        row = rows[number]
        if 0 < row["levels"] <= FEW_LEVELS:
            text = f"looks like a label map: {row['levels']} different values, all whole numbers"
            yield _Remark(number, 1e6, "likely label map", text)
        elif row["percentiles"][low] == row["percentiles"][high]:
            text = f"nearly empty: at least 90 % of its voxels are {row['percentiles'][low]:g}"
            yield _Remark(number, 1e5, "nearly empty scan", text)


def _unusual(
    rows: np.ndarray, numbers: np.ndarray, modality: str, differences: list[str]
) -> Iterator[_Remark]:
    """Scans far from the median of their modality; `differences` gets what is said of all of them."""
    if len(numbers) < LEAST_SCANS:
        return
    few = max(_FEW, int(_FEW_SHARE * len(numbers)))
    intensity = _PHYSICAL if isinstance(scaling(modality), IntensityWindow) else _ARBITRARY
    for measure in (*_GRID, *intensity):
        values = measure.values(rows[numbers]).astype(np.float64)
        distances = measure.distances(values)
        # Where more than a few are far off, they are another kind of scan: only what is far beyond counts.
        common = float(np.sort(distances)[-few - 1])
        unusual = distances > max(DISTANCE, 2 * common)
        low, high = np.percentile(values[~unusual], (5, 95), method="nearest").tolist()
        usual = measure.text(high) if low == high else f"{figure(low)} to {measure.text(high)}"
        if common > DISTANCE:
            far = np.count_nonzero(distances > DISTANCE)
            differences.append(
                f"{measure.name}: {far} of {len(numbers)} far from the median, most have {usual}"
            )
        for place in np.flatnonzero(unusual):
            text = f"{measure.name} {measure.text(values[place])}, most have {usual}"
            yield _Remark(int(numbers[place]), float(distances[place]), "unusual scan", text)
