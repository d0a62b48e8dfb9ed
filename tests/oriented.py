"""Affines of scans in any axes, for tests of where things are."""

import numpy as np
from hypothesis import strategies as st

DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
# All 48 orders and directions of the axes, such as ("L", "P", "S").
ORDERS = st.permutations(["RL", "AP", "SI"]).flatmap(lambda axes: st.tuples(*map(st.sampled_from, axes)))


def affine_of(order, spacing, tilt=0.0, shear=0.0, origin=(-41.5, 12.25, 7)):
    """Axes to `order`, voxels of `spacing` mm, turned by `tilt` about two axes, sheared as by a gantry."""
    axes = np.zeros((3, 3))
    for column, letter in enumerate(order):
        row, sign = DIRECTIONS[letter]
        axes[row, column] = sign
    c, s = np.cos(tilt), np.sin(tilt)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    lean = np.array([[1, 0, 0], [0, 1, shear], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ lean @ axes * np.array(spacing)
    affine[:3, 3] = origin
    return affine
