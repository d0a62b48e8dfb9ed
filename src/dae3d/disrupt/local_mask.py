"""Local masking of the token embedding's channels."""

import dataclasses

from dae3d.disrupt.batch import Disrupted, DisruptionSettings
from dae3d.disrupt.random import choose

STREAM = 2


def local_mask(batch: Disrupted, settings: DisruptionSettings) -> Disrupted:
    """Mask int(ratio * embed_dim) channels: the same ones in all tokens of a sample, or drawn per token."""
    channels = settings.embed_dim
    grid = [side // 2 for side in batch.image.shape[2:]] if settings.channel_mask_per_token else [1, 1, 1]
    tokens = grid[0] * grid[1] * grid[2]
    masked = choose(batch.keys, tokens, channels, int(settings.channel_mask_ratio * channels), STREAM)
    keep = (~masked).transpose(1, 2).unflatten(2, grid)
    return dataclasses.replace(batch, channel_keep=keep.to(batch.image.dtype))
