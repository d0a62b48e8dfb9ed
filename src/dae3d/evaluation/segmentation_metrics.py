"""Segmentation metrics per class: Dice, surface distances, volumes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.ndimage import find_objects

from dae3d.evaluation.surfaces import surface_distances

Slices = tuple[slice, slice, slice]

# Values of one class of one case by the names of `METRICS`.
Scores = dict[str, float]


@dataclass(frozen=True)
class Masks:
    """The masks of one class in two segmentations of a scan.

    Attributes:
        prediction, reference: (X, Y, Z) bool; masks may touch the edges of the array.
        spacing: voxel size in mm along the axes.
        tolerance: of the normalised surface distance, mm.
    """

    prediction: np.ndarray
    reference: np.ndarray
    spacing: Sequence[float]
    tolerance: float

    @cached_property
    def predicted(self) -> int:
        """Number of voxels of the prediction."""
        return int(self.prediction.sum())

    @cached_property
    def wanted(self) -> int:
        """Number of voxels of the reference."""
        return int(self.reference.sum())

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return math.prod(self.spacing) / 1000

    @cached_property
    def surfaces(self) -> tuple[float, float]:
        """`surface_distances` of the masks, which must not be empty."""
        return surface_distances(self.prediction, self.reference, self.spacing, self.tolerance)


@dataclass(frozen=True)
class Metric:
    """A metric that compares two masks.

    Attributes:
        of: computes the value. If both masks are empty, the value is NaN and `of` is only called for volumes.
        heading: name in tables with unit; None for metrics only in `metrics.csv` and `metrics.json`.
        decimals: decimals shown.
        best: value of a perfect segmentation: the highest, the lowest, or zero between both.
        volume: whether it is the volume of one mask; such values are not averaged.
    """

    of: Callable[[Masks], float]
    heading: str | None = None
    decimals: int = 3
    best: Literal["highest", "lowest", "zero"] = "highest"
    volume: bool = False

    @property
    def sign(self) -> str:
        """ "+" where values of both signs occur."""
        return "+" if self.best == "zero" else ""


def dice(masks: Masks) -> float:
    """2 |P and R| / (|P| + |R|)."""
    return 2 * int((masks.prediction & masks.reference).sum()) / (masks.predicted + masks.wanted)


def nsd(masks: Masks) -> float:
    """Normalised surface distance: the share of both surfaces within the tolerance of the other one.

    Surface elements lie between voxel centres (Nikolov et al., arXiv 1809.04430). It is 0 if one mask is
    empty.
    """
    return masks.surfaces[0] if masks.predicted and masks.wanted else 0.0


def hd95_mm(masks: Masks) -> float:
    """The larger of the two directed 95th percentiles of the distances between boundary voxels.

    It is infinite if one mask is empty.
    """
    return masks.surfaces[1] if masks.predicted and masks.wanted else math.inf


def volume_error_percent(masks: Masks) -> float:
    """(predicted - reference) / reference, in percent; NaN for an empty reference."""
    return 100 * (masks.predicted - masks.wanted) / masks.wanted if masks.wanted else math.nan


# By their names in files. To add one, write a function of `Masks` and add it here.
METRICS: dict[str, Metric] = {
    "dice": Metric(dice, "Dice"),
    "nsd": Metric(nsd, "NSD"),
    "hd95_mm": Metric(hd95_mm, "HD95, mm", 2, "lowest"),
    "volume_error_percent": Metric(volume_error_percent, "volume, %", 1, "zero"),
    "volume_error_ml": Metric(lambda m: (m.predicted - m.wanted) * m.voxel_ml, best="zero"),
    "reference_ml": Metric(lambda m: m.wanted * m.voxel_ml, volume=True),
    "predicted_ml": Metric(lambda m: m.predicted * m.voxel_ml, volume=True),
}


def tabled() -> dict[str, Metric]:
    """The metrics shown in tables."""
    return {name: metric for name, metric in METRICS.items() if metric.heading is not None}


def compare(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    classes: Mapping[str, Sequence[int]],
    tolerance: float,
) -> dict[str, Scores]:
    """Compare two label maps, class by class.

    Only the bounding box of a class in both maps is processed, which is fast for small structures in large
    scans.

    Args:
        prediction: (X, Y, Z) label values, integers from 0.
        reference: (X, Y, Z).
        spacing: voxel size in mm along the arrays' axes.
        classes: label values by name (several values for a region).
        tolerance: of the normalised surface distance, mm.
    """
    boxes = [find_objects(labels) for labels in (prediction, reference)]
    scores = {}
    for name, values in classes.items():
        found = [box[v - 1] for box in boxes for v in values if v <= len(box) and box[v - 1] is not None]
        # For a class in neither map, compare empty arrays.
        box = _union(found) if found else (slice(0, 0),) * 3
        masks = [_mask(labels[box], values) for labels in (prediction, reference)]
        scores[name] = compare_masks(masks[0], masks[1], spacing, tolerance)
    return scores


def compare_masks(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float
) -> Scores:
    """Compare two masks, (X, Y, Z) bool, by each of `METRICS`."""
    masks = Masks(prediction, reference, spacing, tolerance)
    there = masks.predicted or masks.wanted
    return {name: m.of(masks) if there or m.volume else math.nan for name, m in METRICS.items()}


def _mask(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    return labels == values[0] if len(values) == 1 else np.isin(labels, list(values))


def _union(boxes: Sequence[Slices]) -> Slices:
    """The smallest box that contains all `boxes`."""
    x, y, z = (
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )
    return x, y, z
