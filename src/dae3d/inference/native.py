"""From the network's grid back to the scan's own: the inverse of every spatial step of preparing a scan.

Both grids have an affine, so one map between voxel indices undoes cropping, resampling and reorienting at
once. Preparing a scan never turns its axes, only swaps and flips them, so each axis is mapped for itself.
Voxels of the scan that the network has not seen, for they were cropped away, are background.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dae3d.inference.sliding import Slab
from dae3d.scans.grids import Grid

# A grid's outermost voxels reach this far, in voxels, beyond their own centres; a little more for rounding.
_HALF_A_VOXEL = 0.5 + 1e-3
_CHUNK_VALUES = 2**25

Slices = tuple[slice, slice, slice]


def is_part_of(native: Grid, grid: Grid) -> bool:
    """Whether every voxel of `native` inside `grid` is one of its voxels, so that nothing is interpolated."""
    _, places = _parallel(native, grid)
    return all(np.allclose(along, np.rint(along), rtol=0, atol=1e-3) for along in places)


def nearest_classes(classes: np.ndarray, grid: Grid, native: Grid) -> np.ndarray:
    """Each voxel of `native` with the class of the nearest voxel of `grid`.

    Args:
        classes: (X, Y, Z) uint8 on `grid`.

    Returns:
        uint8 of the native shape, 0 outside `grid`.
    """
    result = np.zeros(native.shape, np.uint8)
    axes, places = _parallel(native, grid)
    box = _inside(axes, places, grid)
    nearest = [
        np.rint(along[side]).astype(np.intp).clip(0, grid.shape[axis] - 1)
        for axis, along, side in zip(axes, places, box, strict=True)
    ]
    result[box] = classes.transpose(axes)[np.ix_(*nearest)]
    return result


def interpolate_slabs(
    slabs: Iterable[Slab],
    grid: Grid,
    native: Grid,
    classes: np.ndarray,
    probabilities: np.ndarray | None = None,
) -> None:
    """Interpolate class probabilities linearly at the voxels of `native`, and take the most probable class.

    One plane of a slab is kept until the next one comes; nothing else is held but the results.

    Args:
        slabs: of `grid`, along one axis, in order and without gaps.
        classes: (X, Y, Z) uint8 of the native shape, to be filled; what lies outside `grid` stays.
        probabilities: (K, X, Y, Z) float32 of the native shape, to be filled likewise.
    """
    axes, places = _parallel(native, grid)
    box = _inside(axes, places, grid)
    kept: Tensor | None = None
    for slab in slabs:
        along = slab.axis + 1
        held = slab.probabilities if kept is None else torch.cat([kept, slab.probabilities], dim=along)
        kept = slab.probabilities.narrow(along, slab.stop - slab.start - 1, 1).clone()
        first = slab.stop - held.shape[along]
        # A voxel is taken once: between the first and the last plane held, or beyond the grid's own ends.
        low = first if first > 0 else -np.inf
        high = slab.stop - 1 if slab.stop < grid.shape[slab.axis] else np.inf
        across = axes.index(slab.axis)
        between = (places[across] >= low) & (places[across] < high)
        held = held.permute(0, *(axis + 1 for axis in axes))
        for part in _parts(box, across, between, len(held)):
            local = [
                p[side] - first * (a == slab.axis) for a, p, side in zip(axes, places, part, strict=True)
            ]
            _fill(part, _interpolate(held, local), classes, probabilities)
        del held  # before the next slab is made


def _fill(part: Slices, values: Tensor, classes: np.ndarray, probabilities: np.ndarray | None) -> None:
    classes[part] = values.argmax(dim=0).byte().cpu().numpy()
    if probabilities is not None:
        probabilities[(slice(None), *part)] = values.cpu().numpy()


def _parallel(native: Grid, grid: Grid) -> tuple[list[int], list[np.ndarray]]:
    """For each native axis, the parallel axis of the grid, and the native voxels' places on it, in voxels."""
    to_grid = np.linalg.solve(grid.affine, native.affine)
    axes = np.abs(to_grid[:3, :3]).argmax(axis=0).tolist()
    middle = (np.array(native.shape) - 1) / 2
    # Of axes that are parallel but for rounding, the middle of the scan is exact.
    centre = to_grid[:3, :3] @ middle + to_grid[:3, 3]
    places = [
        centre[axis] + to_grid[axis, own] * (np.arange(side) - middle[own])
        for own, (axis, side) in enumerate(zip(axes, native.shape, strict=True))
    ]
    return axes, places


def _inside(axes: Sequence[int], places: Sequence[np.ndarray], grid: Grid) -> Slices:
    """The native voxels that lie inside the grid."""
    x, y, z = (
        _range((along >= -_HALF_A_VOXEL) & (along <= grid.shape[axis] - 1 + _HALF_A_VOXEL))
        for axis, along in zip(axes, places, strict=True)
    )
    return x, y, z


def _range(chosen: np.ndarray) -> slice:
    """A run of true values as a slice."""
    numbers = np.flatnonzero(chosen)
    return slice(int(numbers[0]), int(numbers[-1]) + 1) if len(numbers) else slice(0, 0)


def _parts(box: Slices, across: int, between: np.ndarray, values: int) -> Iterator[Slices]:
    """The planes of a box that lie `between`, a few at a time, for memory to hold `values` a voxel."""
    area = np.prod([side.stop - side.start for axis, side in enumerate(box) if axis != across])
    step = max(1, _CHUNK_VALUES // max(1, values * int(area)))
    planes = _range(between)
    start, stop = max(planes.start, box[across].start), min(planes.stop, box[across].stop)
    for first in range(start, stop, step):
        x, y, z = (
            side if axis != across else slice(first, min(first + step, stop)) for axis, side in enumerate(box)
        )
        yield x, y, z


def _interpolate(held: Tensor, places: Sequence[np.ndarray]) -> Tensor:
    """Linear interpolation of (K, X, Y, Z) at indices along each axis; beyond its ends the border goes on."""
    relative = [
        # From -1 to 1, as PyTorch wants it, and with the axes in reverse.
        torch.from_numpy(along * (2 / max(side - 1, 1)) - 1).to(held.device, torch.float32)
        for along, side in zip(places, held.shape[1:], strict=True)
    ]
    points = torch.stack(torch.meshgrid(relative, indexing="ij")[::-1], dim=-1)
    return torch.nn.functional.grid_sample(
        held[None], points[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0]
