"""What the processes of a pre-training run send each other in a step: counted, and by calculation."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dae3d.models.swin_unetr import SwinUNETR
from dae3d.training.pretrain_settings import PretrainSettings

_FLOAT = 4  # bytes
_BESIDE = 4  # of a row of metrics, beside the objectives: batches, samples, loss, L1


class Collectives(TorchDispatchMode):
    """Counts every collective that this process takes part in, those of DDP's reducer included.

    `calls` and `bytes` are by operation; bytes are those of this rank's tensors, before any algorithm.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__.strip("_").removesuffix("_base")
            # A gather is given where to write first.
            given = args[1] if "allgather" in name else args[0]
            self.calls[name] += 1
            self.bytes[name] += sum(t.nbytes for t in tree_flatten(given)[0] if isinstance(t, torch.Tensor))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class StepTraffic:
    """Bytes that one rank puts into the collectives of a step, before any algorithm.

    Attributes:
        gradients: averaged over all ranks, in buckets, while the backward pass goes on.
        features: gathered from all ranks for the contrastive loss, between the passes.
        row: summed over all ranks for a row of metrics, every `log_every` steps.
        stop: whether a rank was told to stop, asked with every row.
    """

    gradients: int
    features: int
    row: int
    stop: int

    def sent(self, ranks: int, steps_a_row: int) -> float:
        """Bytes that each rank sends in a step, by ring algorithms (Patarasuk and Yuan, 2009)."""
        summed = self.gradients + (self.row + self.stop) / steps_a_row
        return 2 * (ranks - 1) / ranks * summed + (ranks - 1) * self.features


def step_traffic(settings: PretrainSettings, modalities: int) -> StepTraffic:
    """The traffic of a step of `pretrain` under DDP with as many modalities."""
    features = 16 * settings.embed_dim + 1 if settings.contrastive_weight else 0
    return StepTraffic(
        gradients=_FLOAT * learning_parameters(settings),
        features=_FLOAT * settings.batch_size * features,
        row=_FLOAT * (_BESIDE + len(settings.objectives()) + 2 * modalities),
        stop=8,
    )


def learning_parameters(settings: PretrainSettings) -> int:
    """Parameters that have gradients; the mask token has none but where blocks are masked."""
    with torch.device("meta"):
        network = SwinUNETR(settings.architecture())
        heads = [each.heads(settings) for each in settings.objectives().values() if each.heads]
    token = 0 if settings.disrupts().masks_voxels else settings.embed_dim
    halves = {"encoder": network.encoder, "decoder": network.decoder}
    frozen = halves.get(settings.freeze)
    spared = sum(p.numel() for p in frozen.parameters()) if frozen is not None else 0
    everything = sum(p.numel() for part in (network, *heads) for p in part.parameters() if p.requires_grad)
    return everything - spared - (0 if settings.freeze == "encoder" else token)
