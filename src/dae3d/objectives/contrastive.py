"""Supervised contrastive loss (Khosla et al., arXiv 2004.11362) with modalities as class labels.

Pooled encoder features of crops of the same modality attract each other; those of different modalities repel.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from dae3d.objectives.objective import OBJECTIVES_GROUP, Objective, PretrainStep
from dae3d.settings import Settings

_LEAST_VARIANCE = 1e-5


def contrastive_loss(
    features: Tensor,
    modalities: Tensor,
    temperature: float,
    across_ranks: bool = True,
    standardise: bool = False,
) -> Tensor:
    """Supervised contrastive loss (Khosla et al., arXiv 2004.11362, L_out) over modality labels.

    The positives of a sample are the other samples of its modality. Samples without positives are left out;
    the loss is 0 if no sample has any.

    With `across_ranks` and `torch.distributed` initialised, features are gathered from all ranks (the same
    number of samples each), and every rank returns the same loss. Gradients are scaled so that averaging over
    ranks, as DDP does, gives the gradient of a single process with the whole batch.

    Args:
        features: (B, F), of any scale and floating type; the loss is computed in float32.
        modalities: (B,) int64 labels.
        temperature: softmax temperature.
        across_ranks: gather the features of all ranks.
        standardise: scale each feature to mean 0 and variance 1 over the batch, so that components shared by
            all samples do not dominate the similarity.

    Returns:
        A float32 scalar, finite for finite features.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        if across_ranks and dist.is_available() and dist.is_initialized():
            features, modalities = _of_all_ranks(features, modalities)
        if standardise:
            features = standardised(features)
        return _supervised_contrastive(normalize(features, dim=1), modalities, temperature)


def standardised(features: Tensor) -> Tensor:
    """Scale features (B, F) to mean 0 and variance 1 over the batch (0 for constant features)."""
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    return (features - mean) / (variance + _LEAST_VARIANCE).sqrt()


def _of_all_ranks(own: Tensor, modalities: Tensor) -> tuple[Tensor, Tensor]:
    """Features and labels of all ranks in order; only the features of this rank carry a gradient.

    Every rank computes the loss over all anchors, so the gradient of its own features needs no further
    communication. It is multiplied by the number of ranks because DDP divides by it.
    """
    # Labels travel with the features because latency dominates the gather; float32 holds them exactly.
    message = torch.cat([own.detach(), modalities[:, None].to(own.dtype)], dim=1)
    ranks, count = dist.get_world_size(), len(own)
    everyone = message.new_empty(ranks * count, message.shape[1])
    dist.all_gather_into_tensor(everyone, message)
    features, labels = everyone[:, :-1].contiguous(), everyone[:, -1].to(modalities.dtype)
    first = dist.get_rank() * count
    features[first : first + count] = own.detach() + ranks * (own - own.detach())
    return features, labels


def _supervised_contrastive(unit: Tensor, labels: Tensor, temperature: float) -> Tensor:
    count = len(unit)
    itself = torch.eye(count, dtype=torch.bool, device=unit.device)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    similarity = (unit @ unit.T / temperature).masked_fill(itself, -1e9)
    log_probability = similarity - torch.logsumexp(similarity, dim=1, keepdim=True)
    positives = positive.sum(dim=1)
    pulled = torch.where(positive, log_probability, 0).sum(dim=1) / positives.clamp(min=1)
    return -pulled.sum() / (positives > 0).sum().clamp(min=1)


class ContrastiveSettings(Settings):
    """Settings of the cross-modal contrastive loss."""

    contrastive_weight: Annotated[float, OBJECTIVES_GROUP] = Field(
        0.1, ge=0, description="weight of the cross-modal contrastive loss; 0 turns it off"
    )
    contrastive_view: Annotated[Literal["clean", "disrupted"], OBJECTIVES_GROUP] = Field(
        "clean",
        description="crops whose features it compares; with disrupted crops the features depend more on the "
        "random masks than on the modality, and they collapse",
    )
    contrastive_standardise: Annotated[bool, OBJECTIVES_GROUP] = Field(
        True,
        description="scale each pooled feature to mean 0 and variance 1 over the batch before comparing, so "
        "that components shared by all crops do not dominate",
    )
    contrastive_temperature: Annotated[float, OBJECTIVES_GROUP] = Field(
        0.5, gt=0, description="temperature of the cross-modal contrastive loss"
    )


def pooled(network: Any, clean: Tensor, hidden: Sequence[Tensor], settings: ContrastiveSettings) -> Tensor:
    """The pooled features (B, F) that the loss compares: of clean crops, or of the feature maps `hidden`."""
    return network.pooled(network.encode(clean) if settings.contrastive_view == "clean" else hidden)


def _loss(step: PretrainStep, settings: ContrastiveSettings, heads: None) -> Tensor:
    features = pooled(step.network, step.clean, step.hidden, settings)
    return contrastive_loss(
        features, step.modality, settings.contrastive_temperature, True, settings.contrastive_standardise
    )


CONTRASTIVE = Objective(lambda s: s.contrastive_weight, _loss, setting="contrastive_weight")
