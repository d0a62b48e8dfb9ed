"""Loss of resolution."""

import dataclasses

from torch.nn.functional import interpolate

from dae3d.disrupt.batch import Disrupted, DisruptionSettings


def downsample(batch: Disrupted, settings: DisruptionSettings) -> Disrupted:
    """Reduce by the factor and enlarge again, both with the same interpolation.

    "nearest" keeps the first voxel of every factor^3 block and repeats it over the block.
    """
    shape = batch.image.shape[2:]
    small = [side // settings.downsample_factor for side in shape]
    straight = {} if settings.downsample_mode in ("nearest", "area") else {"align_corners": False}
    reduced = interpolate(batch.image, size=small, mode=settings.downsample_mode, **straight)
    return dataclasses.replace(
        batch, image=interpolate(reduced, size=shape, mode=settings.downsample_mode, **straight)
    )
