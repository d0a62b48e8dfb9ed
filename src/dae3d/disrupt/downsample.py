"""Downsampling followed by upsampling (super-resolution)."""

import dataclasses
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch.nn.functional import interpolate

from dae3d.disrupt.batch import Disrupted
from dae3d.disrupt.step import DISRUPTION, Step
from dae3d.settings import Settings


class DownsampleSettings(Settings):
    """Factor and interpolation of the downsampling."""

    downsample_factor: Annotated[int, DISRUPTION] = Field(
        4, ge=1, description="downsampling factor along each axis; for varied the maximum"
    )
    downsample_mode: Annotated[Literal["nearest", "trilinear", "area"], DISRUPTION] = Field(
        "nearest", description="interpolation for downsampling and upsampling"
    )


@partial(Step, lowers_resolution=True, sides=("downsample_factor",))
def downsample(batch: Disrupted, settings: DownsampleSettings) -> Disrupted:
    """Downsample by the factor and upsample again, with the same interpolation.

    "nearest" keeps the first voxel of every factor^3 block and repeats it over the block.
    """
    shape = batch.image.shape[2:]
    small = [side // settings.downsample_factor for side in shape]
    straight = {} if settings.downsample_mode in ("nearest", "area") else {"align_corners": False}
    reduced = interpolate(batch.image, size=small, mode=settings.downsample_mode, **straight)
    return dataclasses.replace(
        batch, image=interpolate(reduced, size=shape, mode=settings.downsample_mode, **straight)
    )
