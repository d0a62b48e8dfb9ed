"""Feature prediction: from the disrupted crop, predict the encoder features of a teacher on the clean crop.

Follows data2vec (Baevski et al., arXiv 2202.03555), but in addition to the reconstruction of voxels, and at
all encoder levels but the finest. The teacher is the moving average (EMA) of the weights if one is kept,
otherwise the network itself; no gradient flows into it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, instance_norm, smooth_l1_loss

from dae3d.objectives.objective import OBJECTIVES_GROUP, Objective, PretrainStep
from dae3d.settings import Settings
from dae3d.store.boxes import Triple


class FeatureHeads(nn.ModuleList):
    """A prediction MLP for each stage; discarded after pre-training.

    Args:
        channels: channels of the stages.
        strides: voxels per token of the stages along each axis.
        roi: sides of the crops in voxels. The loss leaves out a stage that is a single token, and its head is
            frozen because DDP would otherwise wait for its gradients.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Triple], roi: Triple) -> None:
        super().__init__(nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c)) for c in channels)
        for head, stride in zip(self, strides, strict=True):
            head.requires_grad_(math.prod(roi) > math.prod(stride))


def feature_loss(
    stages: Sequence[Tensor], wanted: Sequence[Tensor], heads: Iterable[nn.Module], inside: Tensor | None
) -> Tensor:
    """Smooth L1 loss of each sample, summed over stages.

    The features of the teacher are instance-normalised, because what is constant over a crop is
    uninformative. Feature maps of a single token are therefore left out.

    Args:
        stages: feature maps (B, C, D, H, W) of the disrupted crops.
        wanted: feature maps of the teacher on the clean crops, of the same shapes.
        heads: one per stage.
        inside: (B, 1, D, H, W) bool, true inside the scan; None if there is no padding.

    Returns:
        (B,) float32.
    """
    total = stages[0].new_zeros(len(stages[0]), dtype=torch.float32)
    for head, stage, teacher in zip(heads, stages, wanted, strict=True):
        if teacher[0, 0].numel() == 1:
            continue
        predicted = head(stage.movedim(1, -1)).movedim(-1, 1).float()
        error = smooth_l1_loss(predicted, instance_norm(teacher.float()), reduction="none")
        error = error.mean(dim=1, keepdim=True)
        weight = torch.ones_like(error)
        if inside is not None:
            steps = [side // count for side, count in zip(inside.shape[2:], stage.shape[2:], strict=True)]
            weight = avg_pool3d(inside.float(), steps)
        within = weight.flatten(1).sum(1).clamp(min=1e-6)
        total = total + (error * weight).flatten(1).sum(1) / within
    return total


class FeatureSettings(Settings):
    """Settings of feature prediction."""

    feature_weight: Annotated[float, OBJECTIVES_GROUP] = Field(
        0.5,
        ge=0,
        description="weight of feature prediction: from the disrupted crop, each encoder stage predicts the "
        "features of a teacher on the clean crop; the teacher is the moving average of the weights "
        "(--ema-decay) or, without one, the current weights; 0 turns it off",
    )


def _heads(settings: Any) -> FeatureHeads:
    architecture = settings.architecture()
    return FeatureHeads(architecture.level_channels[1:], architecture.level_strides[1:], settings.roi)


def _loss(step: PretrainStep, settings: FeatureSettings, heads: FeatureHeads) -> Tensor:
    with torch.no_grad():
        wanted = step.teacher.encode(step.clean)
    return feature_loss(step.hidden[1:], wanted[1:], heads, step.inside).mean()


FEATURES = Objective(lambda s: s.feature_weight, _loss, "feature_weight", _heads, "feature_heads")
