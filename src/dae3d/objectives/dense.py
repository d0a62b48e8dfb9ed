"""Dense contrastive loss (InfoNCE) between voxel-level features of two overlapping crops.

Two crops of a scan overlap and are disrupted independently. Decoder features at the same location in the scan
are positives; features at other locations are negatives. Follows DenseCL (Wang et al., arXiv 2011.09157) and,
for anatomical locations in medical scans, SAM (Yan et al., arXiv 2012.02383).
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from dae3d.disrupt.random import uniform
from dae3d.objectives.objective import OBJECTIVES_GROUP, Objective, PretrainStep
from dae3d.settings import Settings
from dae3d.store.boxes import Triple, by_axis

_STREAM = 10
LOCATIONS = 128  # sampled per pair of crops
NEAR = 6.0  # voxels; closer locations are not used as negatives

# Two crops of a pair are shifted by multiples of these voxels along the axes. Their features lie on one grid
# if the strides divide them; 4 is the spacing of features at 1/4 of the resolution.
PAIR_STEP: Triple = (4, 4, 4)


class Projections(nn.ModuleList):
    """A projection MLP for each feature map; discarded after pre-training.

    Args:
        channels: channels of the feature maps.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(nn.Sequential(nn.Linear(c, 64), nn.ReLU(), nn.Linear(64, 32)) for c in channels)


def dense_contrast(
    features: Tensor, projection: nn.Module, origin: Tensor, stride: Triple, keys: Tensor, temperature: float
) -> Tensor:
    """The loss of one feature map, averaged over pairs of crops and both directions.

    Args:
        features: (B, C, D, H, W), B even; crops 2k and 2k + 1 overlap in the same scan.
        projection: maps C channels to the embedding that is compared.
        origin: (B, 3) int64, the first voxel of each crop; within a pair they differ by multiples of
            `stride`.
        stride: voxels per step of the feature map along each axis.
        keys: (B,) int64, keys of the random numbers that sample the locations.
        temperature: of the softmax over locations.

    Returns:
        A float32 scalar; log(128) for uninformative features.

    Raises:
        ValueError: if a stride does not divide `PAIR_STEP`.
    """
    if any(step % voxels for step, voxels in zip(PAIR_STEP, stride, strict=True)):
        raise ValueError(
            f"pairs of crops are shifted by multiples of {by_axis(PAIR_STEP)} voxels, of which a feature map "
            f"with strides {by_axis(stride)} has no features at the same locations"
        )
    # By axis, because a tensor of the strides would have to be sent to the device.
    shift = origin[1::2] - origin[::2]
    apart = torch.stack([shift[:, axis] // step for axis, step in enumerate(stride)], dim=1)
    # The overlap, in the grid of the first crop.
    low = apart.clamp(min=0)
    sides = features.shape[2:]
    high = torch.stack([(apart[:, axis] + side).clamp(max=side) for axis, side in enumerate(sides)], dim=1)
    drawn = uniform(keys[::2], 3 * LOCATIONS, _STREAM).unflatten(1, (LOCATIONS, 3))
    here = low[:, None] + (drawn * (high - low)[:, None]).long()
    there = here - apart[:, None]
    with torch.autocast(features.device.type, enabled=False):
        a = normalize(projection(_at(features[::2], here)), dim=2)
        b = normalize(projection(_at(features[1::2], there)), dim=2)
    similarity = a @ b.transpose(1, 2) / temperature
    voxels = torch.stack([here[..., axis].float() * step for axis, step in enumerate(stride)], dim=2)
    distance = torch.cdist(voxels, voxels)
    itself = torch.eye(LOCATIONS, dtype=torch.bool, device=features.device)
    similarity = similarity.masked_fill((distance < NEAR) & ~itself, -1e4)
    wanted = torch.arange(LOCATIONS, device=features.device).expand(len(a), -1).flatten()
    ways = (similarity, similarity.transpose(1, 2))
    return torch.stack([cross_entropy(way.flatten(0, 1), wanted) for way in ways]).mean()


def _at(features: Tensor, locations: Tensor) -> Tensor:
    """Features (P, C, D, H, W) at grid indices (P, N, 3): (P, N, C) float32."""
    _, height, width = features.shape[2:]
    number = (locations[..., 0] * height + locations[..., 1]) * width + locations[..., 2]
    tokens = features.flatten(2)
    return tokens.gather(2, number[:, None].expand(-1, tokens.shape[1], -1)).transpose(1, 2).float()


class DenseSettings(Settings):
    """Settings of the dense contrastive loss."""

    dense_weight: Annotated[float, OBJECTIVES_GROUP] = Field(
        0.2,
        ge=0,
        description="weight of the dense contrastive loss at 1/2 and 1/4 of the resolution: features of two "
        "overlapping crops are matched at the same location and contrasted with other locations; 0 turns it "
        "off",
    )
    dense_temperature: Annotated[float, OBJECTIVES_GROUP] = Field(
        0.1, gt=0, description="temperature of the dense contrastive loss"
    )


def _heads(settings: Any) -> Projections:
    return Projections(settings.architecture().decoder_channels[:2])


def _loss(step: PretrainStep, settings: DenseSettings, projections: Projections) -> Tensor:
    """The sum of the losses at the two finest resolutions below the full one."""
    loss = step.features[0].new_zeros((), dtype=torch.float32)
    keys, temperature = step.disrupted.keys, settings.dense_temperature
    strides = step.network.architecture.decoder_strides
    below = step.features[-len(strides) :]  # full resolution
    for projection, feature, stride in zip(projections, below, strides, strict=False):
        loss = loss + dense_contrast(feature, projection, step.origin, stride, keys, temperature)
    return loss


DENSE = Objective(lambda s: s.dense_weight, _loss, "dense_weight", _heads, "projections", pairs=True)
