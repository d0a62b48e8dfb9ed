"""Positions of the windows of a scan."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from dae3d.store.boxes import Triple
from dae3d.store.statistics import Box


def window_corners(shape: Sequence[int], foreground: Box, roi: Triple, overlap: float) -> list[Triple]:
    """The first voxels of evenly spaced windows that cover the foreground box of a scan.

    Along an axis where the box is smaller than a window, one window is centred on the box and shifted into
    the scan; where the scan is smaller than a window, one window is centred on the scan and extends beyond it
    on both sides.
    """
    axes = []
    for side, size, start, stop in zip(shape, roi, *foreground, strict=True):
        if side < size:
            axes.append([(side - size) // 2])
        elif stop - start <= size:
            axes.append([min(max((start + stop - size) // 2, 0), side - size)])
        else:
            step = max(1, int(size * (1 - overlap)))
            count = math.ceil((stop - start - size) / step) + 1
            axes.append(np.linspace(start, stop - size, count).round().astype(int).tolist())
    x, y, z = axes
    return list(itertools.product(x, y, z))
