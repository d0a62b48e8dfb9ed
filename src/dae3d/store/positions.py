"""Positions of voxels of each class, sampled once per case, for crops around them."""

import hashlib

import numpy as np

from dae3d.store.statistics import Box

MOST_POSITIONS = 10_000


def draw_positions(
    label: np.ndarray, foreground: Box, classes: int, name: str
) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """Count the voxels of each class, and sample up to 10,000 of each, uniformly and without replacement.

    The sample depends only on the case's `name`. Background is sampled inside the foreground box, or anywhere
    if the box has none.

    Returns:
        The number of voxels of each class, and for each class an int32 array (n, 3) of sorted positions.
    """
    random = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    counts = _counts(label, classes)
    first, last = foreground
    inner = label[tuple(map(slice, first, last))]
    inner_counts = _counts(inner, 1)
    drawn = []
    for value in range(classes):
        if value == 0 and inner_counts.any():
            drawn.append(_drawn(inner, 0, inner_counts[:, 0], random) + np.array(first, np.int32))
        else:
            drawn.append(_drawn(label, value, counts[:, value], random))
    return tuple(counts.sum(axis=0).tolist()), drawn


def _counts(label: np.ndarray, classes: int) -> np.ndarray:
    """The number of voxels of each class in each (Y, Z) plane: (X, classes)."""
    return np.array([np.bincount(plane.ravel(), minlength=classes)[:classes] for plane in label])


def _drawn(label: np.ndarray, value: int, counts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Positions (n, 3) of a sample of the voxels of one value, with `counts` voxels in each plane."""
    total = int(counts.sum())
    ranks = np.sort(random.choice(total, min(total, MOST_POSITIONS), replace=False, shuffle=False))
    ends = np.cumsum(counts)
    planes = np.searchsorted(ends, ranks, side="right")
    positions = np.empty((len(ranks), 3), np.int32)
    positions[:, 0] = planes
    for plane in np.unique(planes):
        here = planes == plane
        places = np.flatnonzero(label[plane] == value)[ranks[here] - (ends[plane] - counts[plane])]
        positions[here, 1], positions[here, 2] = np.divmod(places, label.shape[2])
    return positions
