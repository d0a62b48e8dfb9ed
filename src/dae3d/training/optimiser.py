"""Parameter groups, and the learning rate of each step."""

import math
import re
from typing import Any

from torch.optim import Optimizer

from dae3d.models.network import Network
from dae3d.training.run_settings import RunSettings
from dae3d.training.schedule import Schedule

_NO_DECAY = re.compile(r"\.bias$|norm\d*\.weight$|relative_position_bias_table$|mask_token$")


def parameter_groups(network: Network, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Trainable parameters, with weight decay on all but biases, norms, position bias tables and mask token.

    Each group has a `scale` for its learning rate: 1 for the decoder, `layer_decay` for the last encoder
    stage, `layer_decay` squared for the one before, and so on to the patch embedding.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        # By name, because FSDP makes all parameters one-dimensional.
        no_decay = bool(_NO_DECAY.search(name))
        scale = layer_decay ** network.architecture.distance(name)
        decay = 0.0 if no_decay else weight_decay
        group = {"params": [], "weight_decay": decay, "scale": scale}
        groups.setdefault((scale, no_decay), group)["params"].append(parameter)
    return list(groups.values())


def keep_settings(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state to load into an optimiser, with the settings of the optimiser instead of the saved ones.

    Args:
        optimizer: with groups of as many parameters.
        state: as from `Optimizer.state_dict`.
    """
    pairs = zip(optimizer.param_groups, state["param_groups"], strict=True)
    return {**state, "param_groups": [{**own, "params": saved["params"]} for own, saved in pairs]}


def learning_rate(step: int, settings: RunSettings, schedule: Schedule) -> float:
    """Linear warm-up, then a half cosine until the end of the run.

    The cosine starts at the end of the warm-up, or with `cosine_from` "start" at step 0 as in the published
    pre-training; then the rate is below `lr` after the warm-up.
    """
    warmup, total = schedule.warmup_steps, schedule.max_steps
    if step < warmup:
        return settings.warmup_lr + step * (settings.lr - settings.warmup_lr) / warmup
    first = warmup if settings.cosine_from == "warmup" else 0
    phase = (min(step, total) - first) / max(total - first, 1)
    return settings.min_lr + 0.5 * (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * phase))
