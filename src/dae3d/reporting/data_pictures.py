"""Thumbnails of scans: three slices through the middle of the foreground, and a histogram."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dae3d.drawing.pictures import PLANES, slice_at
from dae3d.store.boxes import Read, Triple
from dae3d.store.intensity import IntensityWindow, scaling
from dae3d.store.statistics import Statistics

SIDE = 160  # pixels, side of the square of a slice
WIDTH, HEIGHT = 120, 28  # size of the histogram in SVG units
_BINS = 60
_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Drawn:
    """The picture as source of an <img>, the histogram as an SVG path, and the intensity range of both."""

    picture: str
    histogram: str
    low: float
    high: float


def mid_planes(read: Read, shape: Triple, statistics: Statistics) -> list[np.ndarray]:
    """The axial, coronal and sagittal slice through the middle of the foreground, each (rows, columns).

    Radiological convention: the patient's right on the left, anterior and superior up.

    Args:
        read: reads boxes of a scan with RAS axes.
        shape: shape of the scan.
        statistics: statistics of the scan.
    """
    first, last = statistics.foreground
    planes = []
    for _, axis, _ in PLANES:
        start, size = [0, 0, 0], list(shape)
        start[axis], size[axis] = (first[axis] + last[axis] - 1) // 2, 1
        box = read((start[0], start[1], start[2]), (size[0], size[1], size[2]))
        planes.append(slice_at(box, axis, 0))
    return planes


def grey_levels(planes: Sequence[np.ndarray]) -> int | None:
    """The number of distinct values; None if not all are integers."""
    values = np.unique(np.concatenate([np.unique(plane) for plane in planes]))
    return len(values) if np.array_equal(values, np.rint(values)) else None


def draw_slices(
    planes: Sequence[np.ndarray], spacing: Sequence[float], modality: str, statistics: Statistics
) -> Drawn:
    """Draw the slices of `mid_planes` side by side with physical proportions.

    Grey scale and histogram cover the window of the modality, or else the 0.5th to the 99.5th percentile.

    Args:
        planes: axial, coronal, sagittal.
        spacing: voxel size of the scan in mm, along X, Y, Z.
        modality: modality of the scan.
        statistics: statistics of the scan.
    """
    low, high = _bounds(modality, statistics)
    sides = [(spacing[1], spacing[0]), (spacing[2], spacing[0]), (spacing[2], spacing[1])]
    heights = [len(plane) * rows for plane, (rows, _) in zip(planes, sides, strict=True)]
    widths = [plane.shape[1] * columns for plane, (_, columns) in zip(planes, sides, strict=True)]
    scale = SIDE / max(*heights, *widths)  # pixels per mm
    sheet = np.zeros((SIDE, 3 * SIDE), np.uint8)
    for number, plane in enumerate(planes):
        grey = (np.clip((plane - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        wide = max(1, min(SIDE, round(widths[number] * scale)))
        tall = max(1, min(SIDE, round(heights[number] * scale)))
        # A box filter averages when shrinking and keeps enlarged voxels sharp.
        small = np.asarray(Image.fromarray(grey).resize((wide, tall), Image.Resampling.BOX))
        top, left = (SIDE - tall) // 2, number * SIDE + (SIDE - wide) // 2
        sheet[top : top + tall, left : left + wide] = small
    return Drawn(_jpeg(sheet), _histogram(planes, low, high, statistics.padding), low, high)


def _bounds(modality: str, statistics: Statistics) -> tuple[float, float]:
    rule = scaling(modality)
    if isinstance(rule, IntensityWindow):
        return rule.low, rule.high
    low, high = statistics.percentiles[0], statistics.percentiles[-1]
    return (low, high) if low < high else (statistics.minimum, statistics.maximum)


def _histogram(planes: Sequence[np.ndarray], low: float, high: float, padding: float | None) -> str:
    """Bars as one path, with square roots of counts so that tissue is visible next to the background."""
    values = np.concatenate([plane.ravel() for plane in planes])
    imaged = values if padding is None else values[values > padding]
    # In float64, bins have a positive width even for nearly constant values.
    counts, _ = np.histogram(np.clip(imaged.astype(np.float64), low, high), _BINS, (low, high))
    roots = np.sqrt(counts)
    # Clip the highest bins: a constant background would flatten all others.
    top = max(1.0, float(np.sort(roots)[-3]))
    steps = HEIGHT - np.minimum(roots / top, 1) * HEIGHT
    width = WIDTH / _BINS
    corners = "".join(f"V{y:.0f}H{(place + 1) * width:g}" for place, y in enumerate(steps))
    return f"M0,{HEIGHT}{corners}V{HEIGHT}Z"


def _jpeg(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
