"""Linear resampling of stacks with a tilted gantry or uneven slice distances onto a regular grid."""

from collections.abc import Sequence

import numpy as np

from dae3d.scans.dicom.header import Slice
from dae3d.scans.padding import BELOW_AIR
from dae3d.scans.readers import Volume

# HU. Below air, like the filling of scanners outside their field of view: nothing was imaged there.
PADDING = -2000.0
# Voxels: headers round positions, so a shift this close to a whole voxel needs no interpolation.
_SHIFT = 0.01
# Share of the slice distance: a slice this close is not interpolated, as in any even stack.
_NEAR = 0.1

_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def straightened(volume: Volume, slices: Sequence[Slice]) -> Volume:
    """Resample slices at their true positions onto a grid that spans them all.

    `slices` are in the order of the volume's last axis. Pixel size and number of slices stay; slice distances
    become even, and rows and columns are added for slices that are shifted sideways. CT becomes int16 HU, any
    other modality float32; voxels that no slice covers are `PADDING` in CT, else 0.
    """
    is_ct = slices[0].facts.modality == "CT"
    row, column = (volume.affine[:3, axis] / volume.spacing[axis] for axis in (0, 1))
    normal = np.cross(row, column)
    positions = np.array([one.position for one in slices]) * _LPS_TO_RAS
    places = (positions - positions[0]) @ np.stack([row, column, normal], axis=1)
    shifts, heights = places[:, :2] / volume.spacing[:2], places[:, 2]
    start = shifts.min(axis=0)
    shifts -= start
    shifts = np.where(np.abs(shifts - np.rint(shifts)) < _SHIFT, np.rint(shifts), shifts)
    extra = np.ceil(shifts.max(axis=0)).astype(int)
    even = np.linspace(heights[0], heights[-1], len(slices))

    def placed(k: int) -> np.ndarray:
        return _shifted(_plane(volume, k, is_ct), shifts[k], extra)

    rows_and_columns = np.array(volume.array.shape[:2]) + extra
    array = np.empty((*rows_and_columns, len(slices)), np.int16 if is_ct else np.float32, order="F")
    for k, height in enumerate(even):
        below = min(int(np.searchsorted(heights, height, side="right")) - 1, len(slices) - 2)
        weight = (height - heights[below]) / (heights[below + 1] - heights[below])
        if weight < _NEAR or weight > 1 - _NEAR:
            plane = placed(below + round(weight))
        else:
            plane = (1 - weight) * placed(below) + weight * placed(below + 1)
        filled = np.where(np.isnan(plane), PADDING if is_ct else 0.0, plane)
        array[:, :, k] = np.rint(filled) if is_ct else filled

    affine = volume.affine.copy()
    affine[:3, 2] = normal * (even[1] - even[0])
    affine[:3, 3] += volume.affine[:3, :2] @ start
    return Volume(array, affine)


def _plane(volume: Volume, k: int, is_ct: bool) -> np.ndarray:
    """Slice `k` in acquired units, (columns, rows), NaN where nothing was imaged."""
    plane = (volume.array[:, :, k] * np.float64(volume.slope) + volume.intercept).astype(np.float32)
    return np.where(plane <= BELOW_AIR, np.float32(np.nan), plane) if is_ct else plane


def _shifted(plane: np.ndarray, shift: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """The plane shifted by `shift` >= 0 voxels, with linear interpolation, and enlarged by `extra`."""
    for axis in (0, 1):
        whole, part = divmod(float(shift[axis]), 1)
        if part:
            # Voxel i is a mean of voxels i and i - 1; the first and last lack one of them.
            edge = np.full_like(plane.take([0], axis), np.nan)
            ahead, behind = np.concatenate([plane, edge], axis), np.concatenate([edge, plane], axis)
            plane = (1 - part) * ahead + part * behind
        widths = [(0, 0), (0, 0)]
        widths[axis] = (int(whole), int(extra[axis] - whole - (part > 0)))
        plane = np.pad(plane, widths, constant_values=np.nan)
    return plane
