"""Networks with weights from a file, and reports of what was loaded."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from dae3d.errors import Dae3dError
from dae3d.models.architecture import Architecture
from dae3d.models.contents import Contents, Half, MonaiMerging
from dae3d.models.load_report import LoadReport, has_head, part_of
from dae3d.models.network import FeatureEncoder, RepairNetwork, Segmenter, Task
from dae3d.models.provenance import class_names
from dae3d.models.swin_unetr.architecture import Axes, SwinArchitecture
from dae3d.models.swin_unetr.layouts import MASK_TOKEN, NO_SUCH_TENSOR
from dae3d.models.swin_unetr.window_tables import TABLE, resized, window_of
from dae3d.models.weights import check_choice, read_weights

log = logging.getLogger(__name__)

Transfer = Literal["both", "encoder", "decoder"]

NETWORKS: dict[Task, type[RepairNetwork] | type[Segmenter] | type[FeatureEncoder]] = {
    "pretrain": RepairNetwork,
    "segmentation": Segmenter,
    "encoder": FeatureEncoder,
}


def load(
    weights: str | Path,
    task: Task | None = None,
    classes: int | None = None,
    transfer: Transfer = "both",
    axes: Axes | None = None,
    channels: int | None = None,
    show: bool = True,
    monai_merging: MonaiMerging | None = None,
) -> RepairNetwork | Segmenter | FeatureEncoder:
    """Build a network with the weights of a file, in eval mode.

    Args:
        weights: a run folder (its best weights), a folder made by `export`, a `.safetensors` file of dae3d, a
            published checkpoint, a state dict of MONAI's `SwinUNETR`, or MONAI's `model_swinvit.pt`. The
            tensors may be under other entries of the file, and their names may have a prefix ("module.",
            "teacher.backbone."). Or `hf://ORG/NAME[@REVISION][/FILE]`, such a file on the Hugging Face Hub.
        task: what the network returns for an image (B, C, D, H, W): "pretrain" the repaired image,
            "segmentation" logits (B, classes, D, H, W), "encoder" the feature maps (five of Swin UNETR),
            normalised over channels. None: what the file was trained for.
        classes: number of classes of a segmentation network; None: as in the file.
        transfer: the half to load from the file; the other keeps random values.
        axes: order of the token axes; None: as trained. Published pre-training used "reference", because it
            swapped depth and channels.
        channels: of the image; None: as in the file. For another number, the weights of each convolution on
            the image are summed over channels and divided by the new number.
        show: print what was loaded.
        monai_merging: order of octants in patch merging, for weights that do not record it: "reference", as
            published and in MONAI before 1.5; "merging", the default since MONAI 1.5; "mergingv2". None:
            "reference", with a warning if the weights could be of a later MONAI.

    Returns:
        The network, with the attributes `load_report`, `architecture`, `info` (metadata of the training) and
            `weights` (the path of the file).

    Raises:
        Dae3dError: if there is no such file, nothing in it fits, a half to be loaded is from another kind of
            network (SwinUNETR-V2, batch norms), or the number of classes is unknown.
    """
    check_choice("task", task, (*get_args(Task), None))
    check_choice("transfer", transfer, get_args(Transfer))
    check_choice("axes", axes, (*get_args(Axes), None))
    contents = read_weights(weights, monai_merging)
    task = task or contents.task
    architecture = _architecture(contents, task, classes, channels)
    if axes is not None:
        if not isinstance(architecture, SwinArchitecture):
            raise Dae3dError(f"axes: only for {SwinArchitecture.backbone}, not for {architecture.backbone}")
        architecture = replace(architecture, axes=axes)
    network = NETWORKS[task](architecture)
    network.load_report = load_into(network, contents, transfer, show)
    network.info, network.weights = contents.info, contents.path
    return network.eval()


def load_into(
    network: nn.Module,
    contents: Contents,
    transfer: Transfer = "both",
    show: bool = True,
    classes: Sequence[str] = (),
) -> LoadReport:
    """Copy the tensors of a file that fit into a network.

    A head is loaded only if the network has the same task and the same classes.

    Args:
        network: a `RepairNetwork`, `Segmenter` or `FeatureEncoder`.
        contents: of the file.
        transfer: the half to load.
        show: print what was loaded.
        classes: class names of the network to segment with, the background first, if known.

    Raises:
        Dae3dError: if nothing fits, or a half to be loaded is from another kind of network.
    """
    task = next(task for task, kind in NETWORKS.items() if isinstance(network, kind))
    wanted = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if not name.endswith("relative_position_index")
    }
    refuse_another_network(contents, task, transfer)
    theirs = class_names(contents.info)
    taken, adapted, skipped = _fitting(contents, wanted, task, transfer, classes)
    if not taken:
        raise Dae3dError(f"{contents.path}: none of its {len(contents.state)} tensors fits the network")
    network.load_state_dict(taken, strict=False)
    half = "" if transfer == "both" else f", {transfer} only"
    assumed = f" (assumed: {', '.join(contents.assumed)})" if contents.assumed else ""
    missing = [name for name in wanted if name not in taken]
    report = LoadReport(
        title=f"{contents.path}: {contents.task} weights{assumed} into a network for {task}{half}",
        taken=sorted(taken.keys() - adapted.keys()),
        adapted=adapted,
        skipped=skipped,
        missing=missing,
        expected=_beyond_half(contents, missing, transfer),
    )
    if show:
        report.print()
    _warn_of_other_merging(network, contents, taken)
    _warn_of(contents, _halves(task, transfer), report)
    if transfer != "encoder":
        _warn_of_no_head(contents, task, report)
    if classes and not theirs and has_head(taken):
        log.warning("%s: the head was loaded, although the file does not name its classes", contents.path)
    return report


def _fitting(
    contents: Contents, wanted: dict[str, Tensor], task: Task, transfer: Transfer, classes: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """The tensors that fit, how some of them were adapted, and why each other one was skipped."""
    taken: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    skipped = dict(contents.skipped)
    theirs = class_names(contents.info)
    for name, tensor in contents.state.items():
        tensor, how = _with_channels(name, tensor, wanted, contents.architecture.image_parameters)
        tensor, resized_how = _with_window(name, tensor, wanted)
        how = how or resized_how
        reason = _why_not(name, tensor, wanted, contents.task, task, transfer)
        if reason is None and part_of(name) == "head" and theirs and classes:
            reason = _other_classes(theirs, classes)
        if reason is not None:
            skipped[contents.origins.get(name, name)] = reason
            continue
        taken[name] = tensor
        if how:
            adapted[name] = how
    return taken, adapted, skipped


def refuse_another_network(contents: Contents, task: Task, transfer: Transfer) -> None:
    """Refuse a file if a half to be loaded is from another kind of network.

    Single tensors that fit would be of no use without the rest.

    Raises:
        Dae3dError: with what differs, and the half that fits.
    """
    wanted = [half for half in _halves(task, transfer) if half in contents.misfits]
    if not wanted:
        return
    fitting = [half for half in _halves(task, transfer) if half not in wanted]
    remedy = f'. The {fitting[0]} fits: load only that, with transfer "{fitting[0]}"' if fitting else ""
    reasons = "; ".join(f"{half}: {contents.misfits[half]}" for half in wanted)
    raise Dae3dError(f"{contents.path}: weights of a different network. {reasons}{remedy}")


def _architecture(contents: Contents, task: Task, classes: int | None, channels: int | None) -> Architecture:
    architecture = replace(contents.architecture, in_channels=channels or contents.architecture.in_channels)
    if task != "segmentation":
        if classes is not None:
            raise Dae3dError(f'classes: only for the task "segmentation", not for "{task}"')
        return replace(architecture, out_channels=architecture.in_channels)
    if classes is None and not (contents.task == "segmentation" and has_head(contents.state)):
        raise Dae3dError(
            f"{contents.path}: not weights of a segmentation network with its head; give the number of "
            "classes (classes=14), or fine-tune first"
        )
    if classes is not None and classes < 1:
        raise Dae3dError(f"classes: must be 1 or more, not {classes}")
    return replace(architecture, out_channels=classes or architecture.out_channels)


def _with_channels(
    name: str, tensor: Tensor, wanted: dict[str, Tensor], image_parameters: Sequence[str]
) -> tuple[Tensor, str]:
    """Adapt the weights of a convolution on the image to another number of channels, and say how.

    An image with identical channels gives the same output as before.
    """
    if name in wanted and name in image_parameters and tensor.ndim == wanted[name].ndim:
        before, channels = tensor.shape[1], wanted[name].shape[1]
        if before != channels:
            adapted = tensor.sum(1, keepdim=True).repeat(1, channels, 1, 1, 1) / channels
            done = "repeated" if before == 1 else f"{before} input channels summed, repeated"
            return adapted, f"{done} for {channels} input channels, divided by {channels}"
    return tensor, ""


def _with_window(name: str, tensor: Tensor, wanted: dict[str, Tensor]) -> tuple[Tensor, str]:
    """Adapt a table of attention biases to windows of another size, and say how."""
    if not name.endswith(TABLE) or name not in wanted or tensor.shape[1:] != wanted[name].shape[1:]:
        return tensor, ""
    before, now = window_of(tensor), window_of(wanted[name])
    if before is None or now is None or before == now:
        return tensor, ""
    return resized(tensor, now), f"interpolated from attention windows of {before}^3 tokens to {now}^3"


def _why_not(
    name: str, tensor: Tensor, wanted: dict[str, Tensor], trained: Task, task: Task, transfer: Transfer
) -> str | None:
    part = part_of(name)
    half = "encoder" if part == "encoder" else "decoder"
    if half == "decoder" and task == "encoder":
        return "the network is an encoder only"
    if transfer not in ("both", half):
        return f"only the {transfer} is transferred"
    if part == "head" and trained != task:
        return f"the head was trained for {trained}, not for {task}"
    if name == MASK_TOKEN and task != "pretrain":
        return "only pre-training masks tokens"
    if name not in wanted:
        return NO_SUCH_TENSOR
    if wanted[name].shape != tensor.shape:
        return f"shape {tuple(tensor.shape)}, the network has {tuple(wanted[name].shape)}"
    return None


def _halves(task: Task, transfer: Transfer) -> tuple[Half, ...]:
    """The halves that a network for this task loads from a file."""
    halves: tuple[Half, ...] = ("encoder",) if task == "encoder" else ("encoder", "decoder")
    return tuple(half for half in halves if transfer in ("both", half))


def _warn_of(contents: Contents, halves: Iterable[Half], report: LoadReport) -> None:
    """Warn about assumptions, and about tensors that the file should have but does not."""
    for what, why in contents.assumed.items():
        log.warning("%s: %s assumed; %s", contents.path, what, why)
    for half in halves:
        taken = sum(part_of(name) == half for name in (*report.taken, *report.adapted))
        missing = [
            name
            for name in report.missing
            if part_of(name) == half and name != MASK_TOKEN and name not in report.expected
        ]
        if missing:
            log.warning(
                "%s: %d of the %d tensors of the %s keep random values, because none in the file fit: %s%s",
                contents.path,
                len(missing),
                len(missing) + taken,
                half,
                ", ".join(missing[:3]),
                ", ..." if len(missing) > 3 else "",
            )


def _warn_of_no_head(contents: Contents, task: Task, report: LoadReport) -> None:
    """Warn if a network that repairs was loaded without heads, which some layouts cannot hold."""
    if contents.task == task == "pretrain" and has_head(report.missing):
        log.warning("%s: the file has no heads, so repaired images are random", contents.path)


def _beyond_half(contents: Contents, missing: Iterable[str], transfer: Transfer) -> dict[str, str]:
    """Those of the missing tensors that a decoder pre-trained up to half resolution does not have."""
    if contents.architecture.repair_from == "full" or contents.task != "pretrain" or transfer == "encoder":
        return {}
    reason = "pre-training ended at half resolution; layers above it start from random values"
    return {name: reason for name in missing if name.startswith(contents.architecture.above_half)}


def _other_classes(theirs: Sequence[str], ours: Sequence[str]) -> str | None:
    """Why a head cannot be used for other classes; both lists begin with the background."""
    if len(theirs) != len(ours):
        return f"it has {len(theirs)} classes, here there are {len(ours)}"
    for index, (before, now) in enumerate(zip(theirs, ours, strict=True)):
        if before != now and index:
            return f"its class {index} is {before!r}, here it is {now!r}"
    return None


def _warn_of_other_merging(network: Any, contents: Contents, taken: dict[str, Tensor]) -> None:
    trained, now = (getattr(of.architecture, "patch_merging", None) for of in (contents, network))
    if trained != now and any("downsample" in name for name in taken):
        log.warning(
            'trained with patch_merging "%s"; with "%s" these weights are of little use', trained, now
        )
