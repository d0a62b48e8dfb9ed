"""Crops in their stored voxel type, scaled by the receiver: fewer bytes to transfer, and less work."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dae3d.scans.padding import background
from dae3d.store.boxes import Triple
from dae3d.store.intensity import Normalisation
from dae3d.store.scan import StoredScan

_COMPACT = ("int8", "uint8", "int16")


class PendingScaling(NamedTuple):
    """The scaling of stored voxels, in float32 and in this order.

    Add the intercept; replace values at or below `padding` by `background`; subtract `shift`; divide by
    `scale`; clip to [0, 1], or else set values to 0 that were 0 before `shift`.
    """

    intercept: float
    padding: float | None
    background: float
    normalisation: Normalisation


@dataclass(frozen=True)
class StoredCrop:
    """The part of a crop that is inside its scan, of any real type; it begins at voxel `start` of the crop.

    The rest is 0. `pending` is None if the voxels are already scaled.
    """

    voxels: np.ndarray
    start: Triple
    pending: PendingScaling | None


def pending_scaling(scan: StoredScan, normalisation: Normalisation) -> PendingScaling | None:
    """The scaling to be done by the receiver; None if it would not be exact, or would save no bytes."""
    exact = scan.slope == 1 and scan.intercept.is_integer() and abs(scan.intercept) < np.iinfo(np.int16).max
    if scan.dtype not in _COMPACT or not exact:
        return None
    return PendingScaling(scan.intercept, scan.statistics.padding, background(scan.modality), normalisation)
