"""The command `finetune`."""

import logging
from functools import partial
from pathlib import Path

import lightning
from lightning.fabric.utilities.rank_zero import rank_zero_only

from dae3d.errors import Dae3dError, SettingsError
from dae3d.models.loading import refuse_another_network
from dae3d.models.weights import read_weights
from dae3d.planning.auto_batch import with_batch_size
from dae3d.planning.trial import FinetuneTrial
from dae3d.settings import command
from dae3d.store.recipe import CaseRecipe
from dae3d.training.augment import say_sides, with_flip_axes
from dae3d.training.beginning import ONE_MM, Beginning, begin_with, with_all_sizes, with_sizes_of_init
from dae3d.training.callbacks import find_checkpoints, step_of
from dae3d.training.cases import CaseLoaders, LabelledData, labelled_data
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.finetuning import Finetuning
from dae3d.training.legs import Leg, legs_of, say_new_data
from dae3d.training.resume import checkpoint_of, read_checkpoint, saved_settings
from dae3d.training.run import device_count, train

log = logging.getLogger(__name__)


@command
def finetune(settings: FinetuneSettings) -> Path:
    """Fine-tune a network for segmentation on a list of labelled cases.

    The cases are prepared once, into a store. The run folder has the form of `pretrain`'s; the best weights
    have the highest mean Dice over the validation cases, segmented with sliding windows. The mean of a case
    is over the classes in its label, without background (as MONAI's `DiceMetric`).

    Returns:
        The run folder.

    Raises:
        Dae3dError: if the list or a case cannot be used, the weights do not fit, the run folder already
            holds a run or one that cannot be resumed, or the loss is not finite.
    """
    settings = with_init(settings)
    checkpoint = checkpoint_of(settings)
    if checkpoint is not None:
        settings = _as_begun(settings, checkpoint)
    devices, nodes = device_count(settings)
    data = labelled_data(settings, check=partial(_refuse_other_classes, settings, checkpoint))
    settings = with_all_sizes(settings, data.spacing())
    if "axes" not in settings.architecture_class.own():
        if settings.axes == "reference":
            raise SettingsError(f"axes: backbone {settings.backbone} has only straight axes")
        settings = settings.model_copy(update={"axes": None})
    ends = len(data.recipe.modalities), len(data.recipe.labels)
    settings = with_batch_size(settings, lambda given: FinetuneTrial(given, *ends), devices * nodes)
    batch = settings.crops * devices * nodes
    schedule = settings.schedule(-(-data.stream.per_epoch // (batch * settings.accumulate)))
    settings = with_flip_axes(settings, data.recipe.class_names)
    resumed_at = None if checkpoint is None else step_of(checkpoint)
    if resumed_at is not None and resumed_at >= schedule.max_steps:
        log.info("%s is already at step %s of %s", settings.out, resumed_at, schedule.max_steps)
        return settings.out
    lightning.seed_everything(settings.seed, verbose=False)
    begun = begin_with(settings, data, resumed=checkpoint is not None)

    def scans_of(sample: int) -> list[str]:
        return data.scans_of(sample, batch)

    about = {
        "kind": "finetune",
        "init": str(settings.init) if settings.init and settings.transfer != "none" else None,
        **data.about(settings.data),
    }
    legs = legs_of(settings.out, about, resumed_at)
    ignores = data.recipe.ignore is not None
    train(
        settings,
        Finetuning(settings, schedule, begun.network, data, settings.out / "pictures", ignores),
        CaseLoaders(data, settings),
        checkpoint,
        about={**about, "legs": legs},
        scans_of=scans_of,
        what="finetune",
        trained_on=data.trained_on(begun.trained_on),
        announce=partial(_announce, settings, data, begun, legs, resumed_at),
    )
    return settings.out


def with_init(settings: FinetuneSettings) -> FinetuneSettings:
    """Fill in the network's sizes, the order of axes and `transfer`, from --init if there is one.

    Raises:
        SettingsError: if a given size is not that of --init, or crops do not fit the network.
    """
    # A resumed run has all its sizes, and --init may no longer exist.
    settled = settings.resume and bool(find_checkpoints(settings.out / "checkpoints"))
    if settings.init is None or settled:
        return settings if settings.needs_spacing else with_all_sizes(settings, ONE_MM)
    contents = read_weights(settings.init, settings.monai_merging)
    transfer = settings.transfer or ("both" if contents.task == "segmentation" else "encoder")
    if transfer != "none":
        refuse_another_network(contents, "segmentation", transfer)
    axes = getattr(contents.architecture, "axes", None) if transfer != "none" else None
    update = {"transfer": transfer, "axes": settings.axes or axes}
    return with_all_sizes(with_sizes_of_init(settings, contents).model_copy(update=update), ONE_MM)


def _as_begun(settings: FinetuneSettings, checkpoint: Path) -> FinetuneSettings:
    """Replace the settings that only matter at the start of a run by those it was started with."""
    saved = saved_settings(settings)
    begun = {name: getattr(saved or settings, name) for name in ("init", "transfer")}
    for name, value in begun.items():
        if getattr(settings, name) != value:
            log.info("%s: ignored because the run resumes from %s; it stays %s", name, checkpoint, value)
    return settings.model_copy(update=begun)


def _refuse_other_classes(settings: FinetuneSettings, checkpoint: Path | None, recipe: CaseRecipe) -> None:
    """Refuse to resume with other channels or label values; warn of other class names."""
    header = {} if checkpoint is None else read_checkpoint(checkpoint).get("header", {})
    if "recipe" not in header:
        return
    before, now = header["recipe"], recipe.model_dump(mode="json")
    for what, name in (("channels", "modalities"), ("label values", "labels")):
        there, here = (", ".join(each[name]) for each in (before, now))
        if there != here:
            raise Dae3dError(
                f"{settings.data}: its {what} are {here}, but the run in {settings.out} was started with "
                f"{there}; start a new run in another folder"
            )
    if before["labels"] != now["labels"]:
        log.warning("%s: the class names were %s when the run was started", settings.data, before["labels"])


@rank_zero_only
def _announce(
    settings: FinetuneSettings,
    data: LabelledData,
    begun: Beginning,
    legs: list[Leg],
    resumed_at: int | None,
) -> None:
    log.info(
        "fine-tuning on %s: %d cases (%s), %d classes, validating on %d",
        settings.data,
        len(data.training),
        "+".join(data.recipe.modalities),
        len(data.recipe.labels),
        len(data.validation),
    )
    say_sides(settings, data.recipe.class_names)
    if begun.report is not None:
        begun.report.print()
    for warning in begun.warnings:
        log.warning("%s", warning)
    say_new_data(legs, resumed_at)
