"""The interface of auxiliary pre-training losses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dae3d.disrupt import Disrupted
from dae3d.settings import Group

OBJECTIVES_GROUP = Group("objectives")


@dataclass(frozen=True)
class PretrainStep:
    """What a pre-training step has computed, as input to the losses.

    Attributes:
        network: the network in training; `encode` maps images to feature maps, `pooled` maps these to
            one vector per crop.
        teacher: the network whose features are predicted: the moving average (EMA) of the weights if one is
            kept.
        clean: (B, C, D, H, W), the crops before disruption.
        disrupted: the input of the network.
        hidden: the encoder's feature maps of the disrupted crops.
        features: the decoder's feature maps, the finest first.
        inside: (B, 1, D, H, W) bool, true inside the scan, false in the padding.
        modality: (B,) int64 labels.
        origin: (B, 3) int64, the first voxel of each crop in its scan.
    """

    network: Any
    teacher: Any
    clean: Tensor
    disrupted: Disrupted
    hidden: Sequence[Tensor]
    features: Sequence[Tensor]
    inside: Tensor
    modality: Tensor
    origin: Tensor


@dataclass(frozen=True)
class Objective:
    """A loss that is added to the reconstruction error with a weight; it is not computed if the weight is 0.

    Attributes:
        weight: maps the settings to the weight.
        loss: maps a step, the settings and the module made by `heads` to a float32 scalar.
        setting: name of the weight in the settings.
        heads: maps the settings to a module that is trained with the network and discarded after
            pre-training.
        heads_name: name of that module in checkpoints.
        pairs: whether crops 2k and 2k + 1 must be overlapping crops of the same scan.
    """

    weight: Callable[[Any], float]
    loss: Callable[[PretrainStep, Any, Any], Tensor]
    setting: str
    heads: Callable[[Any], nn.Module] | None = None
    heads_name: str = ""
    pairs: bool = False
