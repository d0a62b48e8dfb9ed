"""Convert a scan to the form it is stored in, measure it, and reject it if it cannot be used."""

import math
from dataclasses import replace

from dae3d.errors import ScanError
from dae3d.scans.readers import Volume
from dae3d.store.conform import apply_scale_factors, crop_to_foreground, narrowed, resample, to_ras
from dae3d.store.ct_units import refuse_non_hounsfield
from dae3d.store.scan import Preparation
from dae3d.store.statistics import Statistics, measure, refuse_non_finite

AS_ACQUIRED = Preparation(spacing=None, crop_foreground=False)

# Twice a body of 2 x 0.7 x 0.7 m at 1 mm; more means a voxel size in another unit.
_MOST_VOXELS = 2**31


def examine(volume: Volume, preparation: Preparation, modality: str) -> tuple[Volume, Statistics]:
    """Convert a scan to the form it is stored in, and measure it.

    Raises:
        ScanError: if it cannot be used.
    """
    conformed = conform(volume, preparation, modality)
    statistics = measure(conformed, modality)
    refuse_non_hounsfield(conformed, statistics, modality)
    return conformed, statistics


def conform(volume: Volume, preparation: Preparation, modality: str = "") -> Volume:
    """Convert a scan to the form it is stored in.

    Raises:
        ScanError: if it has non-finite voxels, a singular affine, a single value, or would be too large.
    """
    refuse_non_finite(volume)
    volume = apply_scale_factors(to_ras(volume))
    if preparation.spacing is not None:
        _refuse_too_large(volume, preparation.spacing)
        volume = resample(volume, preparation.spacing, modality)
    if preparation.crop_foreground:
        volume = crop_to_foreground(volume, modality)
    return replace(volume, array=narrowed(volume.array))


def _refuse_too_large(volume: Volume, spacing: tuple[float, float, float]) -> None:
    sides = zip(volume.array.shape, volume.spacing, spacing, strict=True)
    voxels = math.prod(number * size / wanted for number, size, wanted in sides)
    if voxels > _MOST_VOXELS:
        raise ScanError(
            f"resampled to {_in_mm(spacing)} it would have {voxels:.1e} voxels; is its voxel size of "
            f"{_in_mm(volume.spacing)} really in mm?"
        )


def _in_mm(spacing: tuple[float, float, float]) -> str:
    return " x ".join(f"{size:g}" for size in spacing) + " mm"
