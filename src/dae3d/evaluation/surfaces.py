"""How far the surfaces of two masks lie apart: normalised surface distance and Hausdorff distance.

Both are MONAI's, so that figures can be compared with those of others, without the time that its import and
its tensors take. The first has elements of surface, each between the centres of eight voxels (Nikolov et al.,
arXiv 1809.04430); the second has voxels.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from scipy.spatial import KDTree

Sides = tuple[float, float, float]

# Voxel sizes that come out of a rotated affine are off in the seventh digit, and surfaces that are one voxel
# apart would fall on either side of a tolerance of one voxel.
_ROUNDING = 1e-5

# Elements of surface by which of eight voxels are set, as area vectors in eighths of a voxel's faces; those
# of parallel triangles are added up. Other patterns are these turned, mirrored, or set where these are not.
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
    """Compare the surfaces of two masks that are not empty; they are closed at the arrays' edges.

    Args:
        prediction: (X, Y, Z) bool.
        reference: (X, Y, Z) bool.
        spacing: voxel size in mm along the arrays' axes.
        tolerance: in mm; what lies exactly as far apart is within.

    Returns:
        The share of both surfaces that lies within the tolerance of the other one, and the larger of the two
        directed 95th percentiles of the distances between boundary voxels, mm.
    """
    x, y, z = map(float, spacing)
    # Walks along the last axis are quick where it is the inner one in memory.
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
    """Which voxels are set in each cube of 2 x 2 x 2: bits, the first voxel's the highest."""
    voxels = mask.view(np.uint8)
    pairs = voxels[:, :, :-1] << 1 | voxels[:, :, 1:]
    fours = pairs[:, :-1] << 2 | pairs[:, 1:]
    return fours[:-1] << 4 | fours[1:]


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Voxels that have a face towards the outside, of a mask with a margin, which is left out."""
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
    """From each point set in an array to the nearest one in the other, both ways; inf from the limit on."""
    shared = (first & second).ravel()
    places = [np.flatnonzero(points) for points in (first, second)]
    positions = [np.stack(np.unravel_index(place, first.shape), 1) * spacing for place in places]

    def way(here: int, there: int) -> np.ndarray:
        # Most points of good segmentations are in both, and need no search.
        alone = ~shared[places[here]]
        distances = np.zeros(len(alone))
        if alone.any():
            tree = KDTree(positions[there], leafsize=32)  # the quickest of 10, 16, 32 and 64
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
