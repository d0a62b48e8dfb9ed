"""The verb `pretrain`."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy

from dae3d.errors import Dae3dError
from dae3d.files import write_text
from dae3d.settings import verb
from dae3d.training.callbacks import Progress, Rows, Saver, StopAtNonFiniteLoss, find_checkpoints
from dae3d.training.cpu import keep_freed_memory
from dae3d.training.data import CropLoaders, TrainingData, training_data
from dae3d.training.module import Pretraining
from dae3d.training.record import MetricsFile, log_to
from dae3d.training.settings import PretrainSettings

log = logging.getLogger(__name__)


@verb
def pretrain(settings: PretrainSettings) -> Path:
    """Pre-train a network on a store by disruption and repair.

    Writes to the run folder: `settings.yaml`, `metrics.csv`, `run.json`, `log.txt`, `tensorboard/`,
    `checkpoints/` to resume from, `weights/last.safetensors` and `weights/best.safetensors`, `pictures/`.

    Returns:
        The run folder.

    Raises:
        Dae3dError: where the store has nothing to train on, the run folder already holds a run, or the loss
            is not finite.
    """
    devices, nodes = _devices(settings)
    data = training_data(settings, devices * nodes)
    settings = settings.for_epochs_of(-(-data.batches_per_epoch // settings.accumulate))
    checkpoint = _prepare_run_folder(settings)
    resumed_at = None if checkpoint is None else int(checkpoint.stem.removeprefix("step-"))
    if resumed_at is not None and resumed_at >= int(settings.max_steps):
        log.info("%s is already at step %d of %s", settings.out, resumed_at, settings.max_steps)
        return settings.out

    with log_to(settings.out / "log.txt"):
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        lightning.seed_everything(settings.seed, verbose=False)
        module = Pretraining(settings, data.modalities, settings.out / "pictures")
        try:
            trainer = _trainer(settings, data, devices, nodes, resumed_at)
        except MisconfigurationException as error:
            raise Dae3dError(f"accelerator, devices, nodes or strategy: {error}") from error
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        _announce(settings, data.modalities, resumed_at, trainer)
        # Our own checkpoints hold Lightning's bookkeeping, which is more than tensors.
        trainer.fit(module, CropLoaders(data, settings), ckpt_path=checkpoint, weights_only=False)
        if trainer.global_step < int(settings.max_steps):
            raise KeyboardInterrupt
        if trainer.is_global_zero:
            log.info("done: weights in %s", settings.out / "weights")
    return settings.out


def _trainer(
    settings: PretrainSettings, data: TrainingData, devices: int, nodes: int, resumed_at: int | None
) -> lightning.Trainer:
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    warnings.filterwarnings("ignore", message=".*Grad strides do not match.*")
    loggers = [
        MetricsFile(settings.out / "metrics.csv", resumed_at),
        TensorBoardLogger(settings.out, name="", version="tensorboard", purge_step=resumed_at),
    ]
    # The order matters: a bad step is found before anything of it is recorded or saved.
    callbacks = [StopAtNonFiniteLoss(data, settings.out), Rows(), Progress(settings), Saver(settings, data)]
    return lightning.Trainer(
        accelerator=settings.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=_strategy(settings, devices * nodes),
        precision=_precision(settings),
        max_steps=int(settings.max_steps),
        max_epochs=-1,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip_grad,
        val_check_interval=int(settings.val_every) * settings.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=-1,
        log_every_n_steps=settings.log_every,
        logger=loggers,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=settings.out,
    )


def _devices(settings: PretrainSettings) -> tuple[int, int]:
    """Devices a node and nodes: as asked for, as the launcher (torchrun) says, or all GPUs there are."""
    local, world = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    gpus = torch.cuda.device_count() if settings.accelerator != "cpu" else 0
    devices = settings.devices or int(local or 0) or max(1, gpus)
    nodes = settings.nodes or (int(world) // devices if world and local else 1)
    return devices, nodes


def _strategy(settings: PretrainSettings, world_size: int) -> Strategy | str:
    if settings.strategy == "fsdp":
        if settings.accelerator == "cpu" or not torch.cuda.is_available():
            raise Dae3dError("strategy: fsdp needs GPUs; use ddp")
        from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
        from monai.networks.nets.swin_unetr import BasicLayer

        units = {BasicLayer, UnetrBasicBlock, UnetrUpBlock}
        return FSDPStrategy(auto_wrap_policy=units, state_dict_type="full", use_orig_params=True)
    if settings.strategy == "ddp" or world_size > 1:
        return DDPStrategy(gradient_as_bucket_view=True)
    return "auto"


def _precision(settings: PretrainSettings) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    if settings.precision != "auto":
        return settings.precision
    on_gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def _prepare_run_folder(settings: PretrainSettings) -> Path | None:
    """Make the run folder; returns the checkpoint to go on from, None to start."""
    out = settings.out
    found = find_checkpoints(out / "checkpoints")
    if (found or (out / "metrics.csv").is_file()) and not settings.resume:
        raise Dae3dError(f"out: {out} holds a run; go on with --resume, or name another folder")
    checkpoint = next((path for path in found if _readable(path)), None)
    _write_settings(settings)
    return checkpoint


@rank_zero_only
def _write_settings(settings: PretrainSettings) -> None:
    saved = settings.out / "settings.yaml"
    text = settings.model_copy(update={"resume": False}).to_yaml()
    if saved.is_file() and saved.read_text() != text:
        before, now = yaml.safe_load(saved.read_text()), yaml.safe_load(text)
        changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
        log.info("settings changed since the run began: %s", "; ".join(changed))
    write_text(saved, text)


def _readable(checkpoint: Path) -> bool:
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
    except Exception as error:
        log.warning("%s cannot be read (%s); taking the one before", checkpoint, error)
        return False
    return True


@rank_zero_only
def _announce(
    settings: PretrainSettings, modalities: list[str], resumed_at: int | None, trainer: Any
) -> None:
    log.info(
        "%s %s on %s: %s, crops of %d^3, batch %d x %d, %s, precision %s",
        "resuming at step" if resumed_at else "pre-training from step",
        resumed_at or 0,
        settings.data,
        ", ".join(modalities),
        settings.roi,
        settings.batch_size * settings.accumulate,
        trainer.world_size,
        settings.disruption,
        trainer.precision,
    )
