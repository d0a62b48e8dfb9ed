"""How near a segmentation is to its reference: Dice, surface distances, volumes, class by class."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.ndimage import find_objects

from dae3d.evaluation.surfaces import surface_distances

Slices = tuple[slice, slice, slice]

# One class of one case: values by the names of `METRICS`.
Scores = dict[str, float]


@dataclass(frozen=True)
class Masks:
    """One class in two segmentations of a scan.

    Attributes:
        prediction, reference: (X, Y, Z) bool, which may touch the array's edges.
        spacing: voxel size in mm along the axes.
        tolerance: of the normalised surface distance, mm.
    """

    prediction: np.ndarray
    reference: np.ndarray
    spacing: Sequence[float]
    tolerance: float

    @cached_property
    def predicted(self) -> int:
        """Voxels of the prediction."""
        return int(self.prediction.sum())

    @cached_property
    def wanted(self) -> int:
        """Voxels of the reference."""
        return int(self.reference.sum())

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return math.prod(self.spacing) / 1000

    @cached_property
    def surfaces(self) -> tuple[float, float]:
        """`surface_distances`, of masks that are not empty."""
        return surface_distances(self.prediction, self.reference, self.spacing, self.tolerance)


@dataclass(frozen=True)
class Metric:
    """What two masks are compared by.

    Attributes:
        of: the value; of a class that is in neither mask it is not asked for and NaN, but for a `volume`.
        heading: what tables call it, with its unit; None keeps it to `metrics.csv` and `metrics.json`.
        decimals: shown.
        best: the value that an identical segmentation has: the highest, the lowest, or zero between both.
        volume: of one of the masks alone: no mean of it is taken.
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

    Surface elements lie between the voxels' centres (Nikolov et al., arXiv 1809.04430). Of a class that is in
    one mask alone it is 0.
    """
    return masks.surfaces[0] if masks.predicted and masks.wanted else 0.0


def hd95_mm(masks: Masks) -> float:
    """The larger of the two directed 95th percentiles of the distances between boundary voxels.

    Of a class that is in one mask alone it is infinite.
    """
    return masks.surfaces[1] if masks.predicted and masks.wanted else math.inf


def volume_error_percent(masks: Masks) -> float:
    """(predicted - reference) / reference; NaN where the reference has nothing."""
    return 100 * (masks.predicted - masks.wanted) / masks.wanted if masks.wanted else math.nan


# By their names in files. Another one is a function of `Masks` and a line.
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
    """Those of the metrics that tables show."""
    return {name: metric for name, metric in METRICS.items() if metric.heading is not None}


def compare(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    classes: Mapping[str, Sequence[int]],
    tolerance: float,
) -> dict[str, Scores]:
    """Compare two label maps, class by class.

    Only the box that holds a class in either map is looked at, so that small structures in large scans are
    quick.

    Args:
        prediction: (X, Y, Z) label values, integers from 0.
        reference: (X, Y, Z).
        spacing: voxel size in mm along the arrays' axes.
        classes: by name, the label values that make up the class (several for a region).
        tolerance: of the normalised surface distance, mm.
    """
    boxes = [find_objects(labels) for labels in (prediction, reference)]
    scores = {}
    for name, values in classes.items():
        found = [box[v - 1] for box in boxes for v in values if v <= len(box) and box[v - 1] is not None]
        # A class that is nowhere is compared in no voxel.
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
    """The smallest box that holds all of `boxes`."""
    x, y, z = (
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )
    return x, y, z
