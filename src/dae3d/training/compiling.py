"""torch.compile of a network in training."""

import logging
import time
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from monai.networks.blocks.mlp import MLPBlock

from dae3d.errors import Dae3dError

log = logging.getLogger(__name__)


class CompiledBlocks(lightning.Callback):
    """Compiles the MLPs of the transformer's blocks, for training alone.

    Attention and norms have passes of their own, which a compiler does not better. Names of weights and
    checkpoints stay as they are. Crops of training have one shape, so that a stage is compiled once;
    validation, of other shapes and without gradients, runs uncompiled.
    """

    def __init__(self) -> None:
        self._first_step = 0.0

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        """Compile, which happens when a block first runs.

        Raises:
            Dae3dError: where there is no compiler that works.
        """
        _try(trainer.strategy.root_device)
        for block in module.network.modules():
            if isinstance(block, MLPBlock):
                block.compile(dynamic=False)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock at the first step."""
        self._first_step = self._first_step or time.monotonic()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Say how long the first step took."""
        if self._first_step < float("inf"):
            _announce(time.monotonic() - self._first_step)
            self._first_step = float("inf")

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        """Nothing is compiled for validation."""
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """Back to what was compiled."""
        torch.compiler.set_stance("default")

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Leave this process as it was."""
        torch.compiler.set_stance("default")


@rank_zero_only
def _announce(seconds: float) -> None:
    log.info("compiled in %.0f s, the first step with it", seconds)


def _try(device: torch.device) -> None:
    """Compile something small, to find out whether there is a C++ compiler, or Triton."""
    try:
        torch.compile(torch.nn.functional.gelu)(torch.ones(8, device=device))
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line), type(error).__name__)
        raise Dae3dError(
            f"compile: PyTorch's compiler does not work here: {reason}; install g++ (on a GPU, Triton too), "
            "or say --compile off"
        ) from error
