"""The network that training starts from, and warnings about the weights loaded into it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from dae3d.errors import Dae3dError, SettingsError
from dae3d.models.contents import Contents
from dae3d.models.load_report import LoadReport
from dae3d.models.loading import load_into, refuse_another_network
from dae3d.models.network import Network, RepairNetwork, Segmenter
from dae3d.models.provenance import entry_of, seen
from dae3d.models.weights import read_weights
from dae3d.scans.modality_conflicts import strange
from dae3d.store.recipe import CaseRecipe
from dae3d.training.cases import LabelledData
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.run_settings import RunSettings
from dae3d.words import millimetres

ONE_MM = (1.0, 1.0, 1.0)
AnyRun = TypeVar("AnyRun", bound=RunSettings)

_NAMED = 5  # cases
SAME_SIZE = 1.2  # voxel sides that differ by a smaller factor count as equal


class Beginning(NamedTuple):
    """A `network`, what its weights were `trained_on`, and warnings about them.

    `report` tells what was loaded from --init; None if nothing was.
    """

    network: Network
    trained_on: list[dict[str, Any]]
    report: LoadReport | None
    warnings: list[str]


def with_sizes_of_init(settings: AnyRun, contents: Contents) -> AnyRun:
    """Fill in the backbone and its sizes from the weights of --init.

    Other values of settings that weights are adapted to, such as the window of Swin UNETR, are kept.

    Raises:
        SettingsError: if another setting that was given differs from the weights.
    """
    filled = settings.with_sizes_of(contents.architecture)
    there, kind = filled.sizes(), type(contents.architecture)
    try:
        if settings.backbone in (None, kind.backbone):
            settings.check_others(kind)
    except ValueError as error:
        raise SettingsError(f"{error} of --init {contents.path}") from None
    for name, value in settings.sizes(kind).items():
        if name in kind.adapted and value is not None:
            filled = filled.model_copy(update={name: value})
        elif value is not None and value != there.get(name):
            assumed = contents.assumed.get('patch merging "reference"') if name == "patch_merging" else None
            raise SettingsError(
                f"{name}: the network of --init {contents.path} has {there.get(name)}, not {value}"
                + (f' (patch merging "reference" assumed: {assumed})' if assumed else "")
            )
    return filled


def with_all_sizes(settings: AnyRun, spacing: Sequence[float]) -> AnyRun:
    """Fill in the sizes that were not given, for crops of this voxel size in mm.

    Raises:
        SettingsError: if the sizes do not fit together, or crops do not fit them.
    """
    try:
        architecture = settings.architecture_of(settings.roi, spacing)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    architecture.check_sides(settings.roi)
    return settings.with_sizes_of(architecture)


def begin_pretraining(settings: PretrainSettings, resumed: bool) -> Beginning:
    """Build the network to pre-train and load the weights of --init into it; a resumed run has its own.

    Raises:
        Dae3dError: if the weights are from another kind of network.
    """
    network = RepairNetwork(settings.architecture(), settings.checkpoint_activations)
    if settings.init is None:
        return Beginning(network, [], None, [])
    if resumed:
        return Beginning(network, entry_of({}), None, [])
    contents = read_weights(settings.init, settings.monai_merging)
    refuse_another_network(contents, "pretrain", settings.transfer)
    report = load_into(network, contents, settings.transfer, show=False)
    return Beginning(network, entry_of(contents.info), report, [])


def begin_with(settings: FinetuneSettings, data: LabelledData, resumed: bool) -> Beginning:
    """Build the network and load the weights of --init into it; a resumed run has its own weights.

    Raises:
        Dae3dError: if the weights are from another kind of network, or lack what is to be frozen.
    """
    architecture = settings.architecture_of(
        settings.roi,
        restore_intensity=False,
        in_channels=len(data.recipe.modalities),
        out_channels=len(data.recipe.labels),
    )
    network = Segmenter(architecture, settings.checkpoint_activations)
    if settings.init is None or settings.transfer == "none":
        return Beginning(network, [], None, [])
    if resumed:
        return Beginning(network, entry_of({}), None, [])
    contents = read_weights(settings.init, settings.monai_merging)
    report = load_into(
        network, contents, settings.transfer or "both", show=False, classes=data.recipe.class_names
    )
    _refuse_to_freeze(settings, report)
    return Beginning(network, entry_of(contents.info), report, list(_warnings(contents, data)))


def _refuse_to_freeze(settings: FinetuneSettings, report: LoadReport) -> None:
    """Raise if a frozen tensor would keep random values, because nothing was loaded for it."""
    missing = [name for name in report.missing if name.startswith("encoder.")]
    if settings.freeze == "encoder" and missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise Dae3dError(
            f"freeze: {len(missing)} tensors of the encoder are not loaded from --init {settings.init}, "
            f"and would keep random values: {some}; leave --freeze out"
        )


def _warnings(contents: Contents, data: LabelledData) -> Iterator[str]:
    yield from _on_channels(contents, data.recipe)
    yield from _on_spacing(contents, data)
    yield from _on_cases(contents, data)


def _on_channels(contents: Contents, recipe: CaseRecipe) -> Iterator[str]:
    before = tuple(contents.info.get("recipe", {}).get("modalities", ()))
    if len(before) > 1 and before != recipe.modalities:
        yield (
            f"{contents.path}: trained on the channels {'+'.join(before)}, but the cases have "
            f"{'+'.join(recipe.modalities)}; weights are loaded in this order, or as their sum"
        )
    known = contents.info.get("modalities") or before
    new = [modality for modality in recipe.modalities if known and strange(modality, known)]
    if new:
        yield (
            f"{contents.path}: trained on {', '.join(known)}, but not on {', '.join(dict.fromkeys(new))}; "
            "fine-tuning starts from it anyway"
        )


def _on_spacing(contents: Contents, data: LabelledData) -> Iterator[str]:
    """Voxels of another size make structures appear larger or smaller than in the earlier training."""
    info = contents.info
    recorded = info.get("preparation", {}), info.get("recipe", {})
    candidates = [info.get("spacing"), *(each.get("spacing") for each in recorded)]
    before = next(filter(None, candidates), None)
    here = data.spacing()
    if before is None:
        return
    factors = [max(one / other, other / one) for one, other in zip(before, here, strict=True)]
    if max(factors) > SAME_SIZE:
        wanted = " ".join(f"{side:.3g}" for side in before)
        yield (
            f"{contents.path}: trained on voxels of {millimetres(before)} (median), but the cases have "
            f"{millimetres(here)}, so structures appear larger or smaller than in training; "
            f"--spacing {wanted} resamples the cases"
        )


def _on_cases(contents: Contents, data: LabelledData) -> Iterator[str]:
    """The Dice of validation cases that the weights of --init were trained on is too good."""
    stored = [data.store.cases[number] for number in data.validation]
    found = seen(contents.info, {case.name: case.image_digests for case in stored})
    for task, trained in (("pretrain", "pre-trained"), ("segmentation", "fine-tuned")):
        names = [case.case for case in found if (case.task, case.side) == (task, "training")]
        if names:
            some = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
            yield (
                f"{contents.path}: was {trained} on {len(names)} of the {len(stored)} validation cases, so "
                f"their Dice does not measure performance on new cases: {some}"
            )
