"""Strides and kernels of a U-Net from the shape and spacing of its crops, by nnU-Net's rule.

Source: `get_pool_and_conv_props` of nnU-Net (Isensee et al., Nature Methods 2021, supplement).
"""

from collections.abc import Sequence
from typing import NamedTuple

from dae3d.store.boxes import Triple

_LEAST = 4  # voxels of the smallest feature map along each axis
_SIMILAR = 2  # spacings that differ by a smaller factor are treated alike


class Topology(NamedTuple):
    """Of each stage, the finest first: its stride against the one before, and the sides of its kernels."""

    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]


def topology(roi: Triple, spacing: Sequence[float]) -> Topology:
    """Strides and kernels for crops of `roi` voxels of `spacing` mm.

    A stage halves the axes whose spacing is below twice the smallest, down to 4 voxels. An axis has kernels
    of a single voxel until its spacing is below twice the smallest.
    """
    size, mm = [float(side) for side in roi], list(spacing)
    strides, kernels = [(1, 1, 1)], []
    kernel = [1, 1, 1]
    while halved := _halved(size, mm):
        kernel = [3 if side / min(mm) < _SIMILAR else k for side, k in zip(mm, kernel, strict=True)]
        kernels.append(_triple(kernel))
        strides.append(_triple([2 if axis in halved else 1 for axis in range(3)]))
        for axis in halved:
            mm[axis] *= 2
            size[axis] = -(-size[axis] // 2)
    return Topology(tuple(strides), (*kernels, (3, 3, 3)))


def _halved(size: list[float], mm: list[float]) -> list[int]:
    """The axes that the next stage halves."""
    long = [axis for axis in range(3) if size[axis] >= 2 * _LEAST]
    if not long:
        return []
    finest = min(mm[axis] for axis in long)
    alike = [axis for axis in long if mm[axis] / finest < _SIMILAR]
    if len(alike) == 1 and size[alike[0]] < 3 * _LEAST:
        return []
    return alike


def _triple(values: Sequence[int]) -> Triple:
    x, y, z = values
    return x, y, z
