"""What a backbone is: an architecture, from which networks, losses and runs take all they need to know."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, Self

from torch import Tensor, nn

from dae3d.errors import SettingsError
from dae3d.settings import Settings
from dae3d.store.boxes import Triple, by_axis

RepairFrom = Literal["full", "half", "pyramid"]
Size = Literal["small", "standard"]
Explained = tuple[str, Any, str]  # a setting, its value, and why


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
    title: ClassVar[str]  # for `--help` and plans
    settings: ClassVar[type[Settings]]  # what the user can choose
    needs_spacing: ClassVar[bool] = False  # whether sizes that are not given depend on the voxel size
    adapted: ClassVar[tuple[str, ...]] = ()  # settings for which weights of another value are adapted

    in_channels: int = 1
    out_channels: int = 1
    restore_intensity: bool = True
    repair_from: RepairFrom = "full"
    deep_supervision: bool = False

    @classmethod
    def of(cls, settings: Settings, roi: Triple, spacing: Sequence[float], **values: Any) -> Self:
        """The architecture of a new network.

        Args:
            settings: of a run; the fields of its names are taken, unless they are None.
            roi: sides of the crops in voxels.
            spacing: voxel size in mm.
            values: of further fields.

        Raises:
            ValueError: if sizes do not fit together.
        """
        known = type(settings).model_fields
        given = {
            name: getattr(settings, name) for name in (*_names(cls), *_names(cls.settings)) if name in known
        }
        given = {name: value for name, value in given.items() if value is not None}
        complete = {**given, **cls.sizes(given, roi, spacing), **values}
        return cls(**{name: value for name, value in complete.items() if name in _names(cls)})

    @classmethod
    def sizes(cls, given: dict[str, Any], roi: Triple, spacing: Sequence[float]) -> dict[str, Any]:
        """Values for sizes that are missing among the given fields and settings."""
        return {}

    @classmethod
    def own(cls) -> tuple[str, ...]:
        """The fields that other architectures do not have."""
        return tuple(name for name in _names(cls) if name not in _names(Architecture))

    @classmethod
    def planned(cls, size: Size, roi: Triple, spacing: Sequence[float]) -> list[Explained]:
        """The settings of a planned network, apart from the backbone; arguments as for `of`."""
        return []

    @classmethod
    def multiple_for(cls, roi: Triple, spacing: Sequence[float]) -> Triple:
        """Of which the sides of crops are for the network that `planned` gives for them."""
        return cls.of(cls.settings(), roi, spacing).multiple

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
        """Channels of the encoder's feature maps, the finest first."""

    @property
    @abstractmethod
    def level_strides(self) -> tuple[Triple, ...]:
        """Voxels per step of these feature maps, along each axis."""

    @property
    def tokens(self) -> tuple[int, Triple]:
        """Channels and strides of the feature map that local masking masks, the tokens or the stem."""
        return self.level_channels[0], self.level_strides[0]

    @property
    @abstractmethod
    def decoder_channels(self) -> tuple[int, ...]:
        """Channels of the decoder's features below full resolution, the finest first."""

    @property
    @abstractmethod
    def decoder_strides(self) -> tuple[Triple, ...]:
        """Voxels per step of these features."""

    @property
    def sees_image(self) -> bool:
        """Whether the decoder of a repair uses the image itself."""
        return False

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


def _names(kind: type[Any]) -> tuple[str, ...]:
    """Fields of a dataclass or of settings."""
    return (
        tuple(kind.model_fields) if issubclass(kind, Settings) else tuple(each.name for each in fields(kind))
    )
