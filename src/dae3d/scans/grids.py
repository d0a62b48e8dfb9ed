"""Voxel grids of scans, and whether two of them are the same."""

from itertools import product
from typing import NamedTuple

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

# Share of a voxel by which the same grid may differ between files: headers are rounded in many ways.
_SAME_PLACE = 0.1


class Grid(NamedTuple):
    """The voxels (X, Y, Z) of an array; `affine` (4, 4) maps their indices to RAS+ mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the array's axes."""
        x, y, z = voxel_sizes(self.affine)
        return float(x), float(y), float(z)


def grid_difference(grid: Grid, reference: Grid) -> str | None:
    """How `grid` differs from `reference`, with both values; None if it does not.

    Grids of one shape are the same if no voxel differs by more than a tenth of the smallest voxel size.
    """
    if grid.shape != reference.shape:
        return f"its shape is {_times(grid.shape)}, not {_times(reference.shape)}"
    corners = np.array(list(product(*((0, n - 1) for n in reference.shape))))
    apart = apply_affine(grid.affine, corners) - apply_affine(reference.affine, corners)
    distance = float(np.linalg.norm(apart, axis=1).max())
    if distance <= _SAME_PLACE * min(reference.spacing):
        return None
    return (
        f"its affine is {_rows(grid.affine)}, not {_rows(reference.affine)}: "
        f"voxels are up to {distance:.3g} mm apart"
    )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _rows(affine: np.ndarray) -> str:
    return "[" + "; ".join(" ".join(f"{value:.5g}" for value in row) for row in affine[:3]) + "]"
