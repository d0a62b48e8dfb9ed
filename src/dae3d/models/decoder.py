"""The decoder of UNETR (Hatamizadeh et al., arXiv 2103.10504), for segmentation and for repair."""

from collections.abc import Sequence
from typing import Literal

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dae3d.models.blocks import with_our_layers

RepairFrom = Literal["full", "half"]

# Beginnings of names in a network of tensors that a decoder up to half resolution lacks.
ABOVE_HALF = ("decoder.skips.0.", "decoder.ups.4.")


class UnetrDecoder(nn.Module):
    """Residual convolution blocks on the skips, and transposed convolutions up to full or half resolution.

    Args:
        dim: channels of the token embedding.
        in_channels: of the image.
        out_channels: of what comes out.
        checkpoint_activations: recompute a block's activations in the backward pass.
        up_to: the resolution of the last block.
    """

    def __init__(
        self,
        dim: int,
        in_channels: int,
        out_channels: int,
        checkpoint_activations: bool = False,
        up_to: RepairFrom = "full",
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.up_to = up_to
        left_out = {"skips": ["0"], "ups": ["4"]} if up_to == "half" else {"skips": [], "ups": []}
        # Of the image and of levels 0 to 2; by number, so that a decoder that lacks some names them alike.
        self.skips = nn.ModuleDict(
            {
                number: _residual_block(channels_in, channels_out)
                for number, channels_in, channels_out in [
                    ("0", in_channels, dim),
                    ("1", dim, dim),
                    ("2", 2 * dim, 2 * dim),
                    ("3", 4 * dim, 4 * dim),
                ]
                if number not in left_out["skips"]
            }
        )
        # With a 32^3 input it is one voxel.
        self.bottleneck = _residual_block(16 * dim, 16 * dim)
        self.ups = nn.ModuleDict(
            {
                number: with_our_layers(
                    UnetrUpBlock(3, channels_in, channels_out, 3, 2, norm_name="instance", res_block=True)
                )
                for number, channels_in, channels_out in [
                    ("0", 16 * dim, 8 * dim),
                    ("1", 8 * dim, 4 * dim),
                    ("2", 4 * dim, 2 * dim),
                    ("3", 2 * dim, dim),
                    ("4", dim, dim),
                ]
                if number not in left_out["ups"]
            }
        )
        if up_to == "full":
            self.head = with_our_layers(UnetOutBlock(3, dim, out_channels))
        else:
            self.repair_heads = nn.ModuleList(
                with_our_layers(UnetOutBlock(3, width, made))
                for width, made in [(dim, 8 * out_channels), (2 * dim, out_channels), (4 * dim, out_channels)]
            )

    def forward(self, image: Tensor, hidden: Sequence[Tensor]) -> Tensor:
        """(B, C, D, H, W) and the encoder's five feature maps to (B, out_channels, D, H, W)."""
        return self.images(self.features(image, hidden), only_finest=True)[0]

    def images(self, features: Sequence[Tensor], only_finest: bool = False) -> list[Tensor]:
        """What heads make of the features: (B, out_channels, ...) at full, perhaps at 1/4, 1/8 resolution."""
        if self.up_to == "full":
            return [self.head(features[0])]
        heads = self.repair_heads[:1] if only_finest else self.repair_heads
        made = [head(feature) for head, feature in zip(heads, features, strict=False)]
        return [_in_voxels(made[0]), *made[1:]]

    def features(self, image: Tensor, hidden: Sequence[Tensor]) -> list[Tensor]:
        """What the heads see, the finest map first.

        Maps of embed_dim * (1, 1, 2, 4) channels at 1, 1/2, 1/4, 1/8 of the sides, or without the first.
        """
        x = self._run(self.bottleneck, hidden[4])
        x = self._run(self.ups["0"], x, hidden[3])
        features: list[Tensor] = []
        given = [image, hidden[0], hidden[1], hidden[2]]
        for number in ("3", "2", "1", "0"):
            if number in self.skips:
                skip = self._run(self.skips[number], given[int(number)])
                x = self._run(self.ups[str(4 - int(number))], x, skip)
                features.insert(0, x)
        return features

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if self.checkpoint_activations and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def _in_voxels(features: Tensor) -> Tensor:
    """(B, 8 * C, D, H, W) to (B, C, 2D, 2H, 2W): the channels of a place are its 2^3 voxels."""
    voxels = features.unflatten(1, (-1, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return voxels.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _residual_block(channels_in: int, channels_out: int) -> UnetrBasicBlock:
    return with_our_layers(
        UnetrBasicBlock(3, channels_in, channels_out, 3, 1, norm_name="instance", res_block=True)
    )
