"""Parameter groups and the learning rate of each step."""

import math
import re
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dae3d.training.run_settings import RunSettings
from dae3d.training.schedule import Schedule

_SPARED = re.compile(r"\.bias$|norm\d*\.weight$|relative_position_bias_table$|mask_token$")
_DECODER = 5  # the depth of the decoder: after the patch embedding (0) and four stages


def parameter_groups(
    network: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Parameters that learn, with weight decay on all but biases, norms, position tables and mask token.

    Each group has a `scale` of its learning rate: 1 for the decoder, `layer_decay` for the encoder's last
    stage, `layer_decay` squared for the one before, and so on to the patch embedding.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        # By name, because FSDP makes all parameters one-dimensional.
        spared = bool(_SPARED.search(name))
        scale = layer_decay ** (_DECODER - _depth(name))
        decay = 0.0 if spared else weight_decay
        group = {"params": [], "weight_decay": decay, "scale": scale}
        groups.setdefault((scale, spared), group)["params"].append(parameter)
    return list(groups.values())


def _depth(name: str) -> int:
    """0 for the patch embedding, 1 to 4 for the encoder's stages, 5 for the decoder."""
    stage = re.match(r"encoder\.stages\.(\d)\.", name)
    if stage:
        return int(stage[1]) + 1
    return 0 if name.startswith("encoder.") else _DECODER


def keep_settings(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state to load into an optimiser, with the optimiser's own settings in place of those in there.

    Args:
        optimizer: with groups of as many parameters.
        state: as of `Optimizer.state_dict`.
    """
    pairs = zip(optimizer.param_groups, state["param_groups"], strict=True)
    return {**state, "param_groups": [{**own, "params": saved["params"]} for own, saved in pairs]}


def learning_rate(step: int, settings: RunSettings, schedule: Schedule) -> float:
    """Linear warm-up, then half a cosine that ends with the run.

    The cosine counts from the end of the warm-up, or with `cosine_from` "start" from step 0, as in the
    published pre-training: then it begins below `lr`.
    """
    warmup, total = schedule.warmup_steps, schedule.max_steps
    if step < warmup:
        return settings.warmup_lr + step * (settings.lr - settings.warmup_lr) / warmup
    first = warmup if settings.cosine_from == "warmup" else 0
    phase = (min(step, total) - first) / max(total - first, 1)
    return settings.min_lr + 0.5 * (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * phase))
