"""The networks: a Swin transformer encoder and a residual UNETR decoder, for repair or segmentation.

Built from MONAI's blocks in the layout of the published Disruptive Autoencoders (Valanarasu et al., arXiv
2307.16896), which is Swin UNETR (Hatamizadeh et al., arXiv 2201.01266) with a two-convolution patch
embedding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch import Tensor, nn

from dae3d.errors import Dae3dError
from dae3d.models.blocks import UpBlock, our_convolution, with_our_layers
from dae3d.models.decoder import RepairFrom, UnetrDecoder
from dae3d.models.network import Network
from dae3d.models.swin import SwinStage
from dae3d.models.windows import WindowEdges

Axes = Literal["straight", "reference"]
PatchMergingOrder = Literal["straight", "reference"]
PatchEmbedding = Literal["conv", "linear"]

# Modules that FSDP gathers one at a time.
UNITS = (SwinStage, UnetrBasicBlock, UpBlock)


@dataclass(frozen=True)
class Architecture:
    """The settings that determine the parameters of a network and their shapes.

    `patch_merging` "reference" is the published order of octants, which repeats two and lacks two; weights
    trained with one order are of no use in the other.

    `restore_intensity` gives a repaired image the mean and deviation of the input. Instance norms remove
    them, and in a uniform crop nothing else distinguishes soft tissue from lung. The published network does
    not do this, and segmentation networks do not use it.

    `normalise_skips` normalises the encoder's feature maps over channels before the decoder in pre-training
    too, as fine-tuning always does; the published pre-training does not.

    `patch_embed` "conv" is the published block of two 3^3 convolutions; "linear" is MONAI's, one 2^3
    convolution of stride 2.

    `repair_from` selects the features from which pre-training computes the repaired image. "full": the whole
    decoder, including a skip connection from the disrupted image, as published. "half": the decoder up to
    half resolution. Without the last block no path bypasses the encoder, and most of the computation is
    saved. Each feature vector gives its 2^3 voxels; for training, two coarser maps give the image at 1/4 and
    1/8 of the resolution. "pyramid": the same decoder, where features at each resolution down to 1/32 add
    only the detail that coarser ones lack. A segmentation network always has the whole decoder.

    `window_edges` "exact" gives every pair of tokens the bias of its own offset and masks padding, for any
    grid; "reference" is as published and in MONAI: on a grid smaller than the window, biases of other offsets
    are used, and padding is attended to. Both agree if the grids of all stages, 1/2 to 1/16 of a side, are
    multiples of the window (`sides_without_edges`).

    `deep_supervision` gives a segmentation network heads at 1/2, 1/4 and 1/8 of the resolution, for training.
    """

    embed_dim: int = 48
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window: int = 7
    patch_merging: PatchMergingOrder = "straight"
    restore_intensity: bool = True
    normalise_skips: bool = True
    in_channels: int = 1
    out_channels: int = 1
    patch_embed: PatchEmbedding = "conv"
    repair_from: RepairFrom = "full"
    deep_supervision: bool = False
    window_edges: WindowEdges = "exact"


def sides_without_edges(window: int) -> int:
    """Crops with sides that are multiples of this have whole windows, without padding, in all stages."""
    return math.lcm(32, 16 * window)


class SwinUNETR(Network):
    """Repairs a disrupted volume.

    Args:
        architecture: sizes of the network.
        checkpoint_activations: recompute activations in the backward pass instead of storing them.
        axes: "reference" moves the channel axis of the token embedding to the place of the last spatial one,
            as the published pre-training did (it needs a cubic input of side 2 * embed_dim). For published
            weights only.
    """

    def __init__(
        self, architecture: Architecture, checkpoint_activations: bool = False, axes: Axes = "straight"
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = SwinEncoder(architecture, checkpoint_activations, axes, mask_token=True)
        self.decoder = _decoder(architecture, checkpoint_activations, architecture.repair_from)

    def forward(
        self, image: Tensor, channel_keep: Tensor | None = None, token_mask: Tensor | None = None
    ) -> Tensor:
        """The repaired image only; see `repair`."""
        return self.repair(image, channel_keep, token_mask)[0]

    def repair(
        self, image: Tensor, channel_keep: Tensor | None = None, token_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Repair a batch.

        Args:
            image: (B, C, D, H, W); sides are multiples of 32.
            channel_keep: factor on the channels of the token embedding, broadcastable to (B, embed_dim, D/2,
                H/2, W/2); 0 masks a channel.
            token_mask: (B, 1, D/2, H/2, W/2), true where the mask token replaces a token's embedding.

        Returns:
            The repaired image (B, out_channels, D, H, W), and the bottleneck's features averaged over space
                (B, 16 * embed_dim).
        """
        hidden = self.encode(image, channel_keep, token_mask)
        return self.decode(image, hidden, token_mask), self.pooled(hidden)

    def encode(
        self, image: Tensor, channel_keep: Tensor | None = None, token_mask: Tensor | None = None
    ) -> list[Tensor]:
        """The five feature maps for the decoder; arguments as for `repair`."""
        hidden = self.encoder(image, channel_keep, token_mask)
        return normalised(hidden) if self.architecture.normalise_skips else hidden

    def decode(self, image: Tensor, hidden: Sequence[Tensor], token_mask: Tensor | None = None) -> Tensor:
        """The repaired image, from the input (B, C, D, H, W) and its feature maps as returned by `encode`."""
        features = self.decoder.features(image, hidden)
        return self.images(image, features, token_mask)[0]

    def images(
        self, image: Tensor, features: Sequence[Tensor], token_mask: Tensor | None = None
    ) -> list[Tensor]:
        """The repaired image, followed by lower resolutions if there are heads for them.

        Args:
            image: (B, C, D, H, W), the input of the encoder.
            features: of the decoder.
            token_mask: as given to the encoder.
        """
        repaired = self.decoder.images(features)
        if not self.architecture.restore_intensity:
            return repaired
        if self.architecture.repair_from != "full":
            mean, deviation = _visible_intensity(image.float(), token_mask)
        else:
            deviation, mean = torch.std_mean(image.float(), dim=(2, 3, 4), keepdim=True)
        return [each.float() * deviation + mean for each in repaired]

    def pooled(self, hidden: Sequence[Tensor]) -> Tensor:
        """Bottleneck features averaged over space, for the contrastive loss: (B, 16 * embed_dim)."""
        return hidden[4].mean(dim=(2, 3, 4))


def _visible_intensity(image: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and deviation (B, C, 1, 1, 1) of the means of blocks of 4^3 voxels, weighted by unmasked voxels.

    Block means are used because noise adds to the deviation of voxels, but hardly to that of means.
    """
    blocks = nn.functional.avg_pool3d(image, 4)
    seen = torch.ones_like(blocks[:, :1])
    if token_mask is not None:
        seen = 1 - nn.functional.avg_pool3d(token_mask.to(image.dtype), 2)
        blocks = blocks / seen.clamp(min=0.125)  # masked voxels are zero
    weight = seen / seen.sum(dim=(2, 3, 4), keepdim=True).clamp(min=1e-6)
    mean = (blocks * weight).sum(dim=(2, 3, 4), keepdim=True)
    variance = ((blocks - mean).square() * weight).sum(dim=(2, 3, 4), keepdim=True)
    return mean, variance.sqrt()


class Segmenter(Network):
    """Segments a volume. The decoder gets the encoder's feature maps normalised over their channels.

    Args:
        architecture: sizes of the network; `out_channels` is the number of classes.
        checkpoint_activations: as in `SwinUNETR`.
        axes: as in `SwinUNETR`. The published fine-tuning uses "straight", whatever its pre-training used.
    """

    def __init__(
        self, architecture: Architecture, checkpoint_activations: bool = False, axes: Axes = "straight"
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = SwinEncoder(architecture, checkpoint_activations, axes)
        self.decoder = _decoder(architecture, checkpoint_activations)
        if architecture.deep_supervision:
            dim, classes = architecture.embed_dim, architecture.out_channels
            self.auxiliary_heads = nn.ModuleList(
                with_our_layers(UnetOutBlock(3, channels, classes)) for channels in (dim, 2 * dim, 4 * dim)
            )

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W), sides multiples of 32, to logits (B, classes, D, H, W)."""
        return self.decoder(image, normalised(self.encoder(image)))

    def all_logits(self, image: Tensor) -> list[Tensor]:
        """Logits at full resolution, then those of the auxiliary heads, if there are any.

        Args:
            image: (B, C, D, H, W).

        Returns:
            (B, classes, D, H, W), and with deep supervision the same at 1/2, 1/4 and 1/8 of each side.
        """
        features = self.decoder.features(image, normalised(self.encoder(image)))
        auxiliary: Any = self.auxiliary_heads if self.architecture.deep_supervision else []
        return [self.decoder.head(features[0])] + [
            head(feature) for head, feature in zip(auxiliary, features[1:], strict=False)
        ]


class FeatureEncoder(Network):
    """The encoder without a decoder, as in fine-tuning.

    Args:
        architecture: sizes of the network.
        checkpoint_activations: as in `SwinUNETR`.
        axes: as in `SwinUNETR`.
    """

    def __init__(
        self, architecture: Architecture, checkpoint_activations: bool = False, axes: Axes = "straight"
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = SwinEncoder(architecture, checkpoint_activations, axes)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) to five maps (B, embed_dim * 2^i, D/2^(i+1), ...), normalised over channels."""
        return normalised(self.encoder(image))


def normalised(hidden: Sequence[Tensor]) -> list[Tensor]:
    """Feature maps (B, C, D, H, W) normalised to mean 0 and deviation 1 over the channels of every token."""
    return [
        nn.functional.layer_norm(feature.movedim(1, -1), feature.shape[1:2]).movedim(-1, 1)
        for feature in hidden
    ]


class SwinEncoder(nn.Module):
    """Patch embedding (stride 2) and four Swin transformer stages, each halving the grid."""

    def __init__(
        self,
        architecture: Architecture,
        checkpoint_activations: bool = False,
        axes: Axes = "straight",
        mask_token: bool = False,
    ) -> None:
        super().__init__()
        self.axes = axes
        dim = architecture.embed_dim
        self.patch_embed = _patch_embedding(architecture)
        if mask_token:
            self.mask_token = nn.Parameter(torch.empty(1, dim, 1, 1, 1))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        merging = PatchMerging if architecture.patch_merging == "straight" else ReferencePatchMerging
        self.stages = nn.ModuleList(
            SwinStage(
                dim * 2**i,
                depth,
                heads,
                architecture.window,
                with_our_layers(merging(dim * 2**i)),
                checkpoint_activations,
                architecture.window_edges,
            )
            for i, (depth, heads) in enumerate(zip(architecture.depths, architecture.heads, strict=True))
        )

    def forward(
        self, image: Tensor, channel_keep: Tensor | None = None, token_mask: Tensor | None = None
    ) -> list[Tensor]:
        """Five feature maps: the tokens (B, C, D/2, ...), then each stage's (B, C * 2^i, D/2^(i+1), ...).

        Raises:
            Dae3dError: if the sides of the image do not fit.
        """
        if any(side % 32 for side in image.shape[2:]):
            raise Dae3dError(f"the sides of an image must be multiples of 32, not {_sides(image)}")
        tokens = self.patch_embed(image)
        if token_mask is not None:
            tokens = torch.where(token_mask, self.mask_token.to(tokens.dtype), tokens)
        if self.axes == "reference":
            if len(set(tokens.shape[1:])) > 1:
                side = 2 * tokens.shape[1]
                raise Dae3dError(
                    f'with axes "reference" the network needs {side} x {side} x {side} voxels, not '
                    f'{_sides(image)}; load it with axes="straight" for other sizes'
                )
            tokens = tokens.permute(0, 2, 3, 4, 1).contiguous()
        if channel_keep is not None:
            tokens = tokens * channel_keep
        hidden = [tokens]
        for stage in self.stages:
            hidden.append(stage(hidden[-1]))
        return hidden


def _patch_embedding(architecture: Architecture) -> nn.Module:
    channels, dim = architecture.in_channels, architecture.embed_dim
    if architecture.patch_embed == "linear":
        return our_convolution(nn.Conv3d(channels, dim, kernel_size=2, stride=2))
    norm = ("instance", {"affine": True})
    return with_our_layers(UnetBasicBlock(3, channels, dim, kernel_size=3, stride=2, norm_name=norm))


def _decoder(
    architecture: Architecture, checkpoint_activations: bool, repair_from: RepairFrom = "full"
) -> UnetrDecoder:
    a = architecture
    return UnetrDecoder(a.embed_dim, a.in_channels, a.out_channels, checkpoint_activations, repair_from)


def _sides(image: Tensor) -> str:
    return " x ".join(str(side) for side in image.shape[2:])


class PatchMerging(PatchMergingV2):
    """MONAI's, with a single copy; for eight slices autograd would make eight gradients of the whole."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) to (B, D/2, H/2, W/2, 2C)."""
        pairs = _even(x).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return self.reduction(self.norm(pairs.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)))


class ReferencePatchMerging(PatchMergingV2):
    """Patch merging in the published order of octants, in which (1, 1, 0) and (0, 1, 1) are missing."""

    OCTANTS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) to (B, D/2, H/2, W/2, 2C)."""
        x = _even(x)
        octants = [x[:, i::2, j::2, k::2] for i, j, k in self.OCTANTS]
        return self.reduction(self.norm(torch.cat(octants, dim=-1)))


def _even(x: Tensor) -> Tensor:
    """(B, D, H, W, C) with odd sides padded by a layer of zeros at the end."""
    return nn.functional.pad(x, (0, 0, *(side % 2 * end for side in x.shape[3:0:-1] for end in (0, 1))))
