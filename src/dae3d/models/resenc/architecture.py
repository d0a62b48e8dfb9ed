"""The residual encoder U-Net as a backbone: its settings, its sizes, and what follows from them."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field
from torch import nn

from dae3d.models.architecture import Architecture, Explained, Size
from dae3d.models.resenc.layers import Convolutions, ResEncDecoder, ResEncEncoder, Stage, head
from dae3d.models.resenc.topology import topology
from dae3d.settings import Group, Settings
from dae3d.store.boxes import Triple

RESENC = Group("network, with --backbone resenc")

# Of each size: channels of the first stage, most channels, and blocks of each stage (the last is repeated).
_SIZES: dict[Size, tuple[int, int, tuple[int, ...]]] = {
    "small": (12, 96, (1, 1, 2, 2)),
    "standard": (32, 320, (1, 3, 4, 6)),
}


def _sides(value: Any) -> Any:
    """ "1,2,2" as [1, 2, 2]; one number stands for three."""
    parts = value.split(",") if isinstance(value, str) else value
    if isinstance(parts, int):
        parts = [parts]
    return [parts[0]] * 3 if isinstance(parts, (list, tuple)) and len(parts) == 1 else parts


_Side = Annotated[int, Field(ge=1)]
_Triple = Annotated[tuple[_Side, _Side, _Side], BeforeValidator(_sides)]


class ResEncSettings(Settings):
    """Sizes of the residual encoder U-Net; lists have an entry for each stage, the finest first."""

    size: Annotated[Size | None, RESENC] = Field(
        None,
        description="small: 1 to 3 million parameters, for CPUs; standard: as nnU-Net plans it, "
        "where M, L and XL are the same network for crops of different size (default: as in --init, else "
        "standard)",
    )
    stage_channels: Annotated[tuple[int, ...] | None, RESENC] = Field(
        None, description="channels of each stage (default: as in --init, else by --size)"
    )
    stage_blocks: Annotated[tuple[int, ...] | None, RESENC] = Field(
        None, description="residual blocks of each stage (default: as in --init, else by --size)"
    )
    stage_strides: Annotated[tuple[_Triple, ...] | None, RESENC] = Field(
        None,
        description="stride of each stage against the one before, as 2 or 1,2,2 (default: as in --init, else "
        "by nnU-Net's rule from --roi and the voxel size)",
    )
    stage_kernels: Annotated[tuple[_Triple, ...] | None, RESENC] = Field(
        None, description="sides of the convolutions of each stage, as 3 or 1,3,3 (default: like strides)"
    )


@dataclass(frozen=True)
class ResEncArchitecture(Architecture):
    """A residual encoder U-Net; lists have an entry for each stage, the finest first.

    Attributes:
        stage_channels: of the feature maps.
        stage_strides: of each stage against the one before; the first is at full resolution.
        stage_kernels: sides of the convolutions.
        stage_blocks: residual blocks.
        decoder_convolutions: of each stage of the decoder, the coarsest first.
    """

    backbone: ClassVar[str] = "resenc"
    title: ClassVar[str] = "nnU-Net's residual encoder U-Net"
    settings: ClassVar[type[Settings]] = ResEncSettings
    needs_spacing: ClassVar[bool] = True

    stage_channels: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    stage_strides: tuple[Triple, ...] = ((1, 1, 1), *[(2, 2, 2)] * 5)
    stage_kernels: tuple[Triple, ...] = ((3, 3, 3),) * 6
    stage_blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6)
    decoder_convolutions: tuple[int, ...] = (1,) * 5

    units = (Stage, Convolutions)
    image_parameters = ("encoder.stem.convs.0.conv.weight",)

    @classmethod
    def sizes(cls, given: dict[str, Any], roi: Triple, spacing: Sequence[float]) -> dict[str, Any]:
        """As given; else by nnU-Net's rule (`topology`), and channels and blocks by size."""
        first, most, blocks = _SIZES[given.get("size") or "standard"]
        planned = topology(roi, spacing)
        strides = given.get("stage_strides") or planned.strides
        stages = len(strides)
        same = strides == planned.strides
        made = {
            "stage_strides": strides,
            "stage_kernels": planned.kernels if same else ((3, 3, 3),) * stages,
            "stage_channels": tuple(min(first * 2**stage, most) for stage in range(stages)),
            "stage_blocks": tuple(blocks[min(stage, len(blocks) - 1)] for stage in range(stages)),
        }
        missing = {name: value for name, value in made.items() if name not in given}
        return {**missing, "decoder_convolutions": (1,) * (stages - 1)}

    @classmethod
    def planned(cls, size: Size, roi: Triple, spacing: Sequence[float]) -> list[Explained]:
        """The size, and strides and kernels by nnU-Net's rule."""
        rule = topology(roi, spacing)
        strides, kernels = ([list(each) for each in lists] for lists in rule)
        uneven = any(len(set(stride)) > 1 for stride in strides)
        why = "axes with voxels twice as long as the shortest are halved later, " if uneven else ""
        return [
            ("size", size, ""),
            (
                "stage_strides",
                strides,
                f"By nnU-Net's rule from roi and voxel size: {why}down to 4 voxels.",
            ),
            (
                "stage_kernels",
                kernels,
                "Kernels are 1 along an axis until its voxels are less than twice as long as the shortest.",
            ),
        ]

    @classmethod
    def multiple_for(cls, roi: Triple, spacing: Sequence[float]) -> Triple:
        """The product of the strides for this shape."""
        x, y, z = (math.prod(axis) for axis in zip(*topology(roi, spacing).strides, strict=True))
        return x, y, z

    def __post_init__(self) -> None:
        """Raise ValueError if the lists do not fit together."""
        stages = len(self.stage_strides)
        if stages < 2:
            raise ValueError("stage_strides: at least two stages are needed; larger crops would give more")
        for name in ("stage_channels", "stage_kernels", "stage_blocks"):
            if len(getattr(self, name)) != stages:
                raise ValueError(
                    f"{name}: must have an entry for each of the {stages} stages of stage_strides, not "
                    f"{len(getattr(self, name))}"
                )
        if len(self.decoder_convolutions) != stages - 1:
            raise ValueError(f"decoder_convolutions: must have {stages - 1} entries")
        if set(self.stage_strides[0]) != {1}:
            raise ValueError(f"stage_strides: the first must be 1, not {self.stage_strides[0]}")
        if any(side % 2 == 0 for kernel in self.stage_kernels for side in kernel):
            raise ValueError("stage_kernels: sides must be odd")

    @property
    def multiple(self) -> Triple:
        """The stride of the last stage against the image."""
        return self.level_strides[-1]

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Of the stages."""
        return self.stage_channels

    @property
    def level_strides(self) -> tuple[Triple, ...]:
        """Of the stages."""
        axes = (itertools.accumulate(axis, int.__mul__) for axis in zip(*self.stage_strides, strict=True))
        return tuple((x, y, z) for x, y, z in zip(*axes, strict=True))

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        """Of the stages below full resolution."""
        return self.stage_channels[1:]

    @property
    def decoder_strides(self) -> tuple[Triple, ...]:
        """Of the stages below full resolution."""
        return self.level_strides[1:]

    @property
    def above_half(self) -> tuple[str, ...]:
        """The last stage of the decoder, and the way to it."""
        last = len(self.stage_channels) - 2
        return f"decoder.transpconvs.{last}.", f"decoder.stages.{last}."

    def encoder(self, checkpoint_activations: bool, repairs: bool) -> ResEncEncoder:
        """The same for every task."""
        lists = self.stage_channels, self.stage_strides, self.stage_kernels, self.stage_blocks
        return ResEncEncoder(self.in_channels, *lists, checkpoint_activations)

    def decoder(self, checkpoint_activations: bool, repairs: bool) -> ResEncDecoder:
        """nnU-Net's."""
        return ResEncDecoder(
            self.stage_channels,
            self.stage_strides,
            self.stage_kernels,
            self.decoder_convolutions,
            self.out_channels,
            checkpoint_activations,
            self.repair_from if repairs else "full",
        )

    def auxiliary_heads(self) -> nn.ModuleList:
        """At all resolutions but the full one and the coarsest, as in nnU-Net."""
        return nn.ModuleList(head(width, self.out_channels) for width in self.stage_channels[1:-1])

    def distance(self, name: str) -> int:
        """1 to n for the n stages, the last one first, n + 1 for the stem."""
        stages = len(self.stage_channels)
        stage = re.match(r"encoder\.stages\.(\d+)\.", name)
        if stage:
            return stages - int(stage[1])
        return stages + 1 if name.startswith("encoder.") else 0
