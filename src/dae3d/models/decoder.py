"""The decoder of UNETR (Hatamizadeh et al., arXiv 2103.10504), for segmentation and for repair."""

from collections.abc import Sequence

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dae3d.models.architecture import RepairFrom
from dae3d.models.blocks import with_our_layers


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
            self.repair_heads = nn.ModuleList(
                with_our_layers(UnetOutBlock(3, width, made))
                for width, made in [(dim, 8 * out_channels), *((width, out_channels) for width in coarse)]
            )

    def forward(self, image: Tensor, hidden: Sequence[Tensor]) -> Tensor:
        """(B, C, D, H, W) and the encoder's five feature maps to (B, out_channels, D, H, W)."""
        return self.images(self.features(image, hidden))[0]

    def images(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of the heads: (B, out_channels, ...) at full resolution, then at lower resolutions.

        Lower resolutions are 1/4 and 1/8 with `repair_from` "half", 1/4 to 1/32 with "pyramid".
        """
        if self.repair_from == "full":
            return [self.head(features[0])]
        made = [head(feature) for head, feature in zip(self.repair_heads, features, strict=False)]
        made[0] = _in_voxels(made[0])
        return _added_up(made) if self.repair_from == "pyramid" else made

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


def _added_up(details: Sequence[Tensor]) -> list[Tensor]:
    """Images from a Laplacian pyramid (Burt and Adelson, 1983): each detail is added to a coarser image.

    Averaging an image to the next coarser resolution gives the coarser image exactly, because a detail has
    mean zero within each coarse voxel. Slow variation is thus left to the coarse levels.

    Args:
        details: (B, C, D, H, W), the finest first; the sides of each are multiples of those of the next.

    Returns:
        As many images of the same shapes, float32.
    """
    *finer, coarsest = details
    images = [coarsest.float()]
    for detail in reversed(finer):
        times = detail.shape[2] // images[0].shape[2]
        image = functional.interpolate(images[0], scale_factor=float(times), mode="trilinear") + detail
        missing = images[0] - functional.avg_pool3d(image, times)
        images.insert(0, image + functional.interpolate(missing, scale_factor=float(times)))
    return images


def _in_voxels(features: Tensor) -> Tensor:
    """(B, 8 * C, D, H, W) to (B, C, 2D, 2H, 2W), a 3D pixel shuffle."""
    voxels = features.unflatten(1, (-1, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return voxels.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _residual_block(channels_in: int, channels_out: int) -> UnetrBasicBlock:
    return with_our_layers(
        UnetrBasicBlock(3, channels_in, channels_out, 3, 1, norm_name="instance", res_block=True)
    )
