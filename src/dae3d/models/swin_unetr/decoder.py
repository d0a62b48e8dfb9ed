"""The decoder of UNETR (Hatamizadeh et al., arXiv 2103.10504), for segmentation and for repair."""

from collections.abc import Sequence

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dae3d.models.architecture import RepairFrom
from dae3d.models.repair_heads import RepairHeads
from dae3d.models.swin_unetr.blocks import with_our_layers


class UnetrDecoder(nn.Module):
    """Residual convolution blocks on the skip connections, and transposed convolutions up to full resolution.

    With `repair_from` "half" or "pyramid" the decoder ends at half resolution (see `Architecture`).

    Args:
        dim: channels of the token embedding.
        in_channels: of the image.
        out_channels: of the output.
        checkpoint_activations: recompute a block's activations in the backward pass.
        repair_from: which features the output is computed from.
    """

    def __init__(
        self,
        dim: int,
        in_channels: int,
        out_channels: int,
        checkpoint_activations: bool = False,
        repair_from: RepairFrom = "full",
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.repair_from = repair_from
        left_out = {"skips": [], "ups": []} if repair_from == "full" else {"skips": ["0"], "ups": ["4"]}
        # Skips from the image and from levels 0 to 2. Keyed by number, so that names stay the same if some
        # are absent.
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
        # A single voxel for a 32^3 input.
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
        if repair_from == "full":
            self.head = with_our_layers(UnetOutBlock(3, dim, out_channels))
        else:
            coarse = [dim * 2**i for i in range(1, 5 if repair_from == "pyramid" else 3)]
            heads = [
                with_our_layers(UnetOutBlock(3, width, made))
                for width, made in [(dim, 8 * out_channels), *((width, out_channels) for width in coarse)]
            ]
            self.repair_heads = RepairHeads(heads, (2, 2, 2), repair_from == "pyramid")

    def forward(self, image: Tensor, hidden: Sequence[Tensor]) -> Tensor:
        """(B, C, D, H, W) and the encoder's five feature maps to (B, out_channels, D, H, W)."""
        return self.images(self.features(image, hidden))[0]

    def images(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of the heads: (B, out_channels, ...) at full resolution, then at lower resolutions.

        Lower resolutions are 1/4 and 1/8 with `repair_from` "half", 1/4 to 1/32 with "pyramid".
        """
        return [self.head(features[0])] if self.repair_from == "full" else self.repair_heads(features)

    def features(self, image: Tensor, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Inputs of the heads, the finest map first.

        Maps of embed_dim * (1, 1, 2, 4, 8, 16) channels at 1, 1/2, 1/4, 1/8, 1/16, 1/32 of the sides; the
        first is absent if the decoder ends at half resolution.
        """
        bottleneck = self._run(self.bottleneck, hidden[4])
        x = self._run(self.ups["0"], bottleneck, hidden[3])
        features = [x, bottleneck]
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


def _residual_block(channels_in: int, channels_out: int) -> UnetrBasicBlock:
    return with_our_layers(
        UnetrBasicBlock(3, channels_in, channels_out, 3, 1, norm_name="instance", res_block=True)
    )
