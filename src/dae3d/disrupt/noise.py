"""Gaussian noise."""

import dataclasses

from dae3d.disrupt.batch import Disrupted, DisruptionSettings
from dae3d.disrupt.random import normal

STREAM = 1


def noise(batch: Disrupted, settings: DisruptionSettings) -> Disrupted:
    """Add sqrt(variance) * n to every voxel, n ~ N(0, 1); the result is not clipped."""
    image = batch.image
    values = normal(batch.keys, image[0].numel(), STREAM).view_as(image).to(image.dtype)
    return dataclasses.replace(batch, image=image + settings.noise_variance**0.5 * values)
