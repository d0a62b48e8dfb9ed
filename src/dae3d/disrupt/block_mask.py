"""Random masking of cubic blocks, as in masked autoencoders (He et al., arXiv 2111.06377)."""

import dataclasses
import math
from functools import partial
from typing import Annotated

from pydantic import Field
from torch.nn.functional import interpolate

from dae3d.disrupt.batch import Disrupted
from dae3d.disrupt.random import choose
from dae3d.disrupt.step import DISRUPTION, Step
from dae3d.settings import Settings

STREAM = 3


class BlockMaskSettings(Settings):
    """Size of the blocks and share of masked blocks."""

    block_size: Annotated[int, DISRUPTION] = Field(
        16,
        ge=2,
        description="side of the masked blocks of mae, and of --local-mask blocks, in voxels; for varied the "
        "maximum",
    )
    block_mask_ratio: Annotated[float, DISRUPTION] = Field(
        0.6, gt=0, lt=1, description="share of masked blocks of mae; for varied the maximum"
    )


@partial(Step, masks_voxels=True, sides=("block_size",))
def block_mask(batch: Disrupted, settings: BlockMaskSettings) -> Disrupted:
    """Mask ceil(ratio * blocks) blocks of block_size^3 voxels.

    The image is set to zero there, and the network replaces the tokens with its mask token.
    """
    shape = batch.image.shape[2:]
    grid = [side // settings.block_size for side in shape]
    blocks = grid[0] * grid[1] * grid[2]
    masked = choose(batch.keys, 1, blocks, math.ceil(settings.block_mask_ratio * blocks), STREAM)
    voxels = interpolate(masked.unflatten(2, grid).to(batch.image.dtype), size=shape, mode="nearest").bool()
    return dataclasses.replace(batch, image=batch.image.masked_fill(voxels, 0), voxel_mask=voxels)
