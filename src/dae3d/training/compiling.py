"""torch.compile for training."""

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
    """Compiles the MLPs of the transformer blocks, for training only.

    Attention and norms have custom kernels that a compiler does not improve. Names of weights and checkpoints
    stay the same. Training crops all have one shape, so that a stage is compiled once; validation, with other
    shapes and without gradients, is not compiled.
    """

    def __init__(self) -> None:
        self._first_step = 0.0

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        """Mark blocks for compilation, which happens when they first run.

        Raises:
            Dae3dError: if there is no working compiler.
        """
        _check_compiler(trainer.strategy.root_device)
        for block in module.network.modules():
            if isinstance(block, MLPBlock):
                block.compile(dynamic=False)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock at the first step."""
        self._first_step = self._first_step or time.monotonic()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log how long the first step took."""
        if self._first_step < float("inf"):
            _announce(time.monotonic() - self._first_step)
            self._first_step = float("inf")

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        """Validation runs uncompiled."""
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """Training runs compiled again."""
        torch.compiler.set_stance("default")

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Restore the default for this process."""
        torch.compiler.set_stance("default")


@rank_zero_only
def _announce(seconds: float) -> None:
    log.info("compiled in %.0f s, including the first step", seconds)


def _check_compiler(device: torch.device) -> None:
    """Compile something small, to find out whether there is a C++ compiler, or Triton on a GPU."""
    try:
        torch.compile(torch.nn.functional.gelu)(torch.ones(8, device=device))
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line), type(error).__name__)
        raise Dae3dError(
            f"compile: PyTorch's compiler does not work here: {reason}; install g++ (on a GPU, Triton too), "
            "or use --compile off"
        ) from error
