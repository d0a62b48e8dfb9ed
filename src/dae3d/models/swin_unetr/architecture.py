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

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from pydantic import Field
from torch import Tensor, nn

from dae3d.errors import SettingsError
from dae3d.models.architecture import Architecture, Explained, Size
from dae3d.models.swin_unetr.blocks import UpBlock, with_our_layers
from dae3d.models.swin_unetr.decoder import UnetrDecoder
from dae3d.models.swin_unetr.encoder import SwinEncoder
from dae3d.models.swin_unetr.stage import SwinStage
from dae3d.models.swin_unetr.windows import WindowEdges
from dae3d.settings import Group, Settings, read_config
from dae3d.store.boxes import Triple, by_axis

Axes = Literal["straight", "reference"]
PatchMergingOrder = Literal["straight", "reference"]
PatchEmbedding = Literal["conv", "linear"]

_SMALL = "small-cpu"  # the config of a small network
_WINDOWS = (6, 8, 7, 5, 4)  # sides of windows for plans, the default first
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
    title: ClassVar[str] = "Swin UNETR as published"
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
        return {} if "window" in given else {"window": 6}

    @classmethod
    def planned(cls, size: Size, roi: Triple, spacing: Sequence[float]) -> list[Explained]:
        """Small: as in the config small-cpu. Standard: as published, with windows that divide the grids."""
        if size == "small":
            small = read_config(_SMALL, "pretrain")
            (first, *others) = ((name, small[name]) for name in ("embed_dim", "heads", "window"))
            return [(*first, f"As in {_SMALL}."), *((*each, "") for each in others)]
        fitting = (each for each in _WINDOWS if not any(side % sides_without_edges(each) for side in roi))
        window = next(fitting, None)
        which = "Divides" if window else "No size divides"
        return [
            ("embed_dim", 48, "The published size."),
            ("heads", [3, 6, 12, 24], ""),
            (
                "window",
                window or _WINDOWS[0],
                f"{which} the grids of all stages: roi / 2, / 4, / 8 and / 16.",
            ),
        ]

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

    def encoder(self, checkpoint_activations: bool, repairs: bool) -> SwinEncoder:
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
