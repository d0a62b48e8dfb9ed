"""How near a segmentation is to its reference: Dice, surface distances, volumes, class by class."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import find_objects

from dae3d.evaluation.surfaces import surface_distances

Box = tuple[slice, slice, slice]


class Scores(NamedTuple):
    """One class of one case; the fields' names are those of the metrics in the files that `evaluate` writes.

    A class that is in neither segmentation has NaN for all but the volumes. A class that is in only one has
    Dice and NSD 0 and an infinite distance; missing in the reference, its volume error in percent is NaN.

    Attributes:
        dice: 2 |P and R| / (|P| + |R|).
        nsd: normalised surface distance, the share of both surfaces that lies within the tolerance of the
            other one (Nikolov et al., arXiv 1809.04430); surface elements between the voxels' centres.
        hd95_mm: the larger of the two directed 95th percentiles of the distances between boundary voxels.
        volume_error_percent: (predicted - reference) / reference.
        volume_error_ml: predicted - reference.
        reference_ml: volume of the reference.
        predicted_ml: volume of the prediction.
    """

    dice: float
    nsd: float
    hd95_mm: float
    volume_error_percent: float
    volume_error_ml: float
    reference_ml: float
    predicted_ml: float


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
    """Compare two masks, (X, Y, Z) bool, which may touch the array's edges; lengths in mm."""
    voxel_ml = math.prod(spacing) / 1000
    predicted, wanted = int(prediction.sum()), int(reference.sum())
    volumes = (wanted * voxel_ml, predicted * voxel_ml)
    if not predicted and not wanted:
        return Scores(math.nan, math.nan, math.nan, math.nan, math.nan, *volumes)
    percent = 100 * (predicted - wanted) / wanted if wanted else math.nan
    error = (percent, (predicted - wanted) * voxel_ml)
    if not predicted or not wanted:
        return Scores(0.0, 0.0, math.inf, *error, *volumes)
    dice = 2 * int((prediction & reference).sum()) / (predicted + wanted)
    return Scores(dice, *surface_distances(prediction, reference, spacing, tolerance), *error, *volumes)


def _mask(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    return labels == values[0] if len(values) == 1 else np.isin(labels, list(values))


def _union(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all of `boxes`."""
    x, y, z = (
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )
    return x, y, z
