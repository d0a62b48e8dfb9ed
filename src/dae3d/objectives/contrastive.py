"""Cross-modal contrastive loss: features of one modality attract each other, those of others repel."""

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
    """Supervised contrastive loss over modality labels (Khosla et al., arXiv 2004.11362, L_out).

    Each sample's positives are the other samples of its modality. A sample without one is left out; where
    no sample has one (a single sample, or modalities that occur once each) the loss is 0.

    With `across_ranks` and `torch.distributed` running, the batch is that of all ranks, each holding as
    many samples, and every rank returns the same loss. Its gradient is scaled so that averaging over ranks,
    as DDP does, gives the gradient of one process that holds the whole batch.

    Args:
        features: (B, F), any scale and floating type; computed in float32.
        modalities: (B,) int64 labels.
        temperature: softmax temperature.
        across_ranks: gather the features of all ranks.
        standardise: give each feature mean 0 and variance 1 over the batch, so that what all samples have in
            common cannot make them alike.

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
    """Features (B, F) with mean 0 and variance 1 over the batch, as far as they vary."""
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    return (features - mean) / (variance + _LEAST_VARIANCE).sqrt()


def _of_all_ranks(own: Tensor, modalities: Tensor) -> tuple[Tensor, Tensor]:
    """Features and labels of all ranks in order, of which this rank's own features carry gradient.

    Every rank computes the loss of all anchors, so its own gradient is whole without further communication;
    it is multiplied by the number of ranks because DDP divides by it.
    """
    # One message: with many ranks a gather takes as long as its latency. A float32 holds any label exactly.
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
    """Its weight, and what is compared how."""

    contrastive_weight: Annotated[float, OBJECTIVES_GROUP] = Field(
        0.1, ge=0, description="weight of the cross-modal contrastive loss; 0 leaves it out"
    )
    contrastive_view: Annotated[Literal["clean", "disrupted"], OBJECTIVES_GROUP] = Field(
        "clean",
        description="which crops it compares; of disrupted ones the masks drawn for each tell more than the "
        "modality, and all features end up the same",
    )
    contrastive_standardise: Annotated[bool, OBJECTIVES_GROUP] = Field(
        True,
        description="give each pooled feature mean 0 and variance 1 over the batch before, so that what all "
        "crops have in common cannot make them alike",
    )
    contrastive_temperature: Annotated[float, OBJECTIVES_GROUP] = Field(
        0.5, gt=0, description="its temperature"
    )


def pooled(network: Any, clean: Tensor, hidden: Sequence[Tensor], settings: ContrastiveSettings) -> Tensor:
    """The features (B, F) that are compared, of clean crops or of the disrupted ones' feature maps."""
    return network.pooled(network.encode(clean) if settings.contrastive_view == "clean" else hidden)


def _loss(step: PretrainStep, settings: ContrastiveSettings, heads: None) -> Tensor:
    features = pooled(step.network, step.clean, step.hidden, settings)
    return contrastive_loss(
        features, step.modality, settings.contrastive_temperature, True, settings.contrastive_standardise
    )


CONTRASTIVE = Objective(lambda s: s.contrastive_weight, _loss, setting="contrastive_weight")
