"""Crops as they are stored, which whoever uses them scales: fewer bytes to hand on, and less to do."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dae3d.scans.padding import background
from dae3d.store.boxes import Triple
from dae3d.store.intensity import Normalisation
from dae3d.store.scan import StoredScan

_NATIVE = ("int8", "uint8", "int16")


class PendingScaling(NamedTuple):
    """What is left to do to stored voxels, in this order, in float32.

    Add the intercept; replace what is at or below `padding` by `background`; subtract `shift`; divide by
    `scale`; clip to [0, 1], or else, what was 0 before `shift` is 0 again.
    """

    intercept: float
    padding: float | None
    background: float
    normalisation: Normalisation


@dataclass(frozen=True)
class StoredCrop:
    """The voxels of a crop that are inside its scan, of any real type, from voxel `start` of the crop on.

    What lies beyond is 0. `pending` is None where voxels are scaled already.
    """

    voxels: np.ndarray
    start: Triple
    pending: PendingScaling | None


def pending_scaling(scan: StoredScan, normalisation: Normalisation) -> PendingScaling | None:
    """How the voxels of a scan are scaled elsewhere; None where that would not be exact, or save no bytes."""
    exact = scan.slope == 1 and scan.intercept.is_integer() and abs(scan.intercept) < np.iinfo(np.int16).max
    if scan.dtype not in _NATIVE or not exact:
        return None
    return PendingScaling(scan.intercept, scan.statistics.padding, background(scan.modality), normalisation)
