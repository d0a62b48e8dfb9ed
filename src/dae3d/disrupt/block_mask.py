"""Masking of blocks of voxels, the disruption of masked autoencoding (He et al., arXiv 2111.06377)."""

import dataclasses
import math

from torch.nn.functional import interpolate

from dae3d.disrupt.batch import Disrupted, DisruptionSettings
from dae3d.disrupt.random import choose

STREAM = 3


def block_mask(batch: Disrupted, settings: DisruptionSettings) -> Disrupted:
    """Mask ceil(ratio * blocks) blocks of block_size^3 voxels.

    The image is zero there, and the network puts its mask token in the place of their tokens.
    """
    shape = batch.image.shape[2:]
    grid = [side // settings.block_size for side in shape]
    blocks = grid[0] * grid[1] * grid[2]
    masked = choose(batch.keys, 1, blocks, math.ceil(settings.block_mask_ratio * blocks), STREAM)
    voxels = interpolate(masked.unflatten(2, grid).to(batch.image.dtype), size=shape, mode="nearest").bool()
    return dataclasses.replace(batch, image=batch.image.masked_fill(voxels, 0), voxel_mask=voxels)
