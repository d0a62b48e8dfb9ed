"""What a loss of pre-training beside the error of the repair is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dae3d.disrupt import Disrupted
from dae3d.settings import Group

OBJECTIVES_GROUP = Group("objectives")


@dataclass(frozen=True)
class PretrainStep:
    """What a step of pre-training has computed, for its losses.

    Attributes:
        network: in training; `encode` gives five feature maps of images, `pooled` one vector a crop of them.
        teacher: the network whose features are to be predicted: the moving average, where one is kept.
        clean: (B, C, D, H, W).
        disrupted: what the network got.
        hidden: the encoder's five feature maps of it.
        features: the decoder's, the last five at 1/2 to 1/32 of the resolution.
        inside: (B, 1, D, H, W) bool, where the crop lies inside the scan.
        modality: (B,) int64.
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
    """A loss, added to the error of the repair with a weight; one of weight 0 is not computed.

    Attributes:
        weight: of the settings.
        loss: of a step, with the settings and the module that `heads` made: a float32 scalar.
        setting: what the user calls the weight.
        heads: from the settings, a module that learns with the network and is thrown away after pre-training.
        heads_name: that module's in checkpoints.
        pairs: whether crops 2k and 2k + 1 have to be of one scan, and overlap.
    """

    weight: Callable[[Any], float]
    loss: Callable[[PretrainStep, Any, Any], Tensor]
    setting: str
    heads: Callable[[Any], nn.Module] | None = None
    heads_name: str = ""
    pairs: bool = False
