"""A batch of disrupted crops: the input of the network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Disrupted:
    """A batch passing through the steps of a disruption. Steps return new batches and modify nothing in
    place.

    Attributes:
        image: (B, C, D, H, W), the image after the steps so far.
        keys: (B,) int64, the key of each sample's random numbers.
        channel_keep: (B, channels, 1, 1, 1) or, of the tokens' shape, (B, channels, D/2, H/2, W/2), 0 where a
            channel of the token embedding is masked, or None.
        voxel_mask: (B, 1, D, H, W) bool, true in masked blocks, or None.
        channels: channels of the token embedding, or of the stem.
        stride: voxels per token along each axis.
    """

    image: Tensor
    keys: Tensor
    channel_keep: Tensor | None = None
    voxel_mask: Tensor | None = None
    channels: int = 0
    stride: tuple[int, int, int] = (2, 2, 2)

    @property
    def token_mask(self) -> Tensor | None:
        """Of the tokens' shape, (B, 1, D/2, H/2, W/2), bool: tokens in masked blocks."""
        x, y, z = self.stride
        return None if self.voxel_mask is None else self.voxel_mask[:, :, ::x, ::y, ::z]

    def rows(self, rows: slice) -> "Disrupted":
        """A slice of the batch."""
        channels, voxels = self.channel_keep, self.voxel_mask
        return replace(
            self,
            image=self.image[rows],
            keys=self.keys[rows],
            channel_keep=None if channels is None else channels[rows],
            voxel_mask=None if voxels is None else voxels[rows],
        )

    @classmethod
    def joined(cls, parts: "Sequence[Disrupted]") -> "Disrupted":
        """Concatenate batches of the same disruption."""
        channels = [part.channel_keep for part in parts if part.channel_keep is not None]
        voxels = [part.voxel_mask for part in parts if part.voxel_mask is not None]
        return cls(
            torch.cat([part.image for part in parts]),
            torch.cat([part.keys for part in parts]),
            torch.cat(channels) if channels else None,
            torch.cat(voxels) if voxels else None,
            parts[0].channels,
            parts[0].stride,
        )


def clipped(image: Tensor, limit: float | None) -> Tensor:
    """Clip the image to [-limit, limit]; None leaves it unchanged."""
    return image if limit is None else image.clamp(-limit, limit)


def sample_keys(seed: int, samples: Tensor) -> Tensor:
    """A key for each sample number: the seed in the high 32 bits, the sample number in the low 32."""
    return (samples & 0xFFFFFFFF) | (torch.as_tensor(seed, dtype=torch.int64) << 32)
