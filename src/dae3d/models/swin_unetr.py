"""Swin UNETR: a Swin transformer encoder and a residual UNETR decoder.

Built from MONAI's blocks in the layout of the published Disruptive Autoencoders (Valanarasu et al., arXiv
2307.16896), which is Swin UNETR (Hatamizadeh et al., arXiv 2201.01266) with a two-convolution patch
embedding.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from monai.networks.nets.swin_unetr import PatchMergingV2
from pydantic import Field
from torch import Tensor, nn

from dae3d.errors import Dae3dError, SettingsError
from dae3d.models.architecture import Architecture
from dae3d.models.blocks import UpBlock, our_convolution, with_our_layers
from dae3d.models.decoder import UnetrDecoder
from dae3d.models.swin import SwinStage
from dae3d.models.windows import WindowEdges
from dae3d.settings import Group, Settings
from dae3d.store.boxes import Triple, by_axis

Axes = Literal["straight", "reference"]
PatchMergingOrder = Literal["straight", "reference"]
PatchEmbedding = Literal["conv", "linear"]


SWIN = Group("network, with --backbone swin-unetr")


class SwinSettings(Settings):
    """Sizes of Swin UNETR."""

    embed_dim: Annotated[int | None, SWIN] = Field(
        None, ge=1, description="channels of the token embedding (default: as in --init, else 48)"
    )
    depths: Annotated[tuple[int, int, int, int] | None, SWIN] = Field(
        None, description="transformer blocks of the four stages (default: as in --init, else 2 2 2 2)"
    )
    heads: Annotated[tuple[int, int, int, int] | None, SWIN] = Field(
        None, description="attention heads of the four stages (default: as in --init, else 3 6 12 24)"
    )
    window: Annotated[int | None, SWIN] = Field(
        None,
        ge=2,
        description="side of the attention windows, in tokens; a divisor of roi / 16 (6 for 96, 8 for 128) "
        "needs no padding; the published size is 7; with another one than --init has, its biases are "
        "interpolated (default: as in --init, else 6)",
    )
    window_edges: Annotated[WindowEdges | None, SWIN] = Field(
        None,
        description="exact: any two tokens get the bias of their own offset, and padding is masked; "
        "reference: as published, where grids smaller than a window use biases of other offsets and padding "
        "is attended to (default: as in --init, else exact)",
    )
    patch_embed: Annotated[PatchEmbedding | None, SWIN] = Field(
        None,
        description="patch embedding: conv, two convolutions as published; linear, the single one of MONAI's "
        "SwinUNETR, to which all weights can then be exported (default: as in --init, else conv)",
    )
    patch_merging: Annotated[PatchMergingOrder | None, SWIN] = Field(
        None,
        description="order of octants in patch merging; the published one (reference) repeats two and lacks "
        "two, and is only needed for published weights (default: as in --init, else straight)",
    )


@dataclass(frozen=True)
class SwinArchitecture(Architecture):
    """A Swin UNETR.

    Attributes:
        embed_dim: channels of the token embedding.
        depths: transformer blocks of the four stages.
        heads: attention heads of the four stages.
        window: side of the attention windows, in tokens.
        patch_merging: "reference" is the published order of octants, which repeats two and lacks two; weights
            trained with one order are of no use in the other.
        normalise_skips: normalise the encoder's feature maps over channels before the decoder in pre-training
            too, as fine-tuning always does; the published pre-training does not.
        patch_embed: "conv" is the published block of two 3^3 convolutions; "linear" is MONAI's, one 2^3
            convolution of stride 2.
        window_edges: "exact" gives every pair of tokens the bias of its own offset and masks padding, for any
            grid; "reference" is as published and in MONAI: on a grid smaller than the window, biases of other
            offsets are used, and padding is attended to. Both agree if the grids of all stages, 1/2 to 1/16
            of a side, are multiples of the window (`sides_without_edges`).
        axes: "reference" moves the channel axis of the token embedding to the place of the last spatial one,
            as the published pre-training did (it needs a cubic input of side 2 * embed_dim). For published
            weights only.
    """

    backbone: ClassVar[str] = "swin-unetr"
    settings: ClassVar[type[Settings]] = SwinSettings
    adapted: ClassVar[tuple[str, ...]] = ("window",)

    embed_dim: int = 48
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window: int = 7
    patch_merging: PatchMergingOrder = "straight"
    normalise_skips: bool = True
    patch_embed: PatchEmbedding = "conv"
    window_edges: WindowEdges = "exact"
    axes: Axes = "straight"

    multiple = (32, 32, 32)
    level_strides = tuple((stride, stride, stride) for stride in (2, 4, 8, 16, 32))
    image_parameters = (
        "encoder.patch_embed.conv1.conv.weight",
        "encoder.patch_embed.weight",
        "decoder.skips.0.layer.conv1.conv.weight",
        "decoder.skips.0.layer.conv3.conv.weight",
    )
    above_half = ("decoder.skips.0.", "decoder.ups.4.")
    units = (SwinStage, UnetrBasicBlock, UpBlock)

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Of the tokens, and of the four stages."""
        return tuple(self.embed_dim * 2**level for level in range(5))

    @classmethod
    def sizes(cls, given: dict[str, Any], roi: Triple, spacing: Sequence[float]) -> dict[str, Any]:
        """Windows of 6 unless given, which divides the grids of 96^3 crops."""
        return {"window": 6, **given}

    def __post_init__(self) -> None:
        """Raise ValueError if the channels of a stage cannot be divided among its attention heads."""
        for stage, count in enumerate(self.heads):
            channels = self.embed_dim * 2**stage
            if count < 1 or channels % count:
                raise ValueError(
                    f"heads: stage {stage + 1} has {channels} channels, not a multiple of {count}"
                )

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        """As of the encoder."""
        return self.level_channels

    @property
    def decoder_strides(self) -> tuple[Triple, ...]:
        """As of the encoder."""
        return self.level_strides

    @property
    def sees_image(self) -> bool:
        """Whether the whole decoder is used."""
        return self.repair_from == "full"

    def encoder(self, checkpoint_activations: bool, repairs: bool) -> "SwinEncoder":
        """With a mask token if it repairs."""
        return SwinEncoder(self, checkpoint_activations, repairs)

    def decoder(self, checkpoint_activations: bool, repairs: bool) -> UnetrDecoder:
        """That of UNETR."""
        repair_from = self.repair_from if repairs else "full"
        sizes = self.embed_dim, self.in_channels, self.out_channels
        return UnetrDecoder(*sizes, checkpoint_activations, repair_from)

    def passed_on(self, maps: list[Tensor], repairs: bool) -> list[Tensor]:
        """Normalised over channels in segmentation, and in pre-training with `normalise_skips`."""
        return normalised(maps) if self.normalise_skips or not repairs else maps

    def auxiliary_heads(self) -> nn.ModuleList:
        """At 1/2, 1/4 and 1/8 of the resolution."""
        return nn.ModuleList(
            with_our_layers(UnetOutBlock(3, self.embed_dim * times, self.out_channels)) for times in (1, 2, 4)
        )

    def check_sides(self, roi: Triple) -> None:
        """As for any architecture; with reference axes they must be twice the embedding."""
        super().check_sides(roi)
        side = 2 * self.embed_dim
        if self.axes == "reference" and roi != (side, side, side):
            raise SettingsError(
                f"roi: with reference axes all sides must be {side}, not {by_axis(roi)}; or use --axes "
                "straight, as the published fine-tuning does"
            )

    def distance(self, name: str) -> int:
        """1 to 4 for the stages, the last one first, 5 for the patch embedding."""
        stage = re.match(r"encoder\.stages\.(\d)\.", name)
        if stage:
            return 4 - int(stage[1])
        return 5 if name.startswith("encoder.") else 0


def sides_without_edges(window: int) -> int:
    """Crops with sides that are multiples of this have whole windows, without padding, in all stages."""
    return math.lcm(32, 16 * window)


def normalised(hidden: Sequence[Tensor]) -> list[Tensor]:
    """Feature maps (B, C, D, H, W) normalised to mean 0 and deviation 1 over the channels of every token."""
    return [
        nn.functional.layer_norm(feature.movedim(1, -1), feature.shape[1:2]).movedim(-1, 1)
        for feature in hidden
    ]


class SwinEncoder(nn.Module):
    """Patch embedding (stride 2) and four Swin transformer stages, each halving the grid.

    Args:
        architecture: sizes.
        checkpoint_activations: recompute activations in the backward pass instead of storing them.
        repairs: whether it is that of pre-training, which has a mask token.
    """

    def __init__(
        self, architecture: SwinArchitecture, checkpoint_activations: bool = False, repairs: bool = False
    ) -> None:
        super().__init__()
        self.axes = architecture.axes
        dim = architecture.embed_dim
        self.patch_embed = _patch_embedding(architecture)
        if repairs:
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
            raise Dae3dError(f"the sides of an image must be multiples of 32, not {by_axis(image.shape[2:])}")
        tokens = self.patch_embed(image)
        if token_mask is not None:
            tokens = torch.where(token_mask, self.mask_token.to(tokens.dtype), tokens)
        if self.axes == "reference":
            if len(set(tokens.shape[1:])) > 1:
                side = 2 * tokens.shape[1]
                raise Dae3dError(
                    f'with axes "reference" the network needs {by_axis((side, side, side))} voxels, not '
                    f'{by_axis(image.shape[2:])}; load it with axes="straight" for other sizes'
                )
            tokens = tokens.permute(0, 2, 3, 4, 1).contiguous()
        if channel_keep is not None:
            tokens = tokens * channel_keep
        hidden = [tokens]
        for stage in self.stages:
            hidden.append(stage(hidden[-1]))
        return hidden


def _patch_embedding(architecture: SwinArchitecture) -> nn.Module:
    channels, dim = architecture.in_channels, architecture.embed_dim
    if architecture.patch_embed == "linear":
        return our_convolution(nn.Conv3d(channels, dim, kernel_size=2, stride=2))
    norm = ("instance", {"affine": True})
    return with_our_layers(UnetBasicBlock(3, channels, dim, kernel_size=3, stride=2, norm_name=norm))


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
