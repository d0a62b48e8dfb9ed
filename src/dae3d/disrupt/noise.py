"""Gaussian noise."""

import dataclasses
from typing import Annotated

from pydantic import Field

from dae3d.disrupt.batch import Disrupted
from dae3d.disrupt.random import normal
from dae3d.disrupt.step import DISRUPTION, Step
from dae3d.settings import Settings

STREAM = 1


class NoiseSettings(Settings):
    """Strength of the noise."""

    noise_variance: Annotated[float, DISRUPTION] = Field(
        0.1,
        ge=0,
        description="variance of the noise in normalised intensity; for varied the maximum, relative to the "
        "variance of the crop",
    )


@Step
def noise(batch: Disrupted, settings: NoiseSettings) -> Disrupted:
    """Add noise drawn from N(0, variance) to every voxel; the result is not clipped."""
    image = batch.image
    values = normal(batch.keys, image[0].numel(), STREAM).view_as(image).to(image.dtype)
    return dataclasses.replace(batch, image=image + settings.noise_variance**0.5 * values)
