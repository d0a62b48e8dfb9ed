"""The verb `finetune`."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.utilities.rank_zero import rank_zero_only

from dae3d.errors import Dae3dError, SettingsError
from dae3d.models.load_report import LoadReport
from dae3d.models.provenance import entry_of, seen
from dae3d.models.swin_unetr import Architecture, Segmenter
from dae3d.models.weights import Contents, load_into, read_weights, refuse_another_network
from dae3d.scans.kinds import strange
from dae3d.settings import read_config, verb
from dae3d.store.recipe import CaseRecipe
from dae3d.training.augment import say_sides, with_flip_axes
from dae3d.training.callbacks import find_checkpoints
from dae3d.training.cases import CaseLoaders, LabelledData, labelled_data
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.legs import legs_of
from dae3d.training.record import log_to
from dae3d.training.run import device_count, prepare_run_folder, refuse_another_run, step_of, train
from dae3d.training.run_settings import check_heads
from dae3d.training.segmentation import Segmentation

log = logging.getLogger(__name__)

SIZES = ("embed_dim", "depths", "heads", "window", "patch_embed", "patch_merging")


@verb
def finetune(settings: FinetuneSettings) -> Path:
    """Fine-tune a network to segment, from a list of labelled cases.

    The cases are prepared once, into a store. The run folder is that of `pretrain`; "best" is by the mean
    Dice over the validation cases, segmented whole by sliding windows. A class that a case's label lacks is
    left out of that case's mean, and the background never counts (MONAI's `DiceMetric`).

    Returns:
        The run folder.

    Raises:
        Dae3dError: where the list or a case cannot be used, the weights do not fit, the run folder already
            holds a run, or the loss is not finite.
    """
    settings = with_sizes(settings)
    refuse_another_run(settings)
    devices, nodes = device_count(settings)
    data = labelled_data(settings)
    batch = settings.batch_size * devices * nodes
    settings = settings.for_epochs_of(-(-data.stream.per_epoch // (batch * settings.accumulate)))
    settings = with_flip_axes(settings, data.recipe.class_names, begun=_begun_without_flip_axes(settings))
    checkpoint = prepare_run_folder(settings)
    if (step_of(checkpoint) or 0) >= int(settings.max_steps):
        log.info("%s is already at step %s of %s", settings.out, step_of(checkpoint), settings.max_steps)
        return settings.out
    with log_to(settings.out / "log.txt"):
        _announce(settings, data)
        lightning.seed_everything(settings.seed, verbose=False)
        network, earlier = _network(settings, data, resumed=checkpoint is not None)
        module = Segmentation(settings, network, data, settings.out / "pictures")
        about = {
            "kind": "finetune",
            "init": str(settings.init) if settings.init and settings.transfer != "none" else None,
            **data.about(settings.data),
        }
        about["legs"] = legs_of(settings.out, about, step_of(checkpoint))

        def scans_of(sample: int) -> list[str]:
            return data.scans_of(sample, batch)

        loaders, trained_on = CaseLoaders(data, settings), data.trained_on(earlier)
        train(settings, module, loaders, checkpoint, about, scans_of, "finetune", trained_on)
    return settings.out


def with_sizes(settings: FinetuneSettings) -> FinetuneSettings:
    """The settings with the network's sizes, and the order of axes, of --init or of the published network.

    Raises:
        SettingsError: where a size that was given is not that of --init, or the sizes do not fit together.
    """
    given = {name: getattr(settings, name) for name in SIZES if getattr(settings, name) is not None}
    sizes, axes = asdict(Architecture()), "straight"
    # A run that goes on has all its sizes, and --init may be gone by now.
    settled = settings.resume and bool(find_checkpoints(settings.out / "checkpoints"))
    if settings.init is not None and not settled:
        contents = read_weights(settings.init, settings.monai_merging)
        sizes = asdict(contents.architecture)
        if settings.transfer != "none":
            axes = contents.info.get("axes", "straight")
            refuse_another_network(contents, "segmentation", settings.transfer)
        for name, value in given.items():
            if value != sizes[name]:
                assumed = "; ".join(f"{what} assumed: {why}" for what, why in contents.assumed.items())
                raise SettingsError(
                    f"{name}: the network of --init {settings.init} has {sizes[name]}, not {value}"
                    + (f" ({assumed})" if assumed and name == "patch_merging" else "")
                )
    resolved = {name: sizes[name] for name in SIZES} | given | {"axes": settings.axes or axes}
    try:
        check_heads(resolved["embed_dim"], resolved["heads"])
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if resolved["axes"] == "reference" and settings.roi != 2 * resolved["embed_dim"]:
        raise SettingsError(
            f"roi: with reference axes it must be {2 * resolved['embed_dim']}, not {settings.roi}; "
            "or say --axes straight, as the published fine-tuning does"
        )
    return settings.model_copy(update=resolved)


def _begun_without_flip_axes(settings: FinetuneSettings) -> bool:
    """Whether the run to go on with was begun when there was no such setting."""
    saved = settings.out / "settings.yaml"
    return settings.resume and saved.is_file() and "flip_axes" not in read_config(saved, settings.configs)


def _network(
    settings: FinetuneSettings, data: LabelledData, resumed: bool
) -> tuple[Segmenter, list[dict[str, Any]]]:
    """The network to begin with, and what the weights of --init were trained on.

    A run that goes on has both from its checkpoint.

    Raises:
        Dae3dError: where the weights are of another network, or lack what is to be frozen.
    """
    architecture = Architecture(
        **{name: getattr(settings, name) for name in SIZES},
        restore_intensity=False,
        in_channels=len(data.recipe.modalities),
        out_channels=len(data.recipe.labels),
        deep_supervision=settings.deep_supervision,
    )
    network = Segmenter(architecture, settings.checkpoint_activations, settings.axes or "straight")
    if settings.init is not None and settings.transfer != "none" and not resumed:
        contents = read_weights(settings.init, settings.monai_merging)
        _warn_of_other_channels(contents, data.recipe)
        _warn_of_new_modalities(contents, data.recipe)
        _warn_of_seen(contents, data)
        names = data.recipe.class_names
        report = load_into(network, contents, settings.transfer, show=False, classes=names)
        _show(report)
        _refuse_to_freeze(settings, report)
        return network, entry_of(contents.info)
    return network, entry_of({}) if settings.init is not None and settings.transfer != "none" else []


def _refuse_to_freeze(settings: FinetuneSettings, report: LoadReport) -> None:
    """Raise where a tensor would stay at its random values, because nothing was loaded for it."""
    missing = [name for name in report.missing if name.startswith("encoder.")]
    if settings.freeze == "encoder" and missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise Dae3dError(
            f"freeze: {len(missing)} tensors of the encoder are not taken over from --init {settings.init}, "
            f"and would keep random values: {some}; leave --freeze out"
        )


@rank_zero_only
def _warn_of_other_channels(contents: Contents, recipe: CaseRecipe) -> None:
    before = tuple(contents.info.get("recipe", {}).get("modalities", ()))
    if len(before) > 1 and before != recipe.modalities:
        log.warning(
            "%s: was trained on the channels %s, and here they are %s; in this order, or their sum, they are "
            "taken over",
            contents.path,
            "+".join(before),
            "+".join(recipe.modalities),
        )


@rank_zero_only
def _warn_of_new_modalities(contents: Contents, recipe: CaseRecipe) -> None:
    known = contents.info.get("modalities") or contents.info.get("recipe", {}).get("modalities", ())
    new = [modality for modality in recipe.modalities if known and strange(modality, known)]
    if new:
        log.warning(
            "%s: trained on %s, and never saw %s; fine-tuning begins with it all the same",
            *(contents.path, ", ".join(known), ", ".join(dict.fromkeys(new))),
        )


@rank_zero_only
def _warn_of_seen(contents: Contents, data: LabelledData) -> None:
    """On cases that the weights of --init were trained on, a network is better than on new ones."""
    stored = [data.store.cases[number] for number in data.validation]
    found = seen(contents.info, {case.name: case.image_digests for case in stored})
    for task, trained in (("pretrain", "pre-trained"), ("segmentation", "fine-tuned")):
        names = [case.case for case in found if (case.task, case.side) == (task, "training")]
        if names:
            log.warning(
                "%s: was %s on %d of the %d validation cases, so their Dice is no measure for new ones: %s%s",
                contents.path,
                trained,
                len(names),
                len(stored),
                ", ".join(names[:5]),
                ", ..." if len(names) > 5 else "",
            )


@rank_zero_only
def _show(report: LoadReport) -> None:
    report.print()


@rank_zero_only
def _announce(settings: FinetuneSettings, data: LabelledData) -> None:
    log.info(
        "fine-tuning on %s: %d cases (%s), %d classes, validating on %d",
        settings.data,
        len(data.training),
        "+".join(data.recipe.modalities),
        len(data.recipe.labels),
        len(data.validation),
    )
    say_sides(settings, data.recipe.class_names)
