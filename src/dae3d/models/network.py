"""The networks, of an encoder and a decoder of any architecture, and the metadata of weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from dae3d.models.architecture import Architecture
from dae3d.models.load_report import LoadReport
from dae3d.scans.sides import Axis

Task = Literal["pretrain", "segmentation", "encoder"]


class WeightsInfo(TypedDict, total=False):
    """Metadata of a weights file apart from the architecture, as plain JSON; every entry is optional.

    Attributes:
        task: what the network was trained for: "pretrain", "segmentation" or "encoder".
        step: of the training.
        best_validation: step and loss of the run's best validation.
        settings: of the run.
        versions: of the packages.
        data: numbers of scans, by data set and modality.
        trained_on: fingerprints of the training data, by stage (`provenance.py`).
        axes: order of the token axes.
        monai_merging: order of octants, if the user gave it.
        modalities: labels of pre-training, by number.
        preparation: of the scans of pre-training, as `store.Preparation`.
        spacing: median voxel size of those scans in mm.
        recipe: preparation of the cases of fine-tuning, as `CaseRecipe`.
        flip_axes: axes along which crops were flipped.
    """

    task: Task
    step: int
    best_validation: dict[str, Any] | None
    settings: dict[str, Any]
    versions: dict[str, str]
    data: list[dict[str, Any]]
    trained_on: list[dict[str, Any]]
    axes: str | None
    monai_merging: str
    modalities: list[str]
    preparation: dict[str, Any]
    spacing: list[float]
    recipe: dict[str, Any]
    flip_axes: Sequence[Axis]


class Network(nn.Module):
    """A network for one task.

    Args:
        architecture: sizes of the network.

    Attributes of a network made by `load`:
        info: metadata in the file of its weights.
        weights: that file.
        load_report: what was taken from the file.
    """

    info: WeightsInfo
    weights: Path
    load_report: LoadReport

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture


class RepairNetwork(Network):
    """Repairs a disrupted volume: the network of pre-training.

    Args:
        architecture: sizes of the network.
        checkpoint_activations: recompute activations in the backward pass instead of storing them.
    """

    def __init__(self, architecture: Architecture, checkpoint_activations: bool = False) -> None:
        super().__init__(architecture)
        self.encoder = architecture.encoder(checkpoint_activations, repairs=True)
        self.decoder: Any = architecture.decoder(checkpoint_activations, repairs=True)

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
            image: (B, C, D, H, W); sides are multiples of `architecture.multiple`.
            channel_keep: factor on the tokens or the stem, broadcastable to their shape, such as (B,
                embed_dim, D/2, H/2, W/2); 0 masks a channel.
            token_mask: of the shape of the tokens or the stem with one channel, true where voxels are masked;
                a mask token, if the encoder has one, replaces their embedding.

        Returns:
            The repaired image (B, out_channels, D, H, W), and the bottleneck's features averaged over space
                (B, F).
        """
        hidden = self.encode(image, channel_keep, token_mask)
        return self.decode(image, hidden, token_mask), self.pooled(hidden)

    def encode(
        self, image: Tensor, channel_keep: Tensor | None = None, token_mask: Tensor | None = None
    ) -> list[Tensor]:
        """The feature maps for the decoder, the finest first; arguments as for `repair`."""
        maps = self.encoder(image, channel_keep, token_mask)
        return self.architecture.passed_on(maps, repairs=True)

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
        repaired: list[Tensor] = self.decoder.images(features)
        if not self.architecture.restore_intensity:
            return repaired
        if self.architecture.repair_from != "full":
            mean, deviation = _visible_intensity(image.float(), token_mask)
        else:
            deviation, mean = torch.std_mean(image.float(), dim=(2, 3, 4), keepdim=True)
        return [each.float() * deviation + mean for each in repaired]

    def pooled(self, hidden: Sequence[Tensor]) -> Tensor:
        """Bottleneck features averaged over space, for the contrastive loss: (B, F)."""
        return hidden[-1].mean(dim=(2, 3, 4))


def _sides(image: Tensor) -> tuple[int, int, int]:
    x, y, z = image.shape[2:]
    return x, y, z


def _visible_intensity(image: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and deviation (B, C, 1, 1, 1) of the means of blocks of 4^3 voxels, weighted by unmasked voxels.

    Block means are used because noise adds to the deviation of voxels, but hardly to that of means.
    """
    blocks = nn.functional.avg_pool3d(image, [min(4, side) for side in image.shape[2:]])
    seen = torch.ones_like(blocks[:, :1])
    if token_mask is not None:
        seen = 1 - nn.functional.adaptive_avg_pool3d(token_mask.to(image.dtype), _sides(blocks))
        blocks = blocks / seen.clamp(min=0.125)  # masked voxels are zero
    weight = seen / seen.sum(dim=(2, 3, 4), keepdim=True).clamp(min=1e-6)
    mean = (blocks * weight).sum(dim=(2, 3, 4), keepdim=True)
    variance = ((blocks - mean).square() * weight).sum(dim=(2, 3, 4), keepdim=True)
    return mean, variance.sqrt()


class Segmenter(Network):
    """Segments a volume.

    Args:
        architecture: sizes of the network; `out_channels` is the number of classes.
        checkpoint_activations: as in `RepairNetwork`.
    """

    def __init__(self, architecture: Architecture, checkpoint_activations: bool = False) -> None:
        super().__init__(architecture)
        self.encoder = architecture.encoder(checkpoint_activations, repairs=False)
        self.decoder: Any = architecture.decoder(checkpoint_activations, repairs=False)
        if architecture.deep_supervision:
            self.auxiliary_heads = architecture.auxiliary_heads()

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W), sides multiples of `architecture.multiple`, to logits (B, classes, D, H, W)."""
        logits: Tensor = self.decoder.head(self._features(image)[0])
        return logits

    def all_logits(self, image: Tensor) -> list[Tensor]:
        """Logits at full resolution, then those of the auxiliary heads, if there are any.

        Args:
            image: (B, C, D, H, W).

        Returns:
            (B, classes, D, H, W), and with deep supervision the same at lower resolutions.
        """
        features = self._features(image)
        auxiliary: Any = self.auxiliary_heads if self.architecture.deep_supervision else []
        return [self.decoder.head(features[0])] + [
            head(feature) for head, feature in zip(auxiliary, features[1:], strict=False)
        ]

    def _features(self, image: Tensor) -> list[Tensor]:
        maps = self.architecture.passed_on(self.encoder(image), repairs=False)
        features: list[Tensor] = self.decoder.features(image, maps)
        return features


class FeatureEncoder(Network):
    """The encoder without a decoder, as in fine-tuning.

    Args:
        architecture: sizes of the network.
        checkpoint_activations: as in `RepairNetwork`.
    """

    def __init__(self, architecture: Architecture, checkpoint_activations: bool = False) -> None:
        super().__init__(architecture)
        self.encoder = architecture.encoder(checkpoint_activations, repairs=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) to the feature maps of all levels, the finest first."""
        return self.architecture.passed_on(self.encoder(image), repairs=False)
