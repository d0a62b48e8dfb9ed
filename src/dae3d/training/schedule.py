"""Durations in steps or epochs, and the schedule of a run in steps."""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator


def _duration(value: int | str) -> int | str:
    """A number of steps, or a number of epochs as "4 epochs"."""
    if isinstance(value, int):
        if value < 0:
            raise ValueError("must be 0 or more")
        return value
    match = re.fullmatch(r"\s*(\d+)\s*(steps?|epochs?)?\s*", value)
    if not match:
        raise ValueError('must be a number of steps, such as 1000, or of epochs, such as "4 epochs"')
    count, unit = int(match[1]), match[2] or "steps"
    return count if unit.startswith("step") else f"{count} epochs"


Duration = Annotated[int | str, AfterValidator(_duration)]


def is_zero(duration: int | str) -> bool:
    """Whether a duration is 0 steps or 0 epochs."""
    return duration in (0, "0 epochs")


def in_steps(duration: int | str, steps_per_epoch: int) -> int:
    """A duration in optimiser steps."""
    if isinstance(duration, int):
        return duration
    return int(duration.split()[0]) * steps_per_epoch


@dataclass(frozen=True)
class Schedule:
    """The durations of a run in optimiser steps, named like their settings.

    Attributes:
        probe_every: of pre-training; 0: never.
        freeze_steps: of fine-tuning.
    """

    max_steps: int
    warmup_steps: int
    val_every: int
    save_every: int
    probe_every: int = 0
    freeze_steps: int = 0
