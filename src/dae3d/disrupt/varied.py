"""Disruptions whose strength is drawn for each sample, including no disruption at all.

Fine-tuning uses undisrupted images, so pre-training with a single fixed strength would never show the network
such inputs.
"""

import dataclasses
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from dae3d.disrupt.batch import Disrupted
from dae3d.disrupt.block_mask import BlockMaskSettings
from dae3d.disrupt.downsample import DownsampleSettings
from dae3d.disrupt.noise import NoiseSettings
from dae3d.disrupt.random import normal, uniform
from dae3d.disrupt.step import Step

# Noise uses stream 4 for its strength and, like `noise`, stream 1 for its values.
_STRENGTH, _VALUES, _FACTOR, _EXTENT, _BLOCKS = 4, 1, 5, 6, 7
_UNTOUCHED = 0.25  # probability of no noise; likewise of no masked blocks


@Step
def varied_noise(batch: Disrupted, settings: NoiseSettings) -> Disrupted:
    """Add Gaussian noise with variance u * `noise_variance` * var(clean crop), u ~ U(0, 1); none for a
    quarter.

    Being relative to the crop, it is equally strong for CT (scaled to [0, 1]) and MR (z-scores).
    """
    image = batch.image
    drawn, extent = uniform(batch.keys, 2, _STRENGTH).unbind(1)
    variance = torch.where(drawn < _UNTOUCHED, 0, extent * settings.noise_variance)
    deviation = image.flatten(1).float().std(dim=1) * variance.sqrt()
    values = normal(batch.keys, image[0].numel(), _VALUES).view_as(image)
    noisy = image + (values * deviation[:, None, None, None, None]).to(image.dtype)
    return dataclasses.replace(batch, image=noisy)


@partial(Step, lowers_resolution=True, sides=("downsample_factor",), maxima=True)
def varied_downsample(batch: Disrupted, settings: DownsampleSettings) -> Disrupted:
    """Average over blocks of 1, 2, 4, ... voxels per side up to `downsample_factor`, equally likely."""
    image = batch.image
    factors = _doublings(1, settings.downsample_factor, image)
    choice = (uniform(batch.keys, 1, _FACTOR) * len(factors)).long().view(-1, 1, 1, 1, 1)
    for number, factor in enumerate(factors[1:], 1):
        coarse = _repeated(avg_pool3d(batch.image, factor), factor)
        image = torch.where(choice == number, coarse, image)
    return dataclasses.replace(batch, image=image)


@partial(Step, masks_voxels=True, sides=("block_size",), maxima=True)
def varied_block_mask(batch: Disrupted, settings: BlockMaskSettings) -> Disrupted:
    """Mask blocks of 4, 8, 16, ... voxels per side up to `block_size`, each size equally likely.

    Where 4 does not divide the sides of the crop, the smallest blocks have 2 voxels per side.

    The share of masked blocks is drawn from U(0, `block_mask_ratio`), and is 0 for a quarter of the samples.
    Image and tokens are masked at the same locations, as in `block_mask`.
    """
    image = batch.image
    first = 4 if settings.block_size >= 4 and all(side % 4 == 0 for side in image.shape[2:]) else 2
    sizes = _doublings(first, settings.block_size, image)
    untouched, extent, which = uniform(batch.keys, 3, _EXTENT).unbind(1)
    ratio = torch.where(untouched < _UNTOUCHED, 0, extent * settings.block_mask_ratio)
    choice = (which * len(sizes)).long().view(-1, 1, 1, 1, 1)
    masked = torch.zeros_like(image[:, :1], dtype=torch.bool)
    for number, size in enumerate(sizes):
        grid = [side // size for side in image.shape[2:]]
        drawn = uniform(batch.keys, grid[0] * grid[1] * grid[2], _BLOCKS) < ratio[:, None]
        blocks = _repeated(drawn.view(-1, 1, *grid), size)
        masked = torch.where(choice == number, blocks, masked)
    return dataclasses.replace(batch, image=image.masked_fill(masked, 0), voxel_mask=masked)


def _doublings(first: int, last: int, image: Tensor) -> list[int]:
    """`first`, 2 * `first`, ... up to `last`, while they divide the sides of the image."""
    sizes = [first]
    while 2 * sizes[-1] <= last and all(side % (2 * sizes[-1]) == 0 for side in image.shape[2:]):
        sizes.append(2 * sizes[-1])
    return sizes


def _repeated(image: Tensor, times: int) -> Tensor:
    """(B, C, D, H, W) with every voxel repeated along each axis."""
    wide = image[:, :, :, None, :, None, :, None].expand(-1, -1, -1, times, -1, times, -1, times)
    return wide.flatten(6, 7).flatten(4, 5).flatten(2, 3)
