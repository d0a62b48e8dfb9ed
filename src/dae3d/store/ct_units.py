"""Check whether the values of a scan fit its label: Hounsfield units for CT, not for MR."""

import numpy as np

from dae3d.errors import ScanError
from dae3d.scans.modality_conflicts import machine
from dae3d.scans.padding import BELOW_AIR, HOUNSFIELD, planes
from dae3d.scans.readers import Volume
from dae3d.store.statistics import Statistics

_LOST = "is the rescale intercept, often -1024, missing? Write it into the file"
_UNSIGNED = "do negative values count down from 65536? Write them as int16"
_TWICE = "was the rescale intercept, often -1024, applied twice? Correct it in the file"
_SCALED = "the values far below air are not padding; use the original file"

# Mean of the foreground if nothing is below 0: soft tissue stored with an offset of 1024 is at 1000 to 1200,
# a bone mask at 250 to 700 HU.
_DENSE = 800.0
_SPAN = 10.0  # less than the noise of any scanner
_WHITE = (250.0, 255.0)  # the brightest grey value of a picture
# Air of a CT, and the values written outside its field of view.
_AIR = (-1100.0, -900.0)
_AROUND = (-3100.0, -900.0)
# The brightest of a body in HU, except metal.
_BRIGHTEST = (100.0, 4000.0)
_WRAPPED = (60000.0, 65535.0)  # -1024 in 16 bits without a sign is 64512
_RANGE = 1 << 15  # whole values are counted from minus this up to this
_AIR_IN_HU = -1000  # value of air in phantoms and masks
_FILLINGS = 2  # values that mean "not imaged"
# Bounds on shares, from 8 real scans with their intercept lost, applied twice or kept, with and without
# padding, resampled or not, and from bones and lungs segmented in them. In parentheses, the observed shares.
_AIR_LEFT = 0.1  # of all: below -300, without filling (lost: to 0.08; kept: from 0.1)
_BRIGHT = 0.1  # of voxels above -300: above 500 (lost: from 0.14)
_TISSUE_AT_1024 = 0.4  # of voxels above 500: fat to muscle, 900 to 1150 (lost: from 0.45; bones: to 0.33)
_SOLID = 0.025  # of all: air at impossible values (twice: from 0.04; edges of filling, resampled: to 0.01)
_TISSUE_AT_MINUS_1024 = 0.5  # of voxels above padding: -1150 to -850 (twice: from 0.56)
_TISSUE = 0.08  # of voxels above padding: -200 to 200 (twice: to 0.04)
_TWICE_AIR = (-2150, -1750)
_FAR_BELOW = (-_RANGE, -4096)  # lower than any 12-bit value


def refuse_non_hounsfield(volume: Volume, statistics: Statistics, modality: str) -> None:
    """Raise ScanError if a scan labelled as CT has lost its rescale intercept, or was never in HU.

    The intercept was lost if nothing is below 0 and the foreground is denser than bone, or if, apart from
    filling, there is no air and most dense voxels are close to 1024. It was applied twice if the same holds
    around -2048 and -1024. A scan that spans less than 10 was normalised; one from 0 to 250 or 255 has the
    grey values of a picture. Parts segmented from a CT, such as a brain of 0 to 80 HU, are accepted.
    """
    if modality not in HOUNSFIELD:
        return
    low, high = statistics.minimum, statistics.maximum
    if statistics.percentile(0.5) >= 0 and statistics.foreground_mean > _DENSE:
        why = _UNSIGNED if _WRAPPED[0] <= high <= _WRAPPED[1] else _LOST
    elif high - low < _SPAN:
        why = "it was normalised, or is a label map; use the original, or exclude it"
    elif low == 0 and _WHITE[0] <= high <= _WHITE[1]:
        why = "grey values of a picture, or a label map; use the original, or exclude it"
    else:
        why = _wrong_by_counts(volume)
    if why:
        usual = f"{statistics.percentile(0.5):g} and {statistics.percentile(99.5):g}"
        remedy = "or give it a label of its own, such as ct-raw"
        raise ScanError(f"not in HU: nearly all voxels lie between {usual}; {why}, {remedy}")


def strange_values(statistics: Statistics, modality: str) -> str | None:
    """Why the values of a CT or MR scan do not fit its label, or None.

    This is a hint: an MR scan may have been shifted so that its background is at -1000.
    """
    low, high = statistics.percentile(0.5), statistics.percentile(99.5)
    if modality in HOUNSFIELD:
        if statistics.minimum < 0:
            return None
        return (
            f"no voxel is below 0, unlike air in HU: is it really {modality}, or was the background removed?"
        )
    padding = statistics.padding
    air = _AIR[0] <= low <= _AIR[1] or (padding is not None and _AROUND[0] <= padding <= _AROUND[1])
    if machine(modality) == "mr" and air and _BRIGHTEST[0] <= high <= _BRIGHTEST[1]:
        return f"its values, {statistics.minimum:g} to {statistics.maximum:g}, look like the HU of a CT"
    return None


def _wrong_by_counts(volume: Volume) -> str:
    """What is wrong with a scan's values by their histogram, or ""."""
    counts = _counts(volume)
    fillings = _fillings(counts, -301)
    if not _count(counts, -150, 150):
        fillings = fillings[fillings != _AIR_IN_HU]  # with the intercept lost, this would be air
    air = _count(counts, -_RANGE, -301) - sum(counts[fillings + _RANGE])
    bright = _count(counts, 501, _RANGE)
    if (
        air <= _AIR_LEFT * counts.sum()
        and bright >= _BRIGHT * _count(counts, -300, _RANGE)
        and _count(counts, 900, 1150) >= _TISSUE_AT_1024 * bright > 0
    ):
        return _LOST
    if not _count(counts, -_RANGE, int(BELOW_AIR)):
        return ""
    padding = _fillings(counts, int(BELOW_AIR))
    imaged = _count(counts, int(BELOW_AIR) + 1, _RANGE)
    if (
        _count(counts, -1150, -850) >= _TISSUE_AT_MINUS_1024 * imaged
        and _count(counts, -200, 200) < _TISSUE * imaged
        and _solid(volume, _TWICE_AIR, padding) >= _SOLID
    ):
        return _TWICE
    return _SCALED if _solid(volume, _FAR_BELOW, padding) >= _SOLID else ""


def _counts(volume: Volume) -> np.ndarray:
    """Histogram of intensities rounded to whole numbers from -32768; those outside count at the ends."""
    counts = np.zeros(2 * _RANGE, np.int64)
    for plane in planes(volume):
        counts += np.bincount(_whole(plane).ravel() + _RANGE, minlength=len(counts))
    return counts


def _whole(plane: np.ndarray) -> np.ndarray:
    return np.rint(plane).clip(-_RANGE, _RANGE - 1).astype(np.int64)


def _count(counts: np.ndarray, low: int, high: int) -> int:
    """The number of voxels between two intensities, inclusive."""
    return int(counts[low + _RANGE : high + _RANGE + 1].sum())


def _fillings(counts: np.ndarray, top: int) -> np.ndarray:
    """The commonest intensities up to `top`."""
    return np.argsort(counts[: top + _RANGE + 1])[-_FILLINGS:] - _RANGE


def _solid(volume: Volume, bounds: tuple[int, int], fillings: np.ndarray) -> float:
    """The share of voxels that are in `bounds`, as are their four neighbours in a plane, and not a filling.

    Resampling a scan with its filling leaves edges between the two, one or two voxels thick.
    """
    count = 0
    for plane in planes(volume):
        whole = _whole(plane)
        there = (whole >= bounds[0]) & (whole <= bounds[1]) & ~np.isin(whole, fillings)
        inner = there[1:-1, 1:-1] & there[:-2, 1:-1] & there[2:, 1:-1] & there[1:-1, :-2] & there[1:-1, 2:]
        count += int(np.count_nonzero(inner))
    return count / volume.array.size
