"""What a run will take: disk space, and once it runs, time and memory."""

import logging
import time
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.filesize import decimal
from torch import nn

from dae3d.memory import peak_memory
from dae3d.words import duration

log = logging.getLogger(__name__)

_FIRST, _LAST = 10, 20  # steps of a process between which time is measured
_MOMENTS = 2  # that Adam keeps of each parameter


def disk_bytes(module: Any, keep: int) -> tuple[int, int]:
    """Bytes of one checkpoint, and of all that a run keeps: so many checkpoints, last and best weights.

    While a checkpoint is written, there is one more.

    Args:
        module: a `TrainingModule`.
        keep: checkpoints that are kept.
    """
    state = _bytes(module)
    trained = sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)
    checkpoint = state + _MOMENTS * trained
    return checkpoint, keep * checkpoint + 2 * _bytes(module.network)


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: that PyTorch took on a GPU, or that of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


class Forecast(lightning.Callback):
    """Logs after 20 steps of this process what the run takes, measured over steps 11 to 20.

    Every step already waits for the loss of the one before (`StopAtNonFiniteLoss`), so the clock needs no
    waiting of its own.

    Args:
        keep: checkpoints that are kept.
        disk: bytes of all that is kept, counted before FSDP splits the network.
    """

    def __init__(self, keep: int, disk: int) -> None:
        self.keep, self.disk = keep, disk
        self._begun_at: int | None = None
        self._start = 0.0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time of step 10, and say what step 20 tells."""
        if (batch_idx + 1) % module.run_settings.accumulate:
            return
        if self._begun_at is None:
            self._begun_at = trainer.global_step - 1
        done = trainer.global_step - self._begun_at
        if done == _FIRST:
            self._start = time.monotonic() - module.seconds_not_training
        elif done == _LAST and trainer.global_step < trainer.max_steps:
            seconds = time.monotonic() - module.seconds_not_training - self._start
            self._say(trainer, seconds / (_LAST - _FIRST))

    @rank_zero_only
    def _say(self, trainer: Any, seconds: float) -> None:
        left = seconds * (trainer.max_steps - trainer.global_step)
        device = trainer.strategy.root_device
        log.info(
            "%.3g s a step (steps %d to %d), %s left without validation; at most %s of %s so far; %s on "
            "disk for %d checkpoints and the weights",
            seconds,
            trainer.global_step - (_LAST - _FIRST) + 1,
            trainer.global_step,
            duration(left),
            decimal(peak_bytes(device)),
            "GPU memory" if device.type == "cuda" else "memory",
            decimal(self.disk),
            self.keep,
        )


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())
