"""Resample predictions from the network's grid to the scan's original grid.

Both grids have an affine, so one map between voxel indices undoes cropping, resampling and reorienting at
once. Preparing a scan only swaps and flips its axes, so each axis is mapped independently. Voxels that were
cropped away before prediction become background.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dae3d.inference.sliding import Slab
from dae3d.scans.grids import Grid

# The outermost voxels extend half a voxel beyond their centres; the rest is a margin for rounding.
_HALF_A_VOXEL = 0.5 + 1e-3
_CHUNK_VALUES = 2**25

Slices = tuple[slice, slice, slice]


def is_part_of(original: Grid, grid: Grid) -> bool:
    """Whether all voxels of `original` inside `grid` coincide with voxels of `grid` (no interpolation)."""
    _, places = _parallel(original, grid)
    return all(np.allclose(along, np.rint(along), rtol=0, atol=1e-3) for along in places)


def nearest_classes(classes: np.ndarray, grid: Grid, original: Grid) -> np.ndarray:
    """Give each voxel of `original` the class of the nearest voxel of `grid`.

    Args:
        classes: (X, Y, Z) uint8 on `grid`.

    Returns:
        (X, Y, Z) uint8 of the shape of `original`, 0 outside `grid`.
    """
    result = np.zeros(original.shape, np.uint8)
    axes, places = _parallel(original, grid)
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
    original: Grid,
    classes: np.ndarray,
    probabilities: np.ndarray | None = None,
) -> None:
    """Interpolate class probabilities linearly at the voxels of `original`; take the most probable class.

    Only the last plane of a slab is kept until the next slab arrives.

    Args:
        slabs: of `grid`, along one axis, in order and without gaps.
        classes: output, (X, Y, Z) uint8 of the shape of `original`; voxels outside `grid` are left unchanged.
        probabilities: optional output, (K, X, Y, Z) float32 of the shape of `original`; filled likewise.
    """
    axes, places = _parallel(original, grid)
    box = _inside(axes, places, grid)
    kept: Tensor | None = None
    for slab in slabs:
        along = slab.axis + 1
        held = slab.probabilities if kept is None else torch.cat([kept, slab.probabilities], dim=along)
        kept = slab.probabilities.narrow(along, slab.stop - slab.start - 1, 1).clone()
        first = slab.stop - held.shape[along]
        # Each voxel is handled once: between the first and last plane held, or beyond the ends of the grid.
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
        del held  # free it before the next slab is computed


def _fill(part: Slices, values: Tensor, classes: np.ndarray, probabilities: np.ndarray | None) -> None:
    classes[part] = values.argmax(dim=0).byte().cpu().numpy()
    if probabilities is not None:
        probabilities[(slice(None), *part)] = values.cpu().numpy()


def _parallel(original: Grid, grid: Grid) -> tuple[list[int], list[np.ndarray]]:
    """For each axis of `original`: the parallel axis of `grid`, and the voxel coordinates along it."""
    to_grid = np.linalg.solve(grid.affine, original.affine)
    axes = np.abs(to_grid[:3, :3]).argmax(axis=0).tolist()
    middle = (np.array(original.shape) - 1) / 2
    # Where axes are parallel only up to rounding, the middle of the scan is exact.
    centre = to_grid[:3, :3] @ middle + to_grid[:3, 3]
    places = [
        centre[axis] + to_grid[axis, own] * (np.arange(side) - middle[own])
        for own, (axis, side) in enumerate(zip(axes, original.shape, strict=True))
    ]
    return axes, places


def _inside(axes: Sequence[int], places: Sequence[np.ndarray], grid: Grid) -> Slices:
    """The voxels of the original grid that lie inside `grid`."""
    x, y, z = (
        _range((along >= -_HALF_A_VOXEL) & (along <= grid.shape[axis] - 1 + _HALF_A_VOXEL))
        for axis, along in zip(axes, places, strict=True)
    )
    return x, y, z


def _range(chosen: np.ndarray) -> slice:
    """The slice of a contiguous run of true values."""
    numbers = np.flatnonzero(chosen)
    return slice(int(numbers[0]), int(numbers[-1]) + 1) if len(numbers) else slice(0, 0)


def _parts(box: Slices, across: int, between: np.ndarray, values: int) -> Iterator[Slices]:
    """The planes of `box` where `between` is true, few enough at a time to hold `values` per voxel."""
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
    """Interpolate (K, X, Y, Z) linearly at coordinates along each axis; borders are replicated."""
    relative = [
        # grid_sample expects coordinates in [-1, 1], last axis first.
        torch.from_numpy(along * (2 / max(side - 1, 1)) - 1).to(held.device, torch.float32)
        for along, side in zip(places, held.shape[1:], strict=True)
    ]
    points = torch.stack(torch.meshgrid(relative, indexing="ij")[::-1], dim=-1)
    return torch.nn.functional.grid_sample(
        held[None], points[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0]
