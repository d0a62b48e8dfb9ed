"""Statistics of a scan that intensity scaling and cropping need."""

import math
from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict

from dae3d.errors import ScanError
from dae3d.scans.padding import find_padding, imaged, imaged_planes, planes
from dae3d.scans.readers import Volume

Box = tuple[tuple[int, int, int], tuple[int, int, int]]

PERCENTILES = (0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5)
# Within these bounds, scaled intensities stay in the range of float32.
LARGEST, SMALLEST_RANGE = 1e30, 1e-30
_BINS = 256
# Share of the foreground voxels that may be outside each side of the foreground box: specks, not anatomy.
_SPECKS = 0.001
# Share of the 99th percentile above which a voxel counts as body in an emission image, in which only the
# hottest organs are foreground.
_BODY = 0.1


class Statistics(BaseModel):
    """Intensities of one scan in acquired units (HU for CT), and its foreground box.

    Voxels at or below `padding` were not imaged, and count only for `minimum` and `maximum`. `percentiles`
    are over all others, in the order of `PERCENTILES`; `mean` and `std` (of the population) over those that
    are not zero. `foreground_mean` and `foreground_std` are over those above Otsu's threshold, `body_mean`
    over those above a tenth of the 99th percentile; these three use intensities clipped to the outer
    percentiles in 256 bins. `foreground` is a half-open box of voxels: its first and last corner.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    minimum: float
    maximum: float
    padding: float | None = None
    percentiles: tuple[float, ...]
    mean: float
    std: float
    foreground_mean: float
    foreground_std: float
    body_mean: float
    foreground: Box

    def percentile(self, percent: float) -> float:
        """The intensity below which `percent` % of the voxels lie, for one of `PERCENTILES`."""
        return self.percentiles[PERCENTILES.index(percent)]


def measure(volume: Volume, modality: str = "") -> Statistics:
    """Measure a scan, with at most one more copy of its voxels in memory.

    Args:
        volume: finite voxels.
        modality: label, on which padding depends.

    Raises:
        ScanError: if all voxels have the same value, or are padding.
    """
    slope, intercept = volume.slope, volume.intercept
    minimum, maximum = _extremes(volume)
    _refuse_constant(minimum, maximum)
    padding = find_padding(volume, modality)
    array = imaged(volume, padding)
    low, high = _extremes(replace(volume, array=array))
    _refuse_constant(low, high)
    ranked = np.percentile(array, PERCENTILES, overwrite_input=array is not volume.array)
    # Interpolation and scaling commute; a negative slope reverses the order.
    percentiles = sorted(float(v) * slope + intercept for v in ranked)
    mean, std = _non_zero_mean_and_std(volume, padding)
    # In a map that is empty nearly everywhere the percentiles are equal.
    if distinguishable(percentiles[0], percentiles[-1]):
        low, high = percentiles[0], percentiles[-1]
    histogram = _Histogram(volume, padding, low, high)
    threshold = histogram.otsu_threshold()
    foreground_mean, foreground_std = histogram.mean_and_std(threshold)
    return Statistics(
        minimum=minimum,
        maximum=maximum,
        padding=padding,
        percentiles=tuple(percentiles),
        mean=mean,
        std=std,
        foreground_mean=foreground_mean,
        foreground_std=foreground_std,
        body_mean=histogram.mean_and_std(_BODY * percentiles[PERCENTILES.index(99.0)])[0],
        foreground=_foreground(volume, threshold),
    )


def refuse_non_finite(volume: Volume) -> None:
    """Raise ScanError if voxels are infinite, not a number, or beyond `LARGEST`."""
    # A comparison with NaN is false.
    if all(abs(extreme) <= LARGEST for extreme in _extremes(volume)):
        return
    with np.errstate(over="ignore"):
        bad = sum(plane.size - np.count_nonzero(np.abs(plane) <= LARGEST) for plane in planes(volume))
    raise ScanError(f"not finite: {bad} of {volume.array.size} voxels (NaN, infinite or beyond {LARGEST:g})")


def _extremes(volume: Volume) -> tuple[float, float]:
    ends = (float(v) * volume.slope + volume.intercept for v in (volume.array.min(), volume.array.max()))
    low, high = sorted(ends)
    return low, high


def _refuse_constant(minimum: float, maximum: float) -> None:
    if not distinguishable(minimum, maximum):
        raise ScanError(f"constant: every voxel is {minimum:g}")


def distinguishable(low: float, high: float) -> bool:
    """Whether `low` and `high` differ enough in float32 to be the bounds of a range."""
    return high - low >= SMALLEST_RANGE and bool(np.float32(low) < np.float32(high))


def _non_zero_mean_and_std(volume: Volume, padding: float | None) -> tuple[float, float]:
    count, total = 0, 0.0
    for plane in imaged_planes(volume, padding):
        count += int(np.count_nonzero(plane))
        total += float(plane.sum(dtype=np.float64))
    mean = total / count
    squares = sum(
        float(np.square(plane[plane != 0].astype(np.float64) - mean).sum())
        for plane in imaged_planes(volume, padding)
    )
    return mean, float(np.sqrt(squares / count))


class _Histogram:
    """Intensities clipped to [low, high], so that a few bright voxels (metal, vessels) take few bins."""

    def __init__(self, volume: Volume, padding: float | None, low: float, high: float) -> None:
        # Rounded as the intensities, which are float32.
        self.low, self.high = low, high = float(np.float32(low)), float(np.float32(high))
        self.width = (high - low) / _BINS
        counts = np.zeros(_BINS + 1, np.int64)
        for plane in imaged_planes(volume, padding):
            bins = (plane.clip(low, high) - low) * (1 / self.width)
            counts += np.bincount(bins.astype(np.intp).ravel(), minlength=_BINS + 1)
        # The upper bound belongs to the last bin.
        self.counts = counts[:_BINS]
        self.counts[-1] += counts[_BINS]

    def otsu_threshold(self) -> float:
        """Otsu's threshold (1979)."""
        below = np.cumsum(self.counts)[:-1]
        above = self.counts.sum() - below
        moments = np.cumsum(self.counts * np.arange(_BINS))
        mean_below = moments[:-1] / below.clip(1)
        mean_above = (moments[-1] - moments[:-1]) / above.clip(1)
        between = below.astype(np.float64) * above * np.square(mean_below - mean_above)
        # Below the upper bound even in float32, so that some voxels are above the threshold.
        last = float(np.nextafter(np.float32(self.high), np.float32(self.low)))
        return min(self.low + (int(np.argmax(between)) + 1) * self.width, last)

    def mean_and_std(self, threshold: float) -> tuple[float, float]:
        """Of the intensities above `threshold`, or of the highest bin if there are none."""
        highest = int(np.flatnonzero(self.counts)[-1])
        first = min(round((threshold - self.low) / self.width), highest)
        counts = self.counts[max(first, 0) :]
        middles = np.arange(_BINS - len(counts), _BINS) + 0.5
        mean = float(np.average(middles, weights=counts))
        variance = float(np.average(np.square(middles - mean), weights=counts))
        return self.low + mean * self.width, math.sqrt(variance) * self.width


def _foreground(volume: Volume, threshold: float) -> Box:
    """The box around the voxels above `threshold`, without the outermost 0.1 % on each side."""
    first, second, third = (np.zeros(n, np.int64) for n in volume.array.shape)
    for x, plane in enumerate(planes(volume)):
        mask = plane > threshold
        first[x] = np.count_nonzero(mask)
        second += mask.sum(axis=1)
        third += mask.sum(axis=0)
    sides = [_bulk(profile) for profile in (first, second, third)]
    (x0, x1), (y0, y1), (z0, z1) = sides
    return (x0, y0, z0), (x1, y1, z1)


def _bulk(profile: np.ndarray) -> tuple[int, int]:
    share = np.cumsum(profile) / profile.sum()
    start = int(np.searchsorted(share, _SPECKS, side="right"))
    stop = int(np.searchsorted(share, 1 - _SPECKS, side="left")) + 1
    return start, stop
