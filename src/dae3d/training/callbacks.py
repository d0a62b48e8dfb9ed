"""Lightning callbacks: stop at a non-finite loss, save, handle Ctrl-C, show progress."""

import functools
import logging
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import TQDMProgressBar

from dae3d.errors import Dae3dError
from dae3d.files import whole_file
from dae3d.models.network import WeightsInfo
from dae3d.models.provenance import continued
from dae3d.models.weights import save_weights
from dae3d.training.background import Background, Snapshots, on_cpu
from dae3d.training.record import RunRecord, versions
from dae3d.training.run_settings import RunSettings
from dae3d.training.schedule import Schedule

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopAtNonFiniteLoss(lightning.Callback):
    """Ends the run when a loss or a gradient is NaN or infinite, before its weights are saved.

    A step is checked only after the next one has been sent to the device, or before something is saved, so
    that the check does not stall the device.

    Args:
        scans_of: the files in the global batch of a given sample.
        out: run folder.
    """

    def __init__(self, scans_of: Callable[[int], list[str]], out: Path) -> None:
        self.scans_of, self.out = scans_of, out
        self._pending: tuple[int, torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check the previous step, and remember this one."""
        self.check()
        # With fp16, infinite gradients are normal: the gradient scaler skips them.
        gradient = None if module.run_settings.precision == "16-mixed" else module.grad_norm
        self._pending = (trainer.global_step, batch["sample"], outputs["loss"].detach(), gradient)

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        """Check before validation."""
        self.check()

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
        """Check before saving."""
        self.check()

    def check(self) -> None:
        """Raise if the remembered step was not finite.

        Raises:
            Dae3dError: with the step, the scans of its batch and the last good checkpoint.
        """
        if self._pending is None:
            return
        step, samples, loss, gradient = self._pending
        self._pending = None
        finite = bool(torch.isfinite(loss)) and (gradient is None or bool(torch.isfinite(gradient)))
        if finite:
            return
        scans = self.scans_of(int(samples[0]))
        saved = find_checkpoints(self.out / "checkpoints")
        raise Dae3dError(
            f"loss or gradient is not finite at step {step} (loss {float(loss)}"
            + (f", gradient norm {float(gradient)}" if gradient is not None else "")
            + "); scans in the batch:\n  "
            + "\n  ".join(scans)
            + f"\nlast checkpoint: {saved[0] if saved else 'none yet'}. Nothing was overwritten. "
            + _advice(step, saved)
        )


def _advice(step: int, saved: list[Path]) -> str:
    """What to do about a bad step; a lower rate helps only if it changes the weights before that step."""
    if not saved:
        return "Check these scans; start over with --resume and a lower lr, or with precision 32-true."
    if step_of(saved[0]) < step - 1:
        return "Check these scans; resume with a lower lr (--resume --lr ...), or with precision 32-true."
    return (
        "It holds the weights before this very step, so lower lr from an earlier one: remove it, "
        "then --resume --lr ...; or check these scans, or resume with precision 32-true."
    )


class Rows(lightning.Callback):
    """Ends each optimiser step: averages the weights and writes a row of metrics when due."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Call the module; its own hook of this name would run after the callbacks that save."""
        if (batch_idx + 1) % module.run_settings.accumulate == 0:
            module.end_step()


class Saver(lightning.Callback):
    """Saves checkpoints to resume from, and weights to use: last, and best by validation loss.

    Training waits only for a copy in memory, and continues while it is written. If a validation is due at the
    same step, the checkpoint is saved after it, so that a resumed run does not repeat it. Ctrl-C or SIGTERM
    ends the run at the next row of metrics with everything saved; a second one ends it at once.

    Args:
        settings: of the run.
        schedule: of the run.
        about: description of the data for `run.json` and the weights.
        snapshots: the trainer's checkpoint plugin.
        trained_on: fingerprints of the scans for the weights, as returned by `dae3d.models.provenance.entry`.
    """

    def __init__(
        self,
        settings: RunSettings,
        schedule: Schedule,
        about: dict[str, Any],
        snapshots: Snapshots,
        trained_on: list[dict[str, Any]],
    ) -> None:
        self.checkpoints, self.weights = settings.out / "checkpoints", settings.out / "weights"
        self.settings, self.schedule = settings, schedule
        self.about, self.snapshots, self.trained_on = about, snapshots, trained_on
        self.best: dict[str, Any] = {"step": None, "loss": sys.float_info.max}
        self.interrupted = False
        self._previous: dict[int, Any] = {}
        self._background = Background()

    def state_dict(self) -> dict[str, Any]:
        """The best validation so far, and the training scans; part of checkpoints."""
        return {"best": dict(self.best), "trained_on": self.trained_on}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        self.best = state_dict["best"]
        self.trained_on = continued(state_dict.get("trained_on"), self.trained_on)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Handle Ctrl-C, and SIGTERM from a launcher or a queue."""
        self.record = RunRecord(self.settings, self.schedule.max_steps, self.about, trainer, module.network)
        if trainer.is_global_zero:
            self.record.write(trainer.global_step, finished=False)
        self._previous = {number: signal.signal(number, self._interrupt) for number in _SIGNALS}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when due.

        Raises:
            Dae3dError: if the previous save could not be written.
        """
        self._background.check()
        step = trainer.global_step
        if (batch_idx + 1) % self.settings.accumulate:
            return
        if step == trainer.max_steps:
            trainer.should_stop = True
        elif step % self.settings.log_every == 0:
            trainer.should_stop |= trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)
        # A run that stops is validated first.
        validates = trainer.should_stop or step % self.schedule.val_every == 0
        if step % self.schedule.save_every == 0 and not validates:
            self._save(trainer, module, best=False, checkpoint=True)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """Save the best weights, and the checkpoint if due."""
        if trainer.sanity_checking:
            return
        better = module.val_loss < self.best["loss"]
        if better:
            self.best = {"step": trainer.global_step, "loss": module.val_loss}
        due = trainer.should_stop or trainer.global_step % self.schedule.save_every == 0
        if better or due:
            self._save(trainer, module, better, due)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Restore the signal handlers once everything is written."""
        self._background.wait()
        self._stop_listening()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Finish writing, and restore the signal handlers."""
        try:
            self._background.wait()
        except Dae3dError as error:
            log.error("%s", error)
        self._stop_listening()

    def _stop_listening(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _interrupt(self, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        log.info("\nstopping after the next row of metrics; press Ctrl-C again to stop at once")

    def _save(self, trainer: Any, module: Any, best: bool, checkpoint: bool) -> None:
        """Copy the state of this step, and start writing it."""
        self._background.wait()  # so that there is at most one copy in memory
        if checkpoint:
            trainer.save_checkpoint(self.checkpoints)
            whole = self.snapshots.take()
            state = whole.get("state_dict", {})
        else:
            whole, state = {}, on_cpu(trainer.strategy.lightning_module_state_dict())
        if trainer.is_global_zero:
            prefix = "average.module." if module.average is not None else "network."
            network = {n.removeprefix(prefix): tensor for n, tensor in state.items() if n.startswith(prefix)}
            weights = functools.partial(
                save_weights,
                state=network,
                architecture=module.network.architecture,
                info=self._info(trainer, module),
            )
            finished = trainer.global_step >= trainer.max_steps
            self._background.start(lambda: self._write(weights, best, whole, finished))

    def _write(
        self, weights: Callable[[Path], None], best: bool, checkpoint: dict[str, Any], finished: bool
    ) -> None:
        try:
            # A checkpoint refers to the best weights, so these are written first.
            if best:
                weights(self.weights / "best.safetensors")
            if checkpoint:
                step = checkpoint["global_step"]
                with whole_file(self.checkpoints / f"step-{step:08d}.ckpt") as temporary:
                    torch.save(checkpoint, temporary)
                weights(self.weights / "last.safetensors")
                self.record.write(step, finished)
                # A checkpoint of a later step is unreadable, or this run would have resumed from it.
                kept = [path for path in find_checkpoints(self.checkpoints) if step_of(path) <= step]
                for old in kept[self.settings.keep :]:
                    old.unlink()
        except RuntimeError as error:
            # PyTorch raises this if the disk is full.
            reason = str(error).splitlines()[0]
            raise Dae3dError(f"{self.settings.out}: cannot be written: {reason}") from error

    def _info(self, trainer: Any, module: Any) -> WeightsInfo:
        info: WeightsInfo = {"step": trainer.global_step, "best_validation": self.best}
        info.update(module.header())
        rest: WeightsInfo = {
            "settings": self.settings.recorded(self.schedule).model_dump(mode="json"),
            "versions": versions(),
            "data": self.about["data"]["rows"],
            "trained_on": self.trained_on,
        }
        info.update(rest)
        return info


class Progress(TQDMProgressBar):
    """Lightning's progress bar, over all steps of the run, with the latest row of metrics."""

    def __init__(self, settings: RunSettings, schedule: Schedule, what: str) -> None:
        super().__init__(refresh_rate=settings.log_every * settings.accumulate)
        self.what, self.accumulate = what, settings.accumulate
        self.batches = schedule.max_steps * settings.accumulate

    @property
    def total_train_batches(self) -> int:
        """Batches of the whole run; the loader itself is endless."""
        return self.batches

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        """Start at the step resumed from, so that rate and estimate are those of this process."""
        super().on_train_start(trainer)
        bar = self.train_progress_bar
        bar.reset(self.batches)
        bar.initial = bar.n = trainer.global_step * self.accumulate
        bar.set_description(self.what)

    def on_train_epoch_start(self, *_: Any) -> None:
        """Do not reset the bar: all steps are one epoch."""

    def get_metrics(self, trainer: Any, module: Any) -> dict[str, int | str | float | dict[str, float]]:
        """Losses and samples per second."""
        shown = (
            "train/loss",
            "train/l1",
            "train/contrastive",
            "train/samples_per_second",
            "val/loss",
            "val/dice",
        )
        return {n.removeprefix("train/"): f"{module.latest[n]:.3g}" for n in shown if n in module.latest}


def find_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, the newest first."""
    found = [p for p in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d+\.ckpt", p.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint."""
    return int(checkpoint.stem.removeprefix("step-"))
