"""What pre-training and fine-tuning share: averaging, clipping, learning rate, metrics."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dae3d.drawing.pictures import save_picture
from dae3d.files import inside
from dae3d.models.network import WeightsInfo
from dae3d.training.optimiser import keep_settings, learning_rate, parameter_groups
from dae3d.training.run_settings import RunSettings
from dae3d.training.schedule import Schedule
from dae3d.training.sums import MetricSums


class TrainingModule(lightning.LightningModule, ABC):
    """A network in training.

    Args:
        settings: of the run.
        schedule: of the run.
        network: to be trained.
        pictures: folder for `<name>/<step>.png`.
        sums: to which `training_step` adds the losses of a batch.
    """

    validates_first: ClassVar[bool]  # whether there is a validation before the first step

    def __init__(
        self,
        settings: RunSettings,
        schedule: Schedule,
        network: nn.Module,
        pictures: Path,
        sums: MetricSums,
    ) -> None:
        super().__init__()
        self.run_settings, self.schedule, self.pictures, self.sums = settings, schedule, pictures, sums
        self.network: Any = network
        self.average = None
        if settings.ema_decay is not None:
            # Buffers are position indices: they are copied, because averages of integers would be rounded.
            self.average = AveragedModel(
                network, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=False
            ).requires_grad_(False)
        self.val_loss = math.inf
        self.grad_norm: Tensor | None = None
        self.latest: dict[str, float] = {}
        self._row_start = time.monotonic()
        self._validation_start = self._validation_seconds = 0.0
        self.seconds_not_training = 0.0  # of this process: validation and probing

    @abstractmethod
    def header(self) -> WeightsInfo:
        """Metadata for the weights file, apart from the step and the versions."""

    @property
    def evaluated(self) -> Any:
        """The network that is validated and exported: the average if there is one."""
        return self.network if self.average is None else self.average.module

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser, each with a `scale` for its learning rate."""
        return parameter_groups(self.network, self.run_settings.weight_decay)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip by global norm, and remember the norm."""
        limit = self.run_settings.clip_grad or math.inf
        model: Any = self.trainer.model
        if self.run_settings.strategy == "fsdp":
            self.grad_norm = model.clip_grad_norm_(limit)
        else:
            learning = [p for p in self.parameters() if p.grad is not None]
            self.grad_norm = torch.nn.utils.clip_grad_norm_(learning, limit)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with this run's settings, also when resuming a checkpoint with others."""
        # Fused: one pass over each tensor. Not for fp16, where gradients are unscaled and clipped before.
        fused = self.run_settings.precision != "16-mixed"
        optimizer = torch.optim.AdamW(self.parameter_groups(), lr=self.run_settings.lr, fused=fused)
        optimizer.register_load_state_dict_pre_hook(keep_settings)
        return optimizer

    def set_rates(self) -> None:
        """Set the learning rate of the next step."""
        highest = self.run_settings.lr
        rate = learning_rate(self.global_step, self.run_settings, self.schedule)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = highest * (group["scale"] * rate / highest)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the metadata of the network."""
        checkpoint["header"] = self.header()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Recompute the number of batches from the steps, because `accumulate` may have changed."""
        batches = checkpoint["global_step"] * self.run_settings.accumulate
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            # A checkpoint may have been taken before the last batch counted as completed.
            moved = batches - counts["ready"]
            counts.update({name: count + moved for name, count in counts.items()})

    def on_train_start(self) -> None:
        """Set the first learning rate, and start the clock of the first row."""
        self.set_rates()
        self.sums.reset(self.device)
        self._row_start, self._validation_seconds = time.monotonic(), 0.0

    def end_step(self) -> None:
        """Average the weights, set the next learning rate, and write a row of metrics when due."""
        self.set_rates()
        if self.average is not None:
            self.average.update_parameters(self.network)
        if self.global_step % self.run_settings.log_every == 0:
            self._record_row()

    def _record_row(self) -> None:
        values = self.trainer.strategy.reduce(self.sums.values, reduce_op="sum").tolist()
        seconds = time.monotonic() - self._row_start - self._validation_seconds
        losses, by_kind, samples = self.sums.row(values)
        row = {f"train/{name}": value for name, value in losses.items()}
        row |= {f"train/l1/{kind}": value for kind, value in by_kind.items()}
        row["train/lr"] = learning_rate(self.global_step - 1, self.run_settings, self.schedule)
        row["train/grad_norm"] = float(self.grad_norm if self.grad_norm is not None else math.nan)
        row["train/samples_per_second"] = samples / seconds
        self.record(row)
        self.sums.reset(self.device)
        self._row_start, self._validation_seconds = time.monotonic(), 0.0

    def on_validation_epoch_start(self) -> None:
        """Start the clock of validation, which does not count as training time."""
        self._validation_start = time.monotonic()

    def on_validation_epoch_end(self) -> None:
        """Stop the clock of validation."""
        self._stand_still(time.monotonic() - self._validation_start)

    @contextmanager
    def not_training(self) -> Iterator[None]:
        """Time spent within does not count as training time."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._stand_still(time.monotonic() - start)

    def _stand_still(self, seconds: float) -> None:
        self._validation_seconds += seconds
        self.seconds_not_training += seconds

    def record(self, row: dict[str, float]) -> None:
        """Write a row of metrics of this step, and show it in the progress bar."""
        self.latest |= row
        for logger in self.loggers:
            logger.log_metrics(row, self.global_step)

    def picture(self, name: str, image: np.ndarray) -> None:
        """Save a picture (H, W, 3) uint8 of this step, in the run folder and in TensorBoard."""
        save_picture(image, inside(self.pictures, name) / f"{self.global_step:08d}.png")
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, image, self.global_step, dataformats="HWC")
