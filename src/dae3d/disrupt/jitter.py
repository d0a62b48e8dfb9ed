"""Changes of intensity that two crops of one place may differ by, and that are not to be repaired."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dae3d.disrupt.random import uniform
from dae3d.disrupt.step import DISRUPTION
from dae3d.settings import Settings

_STREAM = 9
_BENT = 0.3  # share of samples with a gamma


class JitterSettings(Settings):
    """Its extent."""

    intensity_jitter: Annotated[float, DISRUPTION] = Field(
        0.2,
        ge=0,
        lt=1,
        description="gain, shift and gamma drawn for each crop, and not to be repaired: gains lie in 1 plus "
        "or minus this",
    )


def jitter(image: Tensor, inside: Tensor, keys: Tensor, extent: float) -> Tensor:
    """Crops with a gain, a shift and, three in ten, a gamma drawn for each.

    Args:
        image: (B, C, D, H, W), left as it is.
        inside: (B, 1, D, H, W) bool; where it is false the image stays 0.
        keys: (B,) int64, the key of each sample's random numbers.
        extent: gains lie in 1 plus or minus it, shifts in plus or minus it times the crop's deviation, and
            the logarithms of gammas in plus or minus twice it. 0 changes nothing.

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
