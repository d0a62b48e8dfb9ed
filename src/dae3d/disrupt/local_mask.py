"""Local masking: random channels of the token embedding are set to zero."""

import dataclasses
from functools import partial
from typing import Annotated

from pydantic import Field

from dae3d.disrupt.batch import Disrupted
from dae3d.disrupt.random import choose
from dae3d.disrupt.step import DISRUPTION, Step
from dae3d.settings import Settings

STREAM = 2


class LocalMaskSettings(Settings):
    """Share of masked channels, and whether they differ between tokens."""

    channel_mask_ratio: Annotated[float, DISRUPTION] = Field(
        0.6,
        ge=0,
        lt=1,
        description="share of the channels of the token embedding that local masking sets to zero",
    )
    channel_mask_per_token: Annotated[bool, DISRUPTION] = Field(
        False, description="draw the masked channels per token instead of once per sample"
    )


@partial(Step, masks_channels=True)
def local_mask(batch: Disrupted, settings: LocalMaskSettings) -> Disrupted:
    """Mask int(ratio * channels) channels, the same in all tokens of a sample or drawn per token."""
    channels = batch.channels
    sides = zip(batch.image.shape[2:], batch.stride, strict=True)
    grid = [side // step for side, step in sides] if settings.channel_mask_per_token else [1, 1, 1]
    tokens = grid[0] * grid[1] * grid[2]
    masked = choose(batch.keys, tokens, channels, int(settings.channel_mask_ratio * channels), STREAM)
    keep = (~masked).transpose(1, 2).unflatten(2, grid)
    return dataclasses.replace(batch, channel_keep=keep.to(batch.image.dtype))
