"""Voxels that were never imaged: the filling outside a round field of view, often -2000, -3024 or -32768."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from dae3d.errors import ScanError
from dae3d.scans.readers import Volume

# Labels of scans in Hounsfield units.
HOUNSFIELD = frozenset({"ct", "ct-phantom", "cbct"})
_AIR = -1024.0  # HU, the lowest value of a 12-bit scanner
_BELOW_AIR = -1500.0  # HU, which the noise of air does not reach
# Elsewhere, a filling is at least this low and takes at least this share of the voxels, and nothing else lies
# between it and its half, nor as near to it as half of what the scan spans.
_FILLING = -1000.0
_SHARE = 0.001
_HALF = 0.5


def planes(volume: Volume) -> Iterator[np.ndarray]:
    """The intensities of one (Y, Z) plane after the other, float32, so that a whole copy is never made."""
    for plane in volume.array:
        yield replace(volume, array=plane).intensities()


def find_padding(volume: Volume, modality: str) -> float | None:
    """The intensity at and below which voxels of a scan are padding, or None where it has none.

    In Hounsfield units, all that is below the noise of air; elsewhere the lowest intensity, where it is far
    below zero and nothing is near it.
    """
    array, slope, intercept = volume.array, volume.slope, volume.intercept
    lowest = array.min() if slope > 0 else array.max()
    minimum = float(lowest) * slope + intercept
    if modality in HOUNSFIELD:
        return _BELOW_AIR if minimum <= _BELOW_AIR else None
    if minimum > _FILLING or np.count_nonzero(array == lowest) < _SHARE * array.size:
        return None
    rest = np.concatenate([plane[plane > minimum] for plane in planes(volume)])
    low, high = float(rest.min()), float(np.percentile(rest, 99.5))
    isolated = low > minimum * _HALF and low - minimum > (high - low) * _HALF
    return minimum if isolated and low < high else None


def background(modality: str) -> float:
    """What padding is taken for, in acquired units."""
    return _AIR if modality in HOUNSFIELD else 0.0


def fill_padding(volume: Volume, modality: str) -> Volume:
    """Replace padding by background, float32, so that resampling does not blend it with the scan."""
    padding = find_padding(volume, modality)
    if padding is None:
        return volume
    array = np.empty(volume.array.shape, np.float32)
    for x, plane in enumerate(planes(volume)):
        array[x] = np.where(plane <= padding, background(modality), plane)
    return Volume(array, volume.affine)


def imaged_planes(volume: Volume, padding: float | None) -> Iterator[np.ndarray]:
    """The intensities of each (Y, Z) plane that are no padding."""
    for plane in planes(volume):
        yield plane if padding is None else plane[plane > padding]


def imaged(volume: Volume, padding: float | None) -> np.ndarray:
    """The voxels that are no padding, as stored, in any shape.

    Raises:
        ScanError: where there are none.
    """
    if padding is None:
        return volume.array
    pairs = zip(volume.array, planes(volume), strict=True)
    kept = np.concatenate([stored[plane > padding] for stored, plane in pairs])
    if not kept.size:
        raise ScanError(f"no voxel is above {padding:g}, which is outside the field of view")
    return kept
