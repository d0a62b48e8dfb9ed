"""The command `pretrain`."""

import logging
from functools import partial
from pathlib import Path

import lightning
from lightning.fabric.utilities.rank_zero import rank_zero_only

from dae3d.models.weights import read_weights
from dae3d.planning.auto_batch import with_batch_size
from dae3d.planning.trial import PretrainTrial
from dae3d.probing.probe import probe_of_run
from dae3d.settings import command
from dae3d.training.beginning import Beginning, begin_pretraining, with_all_sizes, with_sizes_of_init
from dae3d.training.callbacks import step_of
from dae3d.training.data import CropLoaders, TrainingData, training_data
from dae3d.training.legs import Leg, baselines_due, legs_of, say_new_data
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.pretraining import Pretraining
from dae3d.training.resume import checkpoint_of, read_checkpoint
from dae3d.training.run import device_count, train
from dae3d.training.run_settings import AUTO

log = logging.getLogger(__name__)


@command
def pretrain(settings: PretrainSettings) -> Path:
    """Pre-train a network on a store by disruption and repair.

    Writes to the run folder: `settings.yaml`, `metrics.csv`, `run.json`, `log.txt`, `tensorboard/`,
    `checkpoints/` to resume from, `weights/last.safetensors` and `weights/best.safetensors`, `pictures/`.

    Returns:
        The run folder.

    Raises:
        Dae3dError: if the store has no scans to train on, the run folder already has a run or one that cannot
            be resumed, or the loss is not finite.
    """
    checkpoint = checkpoint_of(settings)
    if settings.init is not None and checkpoint is None:
        settings = with_sizes_of_init(settings, read_weights(settings.init, settings.monai_merging))
    if checkpoint is not None:
        settings = _as_trained(settings, checkpoint)
    devices, nodes = device_count(settings)
    if settings.batch_size == AUTO:
        # The voxel size may decide the network, and the network the memory.
        few = settings.model_copy(update={"batch_size": 2})
        settings = with_all_sizes(settings, training_data(few, devices * nodes).scans.spacing())
        settings = with_batch_size(settings, PretrainTrial, devices * nodes)
    data = training_data(settings, devices * nodes)
    settings = with_all_sizes(settings, data.scans.spacing())
    schedule = settings.schedule(-(-data.batches_per_epoch // settings.accumulate))
    resumed_at = None if checkpoint is None else step_of(checkpoint)
    if resumed_at is not None and resumed_at >= schedule.max_steps:
        log.info("%s is already at step %s of %s", settings.out, resumed_at, schedule.max_steps)
        return settings.out
    lightning.seed_everything(settings.seed, verbose=False)
    begun = begin_pretraining(settings, resumed=checkpoint is not None)
    preparation = data.store.scans.header.preparation
    pictures, spacing = settings.out / "pictures", data.scans.spacing()
    module = Pretraining(settings, schedule, data.modalities, preparation, pictures, spacing, begun.network)
    about = {
        "kind": "pretrain",
        "init": str(settings.init) if settings.init else None,
        "disruption": settings.disruption,
        "damage": settings.disrupts().damage,
        **data.about(),
    }
    legs = legs_of(settings.out, about, resumed_at)
    module.baselines_due = baselines_due(settings.out, legs)
    module.probe = probe_of_run(settings, data)
    train(
        settings,
        module,
        CropLoaders(data, settings),
        checkpoint,
        about={**about, "legs": legs},
        scans_of=data.scans_of,
        what="pretrain",
        trained_on=data.trained_on(begun.trained_on),
        announce=partial(_announce, settings, data, begun, legs, resumed_at),
    )
    return settings.out


def _as_trained(settings: PretrainSettings, checkpoint: Path) -> PretrainSettings:
    """With the whole decoder if the checkpoint has it: resenc once had, whatever was set."""
    if "network.decoder.head.weight" in read_checkpoint(checkpoint)["state_dict"]:
        return settings.model_copy(update={"repair_from": "full"})
    return settings


@rank_zero_only
def _announce(
    settings: PretrainSettings,
    data: TrainingData,
    begun: Beginning,
    legs: list[Leg],
    resumed_at: int | None,
) -> None:
    modalities = ", ".join(data.modalities)
    log.info("pre-training on %s: %s, disruption %s", settings.data, modalities, settings.disruption)
    if settings.leave_out is not None:
        log.info("left out: %d scans of subjects in %s", len(data.scans.left_out), settings.leave_out)
    idle = _why_contrast_is_idle(data) if settings.contrastive_weight else None
    if idle:
        log.warning(
            "contrastive_weight: %s; use more crops per step or more modalities, or --contrastive-weight 0",
            idle,
        )
    if begun.report is not None:
        begun.report.print()
    if settings.freeze != "none" and settings.init is None:
        log.warning("freeze: the %s keeps its random initial weights; --init loads others", settings.freeze)
    say_new_data(legs, resumed_at)


def _why_contrast_is_idle(data: TrainingData) -> str | None:
    """Why the contrastive loss has nothing to learn from, or None."""
    crops = data.stream.global_batch
    if crops < 3:
        return (
            f"with {crops} crops per step on all devices together, no crop has both another of its modality "
            "and one of a different modality, so the contrastive loss is always 0"
        )
    if len(data.modalities) == 1:
        return "with one modality the contrastive loss has no negative pairs, and only makes all crops alike"
    return None
