"""Padding: the filling outside a round field of view, often -2000, -3024 or -32768."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from dae3d.errors import ScanError
from dae3d.scans.readers import Volume

# Labels of scans in Hounsfield units.
HOUNSFIELD = frozenset({"ct", "ct-phantom", "cbct"})
_AIR = -1024.0  # HU, the lowest value of a 12-bit scanner
BELOW_AIR = -1500.0  # HU, which the noise of air does not reach
# In other modalities, padding is at least this low, and except for a few strays no intensity is above it by
# less than half of its size, or half of the range of the scan. It may be a few voxels left by cropping: they
# would distort any mean.
_FILLING = -1000.0
_STRAYS = 0.001  # of the other voxels
_HALF = 0.5


def planes(volume: Volume) -> Iterator[np.ndarray]:
    """The intensities of each (Y, Z) plane, float32, without a copy of the whole volume."""
    for plane in volume.array:
        yield replace(volume, array=plane).intensities()


def find_padding(volume: Volume, modality: str) -> float | None:
    """The intensity at and below which voxels of a scan are padding, or None if it has none.

    In Hounsfield units, everything below the noise of air; otherwise the lowest intensity, if it is far below
    zero and almost nothing is near it.

    Raises:
        ScanError: where, not in Hounsfield units, there is nothing else.
    """
    slope, intercept = volume.slope, volume.intercept
    lowest = volume.array.min() if slope > 0 else volume.array.max()
    minimum = float(lowest) * slope + intercept
    if modality in HOUNSFIELD:
        return BELOW_AIR if minimum <= BELOW_AIR else None
    if minimum > _FILLING:
        return None
    rest = imaged(volume, minimum)
    strays = 100 * _STRAYS
    ends = np.percentile(rest, (strays, 0.5, 99.5, 100 - strays), overwrite_input=True) * slope + intercept
    low, _, high, _ = sorted(ends.tolist())  # a negative slope reverses the order
    isolated = low > minimum * _HALF and low - minimum > (high - low) * _HALF
    return minimum if isolated and low < high else None


def background(modality: str) -> float:
    """The intensity that replaces padding, in acquired units."""
    return _AIR if modality in HOUNSFIELD else 0.0


def fill_padding(volume: Volume, padding: float, modality: str) -> Volume:
    """Replace padding by background, float32, so that resampling does not blend it with the scan."""
    array = np.empty(volume.array.shape, np.float32)
    for x, plane in enumerate(planes(volume)):
        array[x] = np.where(plane <= padding, background(modality), plane)
    return Volume(array, volume.affine)


def imaged_planes(volume: Volume, padding: float | None) -> Iterator[np.ndarray]:
    """The intensities of each (Y, Z) plane that are not padding."""
    for plane in planes(volume):
        yield plane if padding is None else plane[plane > padding]


def imaged(volume: Volume, padding: float | None) -> np.ndarray:
    """The stored values of voxels that are not padding, in any shape; a copy if there is padding.

    Raises:
        ScanError: if there are none.
    """
    if padding is None:
        return volume.array
    count = sum(np.count_nonzero(plane > padding) for plane in planes(volume))
    if not count:
        raise ScanError(f"no voxel is above {padding:g}, the padding outside the field of view")
    kept = np.empty(count, volume.array.dtype)
    end = 0
    for stored, plane in zip(volume.array, planes(volume), strict=True):
        chosen = stored[plane > padding]
        kept[end : end + chosen.size] = chosen
        end += chosen.size
    return kept
