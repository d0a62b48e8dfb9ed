"""What a scan's voxels are like as a whole: the numbers that intensity scaling and cropping need."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict

from dae3d.errors import ScanError
from dae3d.scans.readers import Volume

Box = tuple[tuple[int, int, int], tuple[int, int, int]]

PERCENTILES = (0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5)
_HISTOGRAM_BINS = 256
# Share of the foreground voxels that may lie beyond each side of the foreground box: specks, not anatomy.
_SPECKS = 0.001


class Statistics(BaseModel):
    """Intensities of one scan in acquired units (HU for CT), and where its foreground lies.

    `percentiles` are over all voxels, in the order of `PERCENTILES`; `mean` and `std` (of the population) are
    over the voxels that are not zero; `foreground` is a half-open box of voxels, its first and last corner.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    minimum: float
    maximum: float
    percentiles: tuple[float, ...]
    mean: float
    std: float
    foreground: Box

    def percentile(self, percent: float) -> float:
        """The intensity below which `percent` % of the voxels lie, for one of `PERCENTILES`."""
        return self.percentiles[PERCENTILES.index(percent)]


def planes(volume: Volume) -> Iterator[np.ndarray]:
    """The intensities of one (Y, Z) plane after the other, float32, so that a whole copy is never made."""
    for plane in volume.array:
        yield replace(volume, array=plane).intensities()


def measure(volume: Volume) -> Statistics:
    """Measure a scan, holding at most one more copy of its voxels.

    Raises:
        ScanError: where all voxels are the same.
    """
    array, slope, intercept = volume.array, volume.slope, volume.intercept
    minimum, maximum = sorted(float(v) * slope + intercept for v in (array.min(), array.max()))
    if minimum == maximum:
        raise ScanError(f"constant: every voxel is {minimum:g}")
    # Interpolating and scaling commute; a negative slope reverses the order.
    percentiles = sorted(float(v) * slope + intercept for v in np.percentile(array, PERCENTILES))
    mean, std = _non_zero_mean_and_std(volume)
    return Statistics(
        minimum=minimum,
        maximum=maximum,
        percentiles=tuple(percentiles),
        mean=mean,
        std=std,
        foreground=_foreground(volume, _otsu_threshold(volume, percentiles[0], percentiles[-1])),
    )


def refuse_non_finite(volume: Volume) -> None:
    """Raise ScanError, with their number, where voxels are infinite or not a number."""
    bad = sum(plane.size - np.count_nonzero(np.isfinite(plane)) for plane in planes(volume))
    if bad:
        raise ScanError(f"not finite: {bad} of {volume.array.size} voxels")


def _non_zero_mean_and_std(volume: Volume) -> tuple[float, float]:
    count, total = 0, 0.0
    for plane in planes(volume):
        count += int(np.count_nonzero(plane))
        total += float(plane.sum(dtype=np.float64))
    mean = total / count
    squares = sum(
        float(np.square(plane[plane != 0].astype(np.float64) - mean).sum()) for plane in planes(volume)
    )
    return mean, float(np.sqrt(squares / count))


def _otsu_threshold(volume: Volume, low: float, high: float) -> float:
    """Otsu's threshold (1979) of the intensities clipped to [low, high].

    Clipping keeps a few bright voxels (metal, vessels) from taking the whole histogram.
    """
    if low == high:
        return low
    counts = np.zeros(_HISTOGRAM_BINS, np.int64)
    for plane in planes(volume):
        bins = ((plane - low) * (_HISTOGRAM_BINS / (high - low))).clip(0, _HISTOGRAM_BINS - 1)
        counts += np.bincount(bins.astype(np.intp).ravel(), minlength=_HISTOGRAM_BINS)
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    moments = np.cumsum(counts * np.arange(_HISTOGRAM_BINS))
    mean_below = moments[:-1] / below.clip(1)
    mean_above = (moments[-1] - moments[:-1]) / above.clip(1)
    between = below.astype(np.float64) * above * np.square(mean_below - mean_above)
    return low + (int(np.argmax(between)) + 1) * (high - low) / _HISTOGRAM_BINS


def _foreground(volume: Volume, threshold: float) -> Box:
    """The box around the voxels above `threshold`, less the outermost 0.1 % of them on each side."""
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
