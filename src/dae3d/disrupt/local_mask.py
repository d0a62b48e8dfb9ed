"""Local masking: the token embedding, or the stem, is set to zero in random channels or at random places."""

import dataclasses
import math
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from dae3d.disrupt.batch import Disrupted
from dae3d.disrupt.random import choose
from dae3d.disrupt.step import DISRUPTION, Step
from dae3d.settings import Settings

STREAM = 2


class LocalMaskSettings(Settings):
    """What is masked of the embedding, and how much."""

    local_mask: Annotated[Literal["channels", "blocks"], DISRUPTION] = Field(
        "channels",
        description="what local masking sets to zero in the token embedding, or in the stem of resenc: "
        "channels, as published; blocks, all channels in blocks of --block-size voxels",
    )
    channel_mask_ratio: Annotated[float, DISRUPTION] = Field(
        0.6,
        ge=0,
        lt=1,
        description="share of the channels, or blocks, that local masking sets to zero",
    )
    channel_mask_per_token: Annotated[bool, DISRUPTION] = Field(
        False, description="draw the masked channels per token instead of once per sample"
    )


@partial(Step, masks_channels=True)
def local_mask(batch: Disrupted, settings: Any) -> Disrupted:
    """Mask int(ratio * channels) channels, the same in all tokens or drawn per token; or blocks of tokens."""
    kept = _kept_blocks if settings.local_mask == "blocks" else _kept_channels
    keep = kept(batch, settings)
    return dataclasses.replace(batch, channel_keep=keep.to(batch.image.dtype))


def _kept_channels(batch: Disrupted, settings: LocalMaskSettings) -> Tensor:
    """(B, channels, 1, 1, 1), or of the tokens' shape, bool."""
    channels = batch.channels
    sides = zip(batch.image.shape[2:], batch.stride, strict=True)
    grid = [side // step for side, step in sides] if settings.channel_mask_per_token else [1, 1, 1]
    tokens = grid[0] * grid[1] * grid[2]
    masked = choose(batch.keys, tokens, channels, int(settings.channel_mask_ratio * channels), STREAM)
    return (~masked).transpose(1, 2).unflatten(2, grid)


def _kept_blocks(batch: Disrupted, settings: Any) -> Tensor:
    """Of the tokens' shape with one channel, bool: false in ceil(ratio * blocks) blocks.

    A block has block_size^3 voxels. Where a side is not a multiple of a block's, blocks are somewhat larger
    along it.
    """
    shape = batch.image.shape[2:]
    grid = [max(1, side // settings.block_size) for side in shape]
    blocks = grid[0] * grid[1] * grid[2]
    masked = choose(batch.keys, 1, blocks, math.ceil(settings.channel_mask_ratio * blocks), STREAM)
    tokens = [side // step for side, step in zip(shape, batch.stride, strict=True)]
    return interpolate((~masked).unflatten(2, grid).to(batch.image.dtype), size=tokens, mode="nearest") > 0
