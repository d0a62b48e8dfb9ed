"""Parameter groups and the learning rate of each step."""

import math
from typing import Any

from torch import nn

from dae3d.training.settings import PretrainSettings


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters that learn, with weight decay on all but biases, norms, position tables and mask token."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            spared = (
                parameter.ndim == 1
                or name.endswith(".bias")
                or "relative_position_bias_table" in name
                or "mask_token" in name
            )
            (plain if spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate(step: int, settings: PretrainSettings) -> float:
    """Linear warm-up, then half a cosine over the whole run, as in the published schedule.

    The cosine counts from step 0, not from the end of the warm-up.
    """
    warmup, total = int(settings.warmup_steps), int(settings.max_steps)
    if step < warmup:
        return settings.warmup_lr + step * (settings.lr - settings.warmup_lr) / warmup
    phase = min(step, total) / max(total, 1)
    return settings.min_lr + 0.5 * (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * phase))
