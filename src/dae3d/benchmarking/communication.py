"""Communication between the processes of a pre-training run in a step: counted and calculated."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dae3d.models.network import RepairNetwork
from dae3d.training.pretrain_settings import PretrainSettings

_FLOAT = 4  # bytes
_OTHER_METRICS = 4  # in a row of metrics, in addition to the objectives: batches, samples, loss, L1


class Collectives(TorchDispatchMode):
    """Counts all collective operations of this process, including those of DDP.

    `calls` and `bytes` are per operation; bytes are those of the tensors of this rank, before any algorithm.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__.strip("_").removesuffix("_base")
            # The first argument of a gather is its output.
            given = args[1] if "allgather" in name else args[0]
            self.calls[name] += 1
            self.bytes[name] += sum(t.nbytes for t in tree_flatten(given)[0] if isinstance(t, torch.Tensor))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class StepTraffic:
    """Bytes that one rank contributes to the collectives of a step, before any algorithm.

    Attributes:
        gradients: averaged over all ranks, in buckets, during the backward pass.
        features: gathered from all ranks for the contrastive loss, between forward and backward pass.
        row: summed over all ranks for a row of metrics, every `log_every` steps.
        stop: flag whether a rank was told to stop, exchanged with every row.
    """

    gradients: int
    features: int
    row: int
    stop: int

    def sent(self, ranks: int, steps_a_row: int) -> float:
        """Bytes that each rank sends per step with ring algorithms (Patarasuk and Yuan, 2009)."""
        summed = self.gradients + (self.row + self.stop) / steps_a_row
        return 2 * (ranks - 1) / ranks * summed + (ranks - 1) * self.features


def step_traffic(settings: PretrainSettings, modalities: int) -> StepTraffic:
    """The traffic of a step of `pretrain` with DDP and a number of modalities."""
    pooled = settings.architecture().level_channels[-1]
    features = pooled + 1 if settings.contrastive_weight else 0  # and a label
    return StepTraffic(
        gradients=_FLOAT * learning_parameters(settings),
        features=_FLOAT * settings.crops * features,
        row=_FLOAT * (_OTHER_METRICS + len(settings.objectives()) + 2 * modalities),
        stop=8,
    )


def learning_parameters(settings: PretrainSettings) -> int:
    """Number of parameters with gradients; the mask token has one only if blocks are masked."""
    with torch.device("meta"):
        network = RepairNetwork(settings.architecture())
        heads = [each.heads(settings) for each in settings.objectives().values() if each.heads]
    mask_token = getattr(network.encoder, "mask_token", None)
    spared_token = mask_token is not None and not settings.disrupts().masks_voxels
    token = mask_token.numel() if spared_token and mask_token is not None else 0
    halves = {"encoder": network.encoder, "decoder": network.decoder}
    frozen = halves.get(settings.freeze)
    spared = sum(p.numel() for p in frozen.parameters()) if frozen is not None else 0
    everything = sum(p.numel() for part in (network, *heads) for p in part.parameters() if p.requires_grad)
    return everything - spared - (0 if settings.freeze == "encoder" else token)
