"""A digest of a scan's voxels that does not depend on its header, to find duplicates."""

import hashlib
from dataclasses import replace

import numpy as np

from dae3d.scans.readers import Volume

_CHUNK = 1 << 15  # voxels at a time, so that intermediate arrays stay in the processor's cache
# Multipliers of SplitMix64 (Steele, Lea and Flood 2014), used here to mix bits.
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_HIGH_HALF, _SPREAD = np.uint64(32), np.uint64(29)


def voxel_digest(volume: Volume) -> str:
    """A digest of a scan's histogram of intensities and its axis lengths, in 32 hexadecimal digits.

    It does not depend on order or direction of the axes, voxel type, scale factor or affine. It is made of
    two sums over all voxels: of a 64-bit hash of the float32 intensity, and of the square of that hash.
    """
    total = squares = 0
    voxels = volume.array.ravel(order="K")
    for start in range(0, voxels.size, _CHUNK):
        intensities = replace(volume, array=voxels[start : start + _CHUNK]).intensities()
        intensities += np.float32(0)  # -0 becomes 0
        mixed = intensities.view(np.uint32) * _FIRST
        mixed ^= mixed >> _HIGH_HALF
        mixed *= _SECOND
        mixed ^= mixed >> _SPREAD
        total += int(mixed.sum())
        squares += int(np.dot(mixed, mixed))
    text = f"{sorted(volume.array.shape)} {total % 2**64} {squares % 2**64}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]
