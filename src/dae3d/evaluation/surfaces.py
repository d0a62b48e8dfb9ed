"""Surface distances between two masks: normalised surface distance and Hausdorff distance.

The results equal those of MONAI, for comparability with published results, without the cost of its import and
tensors. The first uses surface elements between the centres of eight voxels (Nikolov et al., arXiv
1809.04430); the second uses boundary voxels.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from scipy.spatial import KDTree

Sides = tuple[float, float, float]

# Voxel sizes computed from a rotated affine have rounding errors in the seventh digit. Without this margin,
# surfaces one voxel apart could fall on either side of a tolerance of one voxel.
_ROUNDING = 1e-5

# Surface elements by the pattern of set voxels in a 2 x 2 x 2 cube, as area vectors in eighths of voxel
# faces; parallel triangles are summed. All other patterns are rotations, mirror images or complements of
# these.
_ELEMENTS: dict[int, list[tuple[int, int, int]]] = {
    0b00000000: [],
    0b00000001: [(1, 1, 1)],
    0b00000011: [(4, 4, 0)],
    0b00000110: [(2, 2, 2)],
    0b00000111: [(3, 3, 3), (4, 0, 0)],
    0b00001111: [(8, 0, 0)],
    0b00010110: [(3, 3, 3)],
    0b00010111: [(6, 6, 6)],
    0b00011000: [(2, 2, 2)],
    0b00011001: [(1, 1, 1), (0, 4, 4)],
    0b00011011: [(4, 4, 4), (0, 2, 2), (2, 0, 2)],
    0b00011110: [(4, 4, 4), (4, 0, 0)],
    0b00111100: [(8, 8, 0)],
    0b01101001: [(4, 4, 4)],
}


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """Compare the surfaces of two non-empty masks; surfaces are closed at the edges of the arrays.

    Args:
        prediction: (X, Y, Z) bool.
        reference: (X, Y, Z) bool.
        spacing: voxel size in mm along the arrays' axes.
        tolerance: in mm, inclusive.

    Returns:
        The share of both surfaces within the tolerance of the other one, and the larger of the two directed
        95th percentiles of distances between boundary voxels in mm.
    """
    x, y, z = map(float, spacing)
    # Operations along the last axis are fast if it is contiguous in memory.
    masks = [np.pad(np.ascontiguousarray(mask), 1) for mask in (prediction, reference)]
    return _within(masks, (x, y, z), tolerance * (1 + _ROUNDING)), _apart(masks, (x, y, z))


def _within(masks: Sequence[np.ndarray], spacing: Sides, limit: float) -> float:
    codes = [_codes(mask) for mask in masks]
    first, second = surfaces = [(code != 0) & (code != 255) for code in codes]
    areas = [element_areas(spacing)[code[surface]] for code, surface in zip(codes, surfaces, strict=True)]
    distances = _distances(first, second, spacing, limit)
    near = [area[way <= limit].sum() for area, way in zip(areas, distances, strict=True)]
    return float(sum(near) / sum(area.sum() for area in areas))


def _apart(masks: Sequence[np.ndarray], spacing: Sides) -> float:
    first, second = (_boundary(mask) for mask in masks)
    return max(float(np.percentile(way, 95)) for way in _distances(first, second, spacing))


def _codes(mask: np.ndarray) -> np.ndarray:
    """The pattern of set voxels in each 2 x 2 x 2 cube as bits, the first voxel highest."""
    voxels = mask.view(np.uint8)
    pairs = voxels[:, :, :-1] << 1 | voxels[:, :, 1:]
    fours = pairs[:, :-1] << 2 | pairs[:, 1:]
    return fours[:-1] << 4 | fours[1:]


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Voxels with a face to the outside; the mask has a margin of one voxel, which is removed."""
    core = mask[1:-1, 1:-1, 1:-1]
    inside = mask[:-2, 1:-1, 1:-1] & mask[2:, 1:-1, 1:-1]
    inside &= mask[1:-1, :-2, 1:-1]
    inside &= mask[1:-1, 2:, 1:-1]
    inside &= mask[1:-1, 1:-1, :-2]
    inside &= mask[1:-1, 1:-1, 2:]
    return core & ~inside


def _distances(
    first: np.ndarray, second: np.ndarray, spacing: Sides, limit: float = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Distance from each set point to the nearest one in the other array, both ways; inf beyond `limit`."""
    shared = (first & second).ravel()
    places = [np.flatnonzero(points) for points in (first, second)]
    positions = [np.stack(np.unravel_index(place, first.shape), 1) * spacing for place in places]

    def way(here: int, there: int) -> np.ndarray:
        # For good segmentations most points are in both arrays and need no search.
        alone = ~shared[places[here]]
        distances = np.zeros(len(alone))
        if alone.any():
            tree = KDTree(positions[there], leafsize=32)  # fastest of 10, 16, 32 and 64
            distances[alone] = tree.query(positions[here][alone], distance_upper_bound=limit)[0]
        return distances

    return way(0, 1), way(1, 0)


@lru_cache
def element_areas(spacing: Sides) -> np.ndarray:
    """Area of the surface element of each of the 256 patterns of eight voxels, mm^2."""
    x, y, z = spacing
    faces = np.array([y * z, x * z, x * y]) / 8
    areas = np.zeros(256)
    corners = list(product((0, 1), repeat=3))
    for code, vectors in _ELEMENTS.items():
        for axes, mirrored in product(permutations(range(3)), corners):
            turned = 0
            for bit, corner in enumerate(corners):
                if code << bit & 128:
                    a, b, c = (corner[axis] ^ flip for axis, flip in zip(axes, mirrored, strict=True))
                    turned |= 128 >> (4 * a + 2 * b + c)
            area = sum(np.linalg.norm(np.take(vector, axes) * faces) for vector in vectors)
            areas[[turned, 255 - turned]] = area
    return areas
