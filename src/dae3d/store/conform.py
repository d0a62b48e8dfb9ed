"""Convert a scan to the form it is stored in: RAS axes, target spacing, smallest lossless voxel type."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from dae3d.errors import ScanError
from dae3d.scans.padding import fill_padding, find_padding, planes
from dae3d.scans.readers import Volume
from dae3d.store.statistics import Box, measure

FOREGROUND_MARGIN_MM = 10.0
_SAME_SPACING = 1e-3  # relative: scanners write 0.9999 mm for 1 mm
_SMALL_TYPES = [np.dtype(name) for name in ("uint8", "int16", "uint16", "int32")]


def to_ras(volume: Volume) -> Volume:
    """Permute and flip axes to RAS; voxel values do not change.

    Raises:
        ScanError: if the affine is singular.
    """
    orientation = io_orientation(volume.affine)
    if np.isnan(orientation).any():
        raise ScanError("affine is singular: its axes do not span three dimensions")
    affine = volume.affine @ inv_ornt_aff(orientation, volume.array.shape)
    return replace(volume, array=apply_orientation(volume.array, orientation), affine=affine)


def apply_scale_factors(volume: Volume) -> Volume:
    """Apply the scale factors of floating-point voxels: they save no space, and would add a rounding."""
    if volume.array.dtype.kind != "f" or (volume.slope, volume.intercept) == (1.0, 0.0):
        return volume
    array = np.empty(volume.array.shape, np.float32)
    for x, plane in enumerate(planes(volume)):
        array[x] = plane
    return Volume(array, volume.affine)


def resample(volume: Volume, spacing: tuple[float, float, float], modality: str = "") -> Volume:
    """Trilinear resampling to `spacing` (mm), as MONAI's `Spacing`; unchanged if the volume has that spacing.

    Padding is replaced by background first, so that it does not blend with the scan, and restored where the
    nearest voxel was padding. The array becomes float32; without padding, slope and intercept are kept
    because they commute with interpolation.
    """
    if np.allclose(volume.spacing, spacing, rtol=_SAME_SPACING, atol=0):
        return volume
    padding = find_padding(volume, modality)
    if padding is None:
        return _interpolated(volume, spacing, "bilinear")
    resampled = _interpolated(fill_padding(volume, padding, modality), spacing, "bilinear")
    outside = np.stack([plane <= padding for plane in planes(volume)])
    nearest = _interpolated(Volume(outside, volume.affine), spacing, "nearest")
    resampled.array[nearest.array != 0] = padding
    return resampled


def _interpolated(volume: Volume, spacing: tuple[float, float, float], mode: str) -> Volume:
    # Imported here because MONAI and PyTorch take seconds, and only resampling needs them.
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import Spacing

    array = np.ascontiguousarray(volume.array, dtype=np.float32)
    image = MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(volume.affine))
    resampled: Any = Spacing(pixdim=spacing, mode=mode, dtype=np.float32)(image)
    return replace(volume, array=resampled.numpy()[0], affine=resampled.affine.numpy())


def crop_to_foreground(volume: Volume, modality: str = "") -> Volume:
    """Crop to the foreground box plus 10 mm."""
    return crop(volume, foreground_box([volume], [modality]))


def foreground_box(volumes: Sequence[Volume], modalities: Sequence[str]) -> Box:
    """The box around the foreground of all volumes (on one grid) plus 10 mm, clipped to the grid."""
    pairs = zip(volumes, modalities, strict=True)
    first, last = map(np.array, union([measure(*pair).foreground for pair in pairs]))
    margin = np.ceil(FOREGROUND_MARGIN_MM / np.array(volumes[0].spacing)).astype(int)
    x0, y0, z0 = np.maximum(first - margin, 0).tolist()
    x1, y1, z1 = np.minimum(last + margin, volumes[0].array.shape).tolist()
    return (x0, y0, z0), (x1, y1, z1)


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box that contains all boxes."""
    x0, y0, z0 = np.min([first for first, _ in boxes], axis=0).tolist()
    x1, y1, z1 = np.max([last for _, last in boxes], axis=0).tolist()
    return (x0, y0, z0), (x1, y1, z1)


def crop(volume: Volume, box: Box) -> Volume:
    """Crop to a half-open box; the affine is moved to its first voxel."""
    start, stop = box
    affine = volume.affine.copy()
    affine[:3, 3] = apply_affine(volume.affine, start)
    return replace(volume, array=volume.array[tuple(map(slice, start, stop))], affine=affine)


def narrowed(array: np.ndarray) -> np.ndarray:
    """The same values in C order, in the smallest of uint8, int16, uint16 and int32 that holds them.

    Values that are not whole numbers become float32, the type in which intensities are read.
    """
    floating = array.dtype.kind == "f"
    if floating and not all(np.array_equal(plane, np.rint(plane)) for plane in array):
        return np.ascontiguousarray(array, dtype=np.float32)
    low, high = array.min(), array.max()
    for dtype in _SMALL_TYPES:
        limits = np.iinfo(dtype)
        smaller = floating or dtype.itemsize < array.dtype.itemsize
        if smaller and limits.min <= low and high <= limits.max:
            return np.ascontiguousarray(array, dtype=dtype)
    return np.ascontiguousarray(array, dtype=np.float32 if floating else array.dtype.newbyteorder("="))
