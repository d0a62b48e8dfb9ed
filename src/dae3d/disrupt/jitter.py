"""Intensity augmentation: random gain, shift and gamma per crop.

It is applied to the clean crop, so it is not part of what is repaired.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dae3d.disrupt.random import uniform
from dae3d.disrupt.step import DISRUPTION
from dae3d.settings import Settings

_STREAM = 9
_BENT = 0.3  # probability of a gamma


class JitterSettings(Settings):
    """Strength of the intensity augmentation."""

    intensity_jitter: Annotated[float, DISRUPTION] = Field(
        0.2,
        ge=0,
        lt=1,
        description="strength of the random gain, shift and gamma per crop, an augmentation that is not "
        "repaired: gains are drawn from 1 - this to 1 + this",
    )


def jitter(image: Tensor, inside: Tensor, keys: Tensor, extent: float) -> Tensor:
    """Apply a random gain, a shift and, with probability 0.3, a gamma to each crop.

    Args:
        image: (B, C, D, H, W), not modified.
        inside: (B, 1, D, H, W) bool; the image stays 0 where it is false.
        keys: (B,) int64, the key of each sample's random numbers.
        extent: e; gains are drawn from [1 - e, 1 + e], shifts from [-e, e] times the standard deviation of
            the crop, log gammas from [-2e, 2e]. 0 changes nothing.

    Returns:
        (B, C, D, H, W) float32.
    """
    image = image.float()
    if extent == 0:
        return image
    gain, shift, gamma, bent = (2 * uniform(keys, 4, _STREAM) - 1).view(-1, 4, 1, 1, 1, 1).unbind(1)
    low = image.amin(dim=(2, 3, 4), keepdim=True)
    width = (image.amax(dim=(2, 3, 4), keepdim=True) - low).clamp(min=1e-6)
    exponent = torch.where(bent < 2 * _BENT - 1, (2 * extent * gamma).exp(), 1)
    curved = ((image - low) / width).clamp(0, 1) ** exponent * width + low
    deviation = curved.std(dim=(2, 3, 4), keepdim=True)
    moved = curved * (1 + extent * gain) + extent * shift * deviation
    return moved.where(inside, 0)
