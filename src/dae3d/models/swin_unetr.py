"""The networks: a Swin transformer encoder, and a residual UNETR decoder that repairs or segments.

Built from MONAI's blocks in the layout of the published Disruptive Autoencoders
(Valanarasu et al., arXiv 2307.16896), which is Swin UNETR (Hatamizadeh et al., arXiv 2201.01266) with a
two-convolution patch embedding.
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

# What sharded training gathers at a time.
UNITS = (SwinStage, UnetrBasicBlock, UpBlock)


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the networks' parameters and their shapes.

    `patch_merging` "reference" repeats the published order of octants, two of them twice and two never;
    weights trained with one order are of no use in the other.

    `restore_intensity` gives a repaired image the mean and deviation of the input. The network's instance
    norms forget them, and nothing else in it can tell soft tissue from lung in a uniform crop; the published
    network does without. A segmentation network has no use for it.

    `normalise_skips` hands the decoder feature maps normalised over channels in pre-training too, as
    fine-tuning always does; the published pre-training hands it the raw ones.

    `patch_embed` "conv" is the published block of two 3^3 convolutions; "linear" is MONAI's, one 2^3
    convolution of stride 2.

    `repair_from` says what a repair is made from in pre-training. "full": the whole decoder, which gets the
    disrupted image too, as published. "half": the decoder up to half resolution, without the last block, and
    so without the way past the encoder and most of the work. Each feature gives the 2^3 voxels of its place;
    for training, two coarser maps give the image at 1/4 and 1/8 of the resolution. "pyramid": the same
    decoder, where features at each resolution down to 1/32 add to the image what coarser ones do not show,
    and nothing else. A segmentation network has the whole decoder always.

    `window_edges` "exact" gives every pair of tokens the bias of its own offset and attends to no padding,
    whatever the grid; "reference" is the published network, and MONAI's: a grid smaller than the window takes
    biases of other offsets, and padding is attended to. The two agree where the grids of all stages, 1/2 to
    1/16 of a side, are multiples of the window (`sides_without_edges`).

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
    """Sides of a crop that are multiples of it have stages of whole windows: no padding, and none cut."""
    return math.lcm(32, 16 * window)


class SwinUNETR(Network):
    """Repairs a disrupted volume.

    Args:
        architecture: sizes of the network.
        checkpoint_activations: recompute activations in the backward pass instead of keeping them.
        axes: "reference" hands the patch embedding's tokens over with the channel axis in the place of the
            last spatial one, as the published pre-training did (it needs a cubic input of side
            2 * embed_dim). Only published weights want it.
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
        """The repaired image alone; see `repair`."""
        return self.repair(image, channel_keep, token_mask)[0]

    def repair(
        self, image: Tensor, channel_keep: Tensor | None = None, token_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Repair a batch.

        Args:
            image: (B, C, D, H, W); sides are multiples of 32.
            channel_keep: factor on the token embedding's channels, broadcastable to
                (B, embed_dim, D/2, H/2, W/2); 0 masks a channel.
            token_mask: (B, 1, D/2, H/2, W/2), true where the mask token replaces a token's embedding.

        Returns:
            The repaired image (B, out_channels, D, H, W), and the bottleneck's features pooled over space
            (B, 16 * embed_dim).
        """
        hidden = self.encode(image, channel_keep, token_mask)
        return self.decode(image, hidden, token_mask), self.pooled(hidden)

    def encode(
        self, image: Tensor, channel_keep: Tensor | None = None, token_mask: Tensor | None = None
    ) -> list[Tensor]:
        """The five feature maps that the decoder gets; arguments as of `repair`."""
        hidden = self.encoder(image, channel_keep, token_mask)
        return normalised(hidden) if self.architecture.normalise_skips else hidden

    def decode(self, image: Tensor, hidden: Sequence[Tensor], token_mask: Tensor | None = None) -> Tensor:
        """The image repaired out of itself (B, C, D, H, W) and its feature maps, as `encode` gives them."""
        features = self.decoder.features(image, hidden)
        return self.images(image, features, token_mask)[0]

    def images(
        self, image: Tensor, features: Sequence[Tensor], token_mask: Tensor | None = None
    ) -> list[Tensor]:
        """The repaired image, then that at lower resolutions, where there are heads for them.

        Args:
            image: (B, C, D, H, W), as the encoder got it.
            features: the decoder's.
            token_mask: as the encoder got it.
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
        """What the contrastive loss sees of the feature maps: (B, 16 * embed_dim)."""
        return hidden[4].mean(dim=(2, 3, 4))


def _visible_intensity(image: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and deviation (B, C, 1, 1, 1) of the means of blocks of 4^3 voxels, as far as they are not masked.

    Noise adds to the deviation of voxels, and next to nothing to that of their means.
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
        axes: as in `SwinUNETR`. The published fine-tuning has "straight" axes, whatever its pre-training had.
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
        """Logits at full resolution, then those of the auxiliary heads, where there are any.

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
    """The encoder alone, as fine-tuning uses it.

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
    """Feature maps (B, C, D, H, W) with mean 0 and deviation 1 over the channels of every token."""
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
            Dae3dError: where the sides of the image do not fit.
        """
        if any(side % 32 for side in image.shape[2:]):
            raise Dae3dError(f"the network takes sides that are multiples of 32, not {_sides(image)}")
        tokens = self.patch_embed(image)
        if token_mask is not None:
            tokens = torch.where(token_mask, self.mask_token.to(tokens.dtype), tokens)
        if self.axes == "reference":
            if len(set(tokens.shape[1:])) > 1:
                side = 2 * tokens.shape[1]
                raise Dae3dError(
                    f"with the published order of axes the network takes {side} x {side} x {side} voxels, "
                    f'not {_sides(image)}; load it with axes="straight" for other sizes'
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
    """MONAI's in one copy; eight slices would each come back as a gradient of the whole volume."""

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
    """(B, D, H, W, C) with a layer of zeros at the end of odd sides."""
    return nn.functional.pad(x, (0, 0, *(side % 2 * end for side in x.shape[3:0:-1] for end in (0, 1))))
