"""The verb `pretrain`."""

import logging
from pathlib import Path

import lightning
from lightning.fabric.utilities.rank_zero import rank_zero_only

from dae3d.settings import verb
from dae3d.training.data import CropLoaders, TrainingData, training_data
from dae3d.training.legs import baselines_due, legs_of
from dae3d.training.pretraining import Pretraining
from dae3d.training.record import log_to
from dae3d.training.run import device_count, prepare_run_folder, step_of, train
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
    devices, nodes = device_count(settings)
    data = training_data(settings, devices * nodes)
    settings = settings.for_epochs_of(-(-data.batches_per_epoch // settings.accumulate))
    checkpoint = prepare_run_folder(settings)
    if (step_of(checkpoint) or 0) >= int(settings.max_steps):
        log.info("%s is already at step %s of %s", settings.out, step_of(checkpoint), settings.max_steps)
        return settings.out
    with log_to(settings.out / "log.txt"):
        _announce(settings, data)
        lightning.seed_everything(settings.seed, verbose=False)
        preparation = data.store.scans.header.preparation
        module = Pretraining(settings, data.modalities, preparation, settings.out / "pictures")
        about = {"kind": "pretrain", "disruption": settings.disruption, **data.about()}
        about["legs"] = legs_of(settings.out, about, step_of(checkpoint))
        module.baselines_due = baselines_due(settings.out, about["legs"])
        loaders, trained_on = CropLoaders(data, settings), data.trained_on()
        train(settings, module, loaders, checkpoint, about, data.scans_of, "pretrain", trained_on)
    return settings.out


@rank_zero_only
def _announce(settings: PretrainSettings, data: TrainingData) -> None:
    modalities = ", ".join(data.modalities)
    log.info("pre-training on %s: %s, disruption %s", settings.data, modalities, settings.disruption)
    if settings.freeze != "none":
        log.warning(
            "freeze: the %s begins with random values, and keeps them: pre-training takes no weights over",
            settings.freeze,
        )
