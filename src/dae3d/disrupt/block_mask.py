"""Masking of blocks of voxels, the disruption of masked autoencoding (He et al., arXiv 2111.06377)."""

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
    """How large the blocks are, and how many are masked."""

    block_size: Annotated[int, DISRUPTION] = Field(
        16, ge=2, description="side in voxels of the blocks that mae masks; of varied the largest"
    )
    block_mask_ratio: Annotated[float, DISRUPTION] = Field(
        0.6, gt=0, lt=1, description="share of the blocks that mae masks; of varied the largest"
    )


@partial(Step, masks_voxels=True, sides=("block_size",))
def block_mask(batch: Disrupted, settings: BlockMaskSettings) -> Disrupted:
    """Mask ceil(ratio * blocks) blocks of block_size^3 voxels.

    The image is zero there, and the network puts its mask token in the place of their tokens.
    """
    shape = batch.image.shape[2:]
    grid = [side // settings.block_size for side in shape]
    blocks = grid[0] * grid[1] * grid[2]
    masked = choose(batch.keys, 1, blocks, math.ceil(settings.block_mask_ratio * blocks), STREAM)
    voxels = interpolate(masked.unflatten(2, grid).to(batch.image.dtype), size=shape, mode="nearest").bool()
    return dataclasses.replace(batch, image=batch.image.masked_fill(voxels, 0), voxel_mask=voxels)
