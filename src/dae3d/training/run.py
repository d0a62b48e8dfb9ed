"""What every training run does around its loop: folder, devices, trainer, interruption."""

import logging
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from torch import nn

from dae3d.cores import use_threads
from dae3d.errors import Dae3dError
from dae3d.files import make_folder, unfinished_files, write_text
from dae3d.store.boxes import by_axis, three_sides
from dae3d.training.background import Snapshots
from dae3d.training.callbacks import (
    Progress,
    Rows,
    Saver,
    StopAtNonFiniteLoss,
    find_checkpoints,
    step_of,
)
from dae3d.training.compiling import CompiledBlocks
from dae3d.training.cpu import emulates_bf16, keep_freed_memory
from dae3d.training.forecast import Forecast, disk_bytes
from dae3d.training.loader_process import naming_loader_processes
from dae3d.training.module import TrainingModule
from dae3d.training.record import MetricsFile, log_to
from dae3d.training.resume import refuse_other_network
from dae3d.training.run_settings import RunSettings
from dae3d.training.schedule import Schedule

log = logging.getLogger(__name__)

_LARGE = 30_000_000  # parameters


def train(
    settings: RunSettings,
    module: TrainingModule,
    loaders: lightning.LightningDataModule,
    checkpoint: Path | None,
    about: dict[str, Any],
    scans_of: Callable[[int], list[str]],
    what: str,
    trained_on: list[dict[str, Any]],
    announce: Callable[[], None],
) -> None:
    """Train to the last step, and write everything to the run folder.

    Nothing is written before it is certain that the run can start, or resume, on these devices.

    Args:
        settings: of the run.
        module: to be trained.
        loaders: of this run.
        checkpoint: to resume from.
        about: description of the data for `run.json` and the weights.
        scans_of: the files in the global batch of a given sample.
        what: the command, for the progress bar.
        trained_on: fingerprints of the scans for the weights, as returned by `dae3d.models.provenance.entry`.
        announce: logs what is trained, once that is certain.

    Raises:
        Dae3dError: if the devices are not available, the checkpoint is of another network, or the loss is not
            finite.
        KeyboardInterrupt: if Ctrl-C ended the run early; the message tells how to resume.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    resumed_at = None if checkpoint is None else step_of(checkpoint)
    schedule, snapshots = module.schedule, Snapshots()
    units = module.network.architecture.units
    # The order matters: a bad step is found before anything of it is recorded or saved.
    callbacks: list[lightning.Callback] = [
        StopAtNonFiniteLoss(scans_of, settings.out),
        Rows(),
        Forecast(settings.keep, disk_bytes(module, settings.keep)[1]),
        Progress(settings, schedule, what),
        Saver(settings, schedule, about, snapshots, trained_on),
    ]
    if settings.compile == "on":
        callbacks.append(CompiledBlocks())
    try:
        trainer = _trainer(
            settings, schedule, units, callbacks, snapshots, resumed_at, module.validates_first
        )
    except MisconfigurationException as error:
        raise Dae3dError(f"accelerator, devices, nodes or strategy: {error}") from error
    # Before every step Lightning asks rank 0 whether to stop, which waits for the device. `Saver` asks all
    # ranks instead, with every row of metrics.
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = lambda: None
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu:
        keep_freed_memory()
        use_threads(settings.threads)
    if checkpoint is not None:
        refuse_other_network(module, checkpoint)
    make_folder(settings.out)
    with log_to(settings.out / "log.txt"):
        _write_settings(settings, schedule)
        _remove_unfinished(settings.out)
        announce()
        _announce(settings, resumed_at, trainer, module.network)
        if on_cpu and _precision(settings) == "bf16-mixed" and emulates_bf16():
            log.warning(
                "precision: this processor has no bfloat16, and computes it many times slower than float32; "
                "use --precision 32-true"
            )
        _fit(trainer, module, loaders, checkpoint, settings.out)
        if trainer.global_step < schedule.max_steps:
            raise KeyboardInterrupt(_how_to_go_on(settings.out))
        if trainer.is_global_zero:
            log.info("done: weights in %s", settings.out / "weights")


def _fit(trainer: Any, module: Any, loaders: Any, checkpoint: Path | None, out: Path) -> None:
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with naming_loader_processes():
            trainer.fit(module, loaders, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        # Lightning's reaction to a KeyboardInterrupt; it also disables Ctrl-C.
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt(_how_to_go_on(out)) from None


def _how_to_go_on(out: Path) -> str:
    found = find_checkpoints(out / "checkpoints")
    if found:
        return f"continue with --resume, from step {step_of(found[0])}"
    return "nothing was saved yet to resume from; --resume starts over at step 0"


def _trainer(
    settings: RunSettings,
    schedule: Schedule,
    units: Sequence[type[nn.Module]],
    callbacks: list[lightning.Callback],
    snapshots: Snapshots,
    resumed_at: int | None,
    validate_first: bool,
) -> lightning.Trainer:
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Grad strides do not match.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
    # The replacements are not in every supported PyTorch.
    warnings.filterwarnings("ignore", message=".*(broadcast_buffers|gather_into_tensor).* is deprecated.*")
    loggers = [
        MetricsFile(settings.out / "metrics.csv", resumed_at),
        TensorBoardLogger(settings.out, name="", version="tensorboard", purge_step=resumed_at),
    ]
    devices, nodes = device_count(settings)
    return lightning.Trainer(
        accelerator=settings.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=_strategy(settings, devices * nodes, units),
        precision=_precision(settings),
        max_steps=schedule.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip_grad,
        val_check_interval=schedule.val_every * settings.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=-1 if validate_first else 0,
        log_every_n_steps=settings.log_every,
        logger=loggers,
        callbacks=callbacks,
        plugins=[snapshots],
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=settings.out,
    )


def device_count(settings: RunSettings) -> tuple[int, int]:
    """Devices per node and nodes: as given, as set by the launcher (torchrun), or all GPUs.

    Raises:
        Dae3dError: if a GPU is requested, but there is none.
    """
    local, world = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    gpus = torch.cuda.device_count() if settings.accelerator != "cpu" else 0
    if settings.accelerator == "gpu" and not (gpus or torch.backends.mps.is_available()):
        raise Dae3dError(
            "accelerator: gpu was requested (as in the shipped configs for GPUs), but PyTorch finds none. "
            "--config small-cpu is for a machine without a GPU; --accelerator cpu trains this network "
            "anyway, which may take weeks"
        )
    devices = settings.devices or int(local or 0) or max(1, gpus)
    nodes = settings.nodes or (int(world) // devices if world and local else 1)
    return devices, nodes


def _strategy(settings: RunSettings, world_size: int, units: Sequence[type[nn.Module]]) -> Strategy | str:
    if settings.strategy == "fsdp":
        if settings.accelerator == "cpu" or not torch.cuda.is_available():
            raise Dae3dError("strategy: fsdp needs GPUs; use ddp")
        return FSDPStrategy(auto_wrap_policy=set(units), state_dict_type="full", use_orig_params=True)
    if settings.strategy == "ddp" or world_size > 1:
        # Buffers are tables of positions, the same in every process from the start.
        return DDPStrategy(gradient_as_bucket_view=True, broadcast_buffers=False)
    return "auto"


def _precision(settings: RunSettings) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    if settings.precision != "auto":
        return settings.precision
    on_gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


@rank_zero_only
def _write_settings(settings: RunSettings, schedule: Schedule) -> None:
    saved = settings.out / "settings.yaml"
    text = settings.recorded(schedule).with_absolute_paths().to_yaml()
    if saved.is_file() and saved.read_text() != text:
        before, now = yaml.safe_load(saved.read_text()), yaml.safe_load(text)
        if "roi" in before:  # a single number means three
            before["roi"] = list(three_sides(before["roi"]))
        changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
        if changed:
            log.info("settings changed since the run began: %s", "; ".join(changed))
    write_text(saved, text)


@rank_zero_only
def _remove_unfinished(out: Path) -> None:
    """Remove partial files of a killed process: a checkpoint may be gigabytes."""
    for folder in ("checkpoints", "weights"):
        for part in unfinished_files(out / folder):
            part.unlink(missing_ok=True)


@rank_zero_only
def _announce(settings: RunSettings, resumed_at: int | None, trainer: Any, network: nn.Module) -> None:
    log.info(
        "%s %s: crops of %s, batch %d x %d, precision %s",
        "resuming at step" if resumed_at else "from step",
        resumed_at or 0,
        by_axis(settings.roi),
        settings.crops * settings.accumulate,
        trainer.world_size,
        trainer.precision,
    )
    parameters = sum(p.numel() for p in network.parameters())
    if settings.accelerator == "auto" and trainer.strategy.root_device.type == "cpu" and parameters > _LARGE:
        log.warning(
            "no GPU was found: a network of %.0f million parameters takes minutes per step on a CPU; "
            "use a small one (--config small-cpu, or --size small with resenc)",
            parameters / 1e6,
        )
