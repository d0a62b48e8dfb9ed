"""What a backbone is: an architecture, from which networks, losses and runs take all they need to know."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from dae3d.errors import SettingsError
from dae3d.store.boxes import Triple, by_axis

RepairFrom = Literal["full", "half", "pyramid"]


class Decoder(Protocol):
    """The decoder of a network that repairs or segments."""

    head: nn.Module

    def features(self, image: Tensor, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps of the decoder, the finest first, then the encoder's last.

        Args:
            image: (B, C, D, H, W), the input of the encoder.
            hidden: the feature maps of the encoder, the finest first.
        """
        ...

    def images(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The repaired image (B, C, D, H, W), then lower resolutions if there are heads for them."""
        ...


@dataclass(frozen=True)
class Architecture(ABC):
    """The settings that determine the parameters of a network and their shapes, and what follows from them.

    Attributes:
        in_channels: channels of the image.
        out_channels: channels of the repaired image, or classes.
        restore_intensity: give a repaired image the mean and deviation of the input. Instance norms remove
            them, and in a uniform crop nothing else distinguishes soft tissue from lung. The published
            network does not do this, and segmentation networks do not use it.
        repair_from: the features from which pre-training computes the repaired image. "full": the whole
            decoder, as published. "half": the decoder up to half resolution. Without the last block no path
            bypasses the encoder, and most of the computation is saved. Each feature vector gives its 2^3
            voxels; for training, two coarser maps give the image at 1/4 and 1/8 of the resolution. "pyramid":
            the same decoder, where features at each lower resolution add only the detail that coarser ones
            lack. A segmentation network always has the whole decoder.
        deep_supervision: give a segmentation network heads at lower resolutions, for training.
    """

    backbone: ClassVar[str]

    in_channels: int = 1
    out_channels: int = 1
    restore_intensity: bool = True
    repair_from: RepairFrom = "full"
    deep_supervision: bool = False

    def header(self) -> dict[str, Any]:
        """The fields as plain JSON, for a weights file."""
        return {"backbone": self.backbone, **asdict(self)}

    @abstractmethod
    def encoder(self, checkpoint_activations: bool, repairs: bool) -> nn.Module:
        """A module that maps an image to feature maps, the finest first.

        Its `forward` takes an image (B, C, D, H, W) and optionally, if it repairs, `channel_keep` and
        `token_mask` as of `RepairNetwork.repair`.
        """

    @abstractmethod
    def decoder(self, checkpoint_activations: bool, repairs: bool) -> Decoder:
        """The decoder for a repair by `repair_from`, or for segmentation."""

    def passed_on(self, maps: list[Tensor], repairs: bool) -> list[Tensor]:
        """The feature maps of the encoder as the decoder, and whoever uses them, gets them."""
        return maps

    @abstractmethod
    def auxiliary_heads(self) -> nn.ModuleList:
        """Heads for `deep_supervision`, for the decoder's features from the second finest on."""

    @property
    @abstractmethod
    def multiple(self) -> Triple:
        """The sides of an image are multiples of these."""

    @property
    @abstractmethod
    def level_channels(self) -> tuple[int, ...]:
        """Channels of the encoder's feature maps; local masking masks those of the first."""

    @property
    @abstractmethod
    def level_strides(self) -> tuple[Triple, ...]:
        """Voxels per step of these feature maps, along each axis."""

    @property
    @abstractmethod
    def decoder_channels(self) -> tuple[int, int]:
        """Channels of the decoder's features at 1/2 and 1/4 of the resolution."""

    @property
    @abstractmethod
    def image_parameters(self) -> tuple[str, ...]:
        """Names of the weights of convolutions that see the image, as far as a network has them."""

    @property
    @abstractmethod
    def above_half(self) -> tuple[str, ...]:
        """Beginnings of the names of what a decoder up to half resolution does not have."""

    @property
    @abstractmethod
    def units(self) -> tuple[type[nn.Module], ...]:
        """Modules that FSDP gathers one at a time."""

    def check_sides(self, roi: Triple) -> None:
        """Raise SettingsError if crops with these sides in voxels do not fit."""
        if any(side % multiple for side, multiple in zip(roi, self.multiple, strict=True)):
            same = len(set(self.multiple)) == 1
            multiples = self.multiple[0] if same else by_axis(self.multiple)
            raise SettingsError(f"roi: sides must be multiples of {multiples}, not {by_axis(roi)}")

    @abstractmethod
    def distance(self, name: str) -> int:
        """Stages between a parameter and the decoder, 0 for the decoder's own: for layer-wise rates."""
