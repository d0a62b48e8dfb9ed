"""Weights on disk: ours are safetensors with a JSON header, other people's are read as they are."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dae3d.errors import Dae3dError
from dae3d.files import whole_file
from dae3d.models.layouts import (
    FINETUNING,
    MASK_TOKEN,
    NO_SUCH_TENSOR,
    Layout,
    Task,
    architecture_of,
    from_layout,
    layout_of,
)
from dae3d.models.load_report import LoadReport, part_of
from dae3d.models.swin_unetr import Architecture, Axes, FeatureEncoder, Segmenter, SwinUNETR

log = logging.getLogger(__name__)

Transfer = Literal["both", "encoder", "decoder"]

NETWORKS: dict[Task, Any] = {"pretrain": SwinUNETR, "segmentation": Segmenter, "encoder": FeatureEncoder}

# Entry of a file in another layout that holds what our header holds.
HEADER = "dae3d"

_SEES_THE_IMAGE = (
    "encoder.patch_embed.conv1.conv.weight",
    "encoder.patch_embed.weight",
    "decoder.skips.0.layer.conv1.conv.weight",
    "decoder.skips.0.layer.conv3.conv.weight",
)


@dataclass(frozen=True)
class Contents:
    """What a file of weights holds.

    Attributes:
        path: the file.
        task: what its network was trained for.
        architecture: of its network.
        info: how it was trained, as far as the file says.
        state: tensors by our names.
        origins: the names that the file has for them, where they are others.
        skipped: names in the file of what is not in `state`, with the reason.
    """

    path: Path
    task: Task
    architecture: Architecture
    info: dict[str, Any]
    state: dict[str, Tensor]
    origins: dict[str, str]
    skipped: dict[str, str]


def load(
    weights: str | Path,
    task: Task | None = None,
    classes: int | None = None,
    transfer: Transfer = "both",
    axes: Axes | None = None,
    channels: int | None = None,
    show: bool = True,
) -> nn.Module:
    """Make a network with the weights of a file, in eval mode.

    Args:
        weights: a run folder (its best weights), a `.safetensors` file of ours, a published checkpoint, a
            state dict of MONAI's `SwinUNETR`, or MONAI's `model_swinvit.pt`.
        task: what comes out for an image (B, C, D, H, W): "pretrain" the repaired image, "segmentation"
            logits (B, classes, D, H, W), "encoder" the five feature maps normalised over channels. None:
            what the file was trained for.
        classes: of a segmentation network; None takes the file's.
        transfer: the half that is taken from the file; the other keeps random values.
        axes: order of the token axes; None takes what the file was trained with, which is "reference" for
            published pre-training, as it swapped depth and channels.
        channels: of the image; None takes the file's. Weights for one channel are repeated.
        show: print what was taken.

    Returns:
        The network, with the attributes `load_report`, `architecture`, `info` (what the file says about its
        training) and `weights` (the path of the file).

    Raises:
        Dae3dError: where there is no such file, nothing in it fits, or the number of classes is unknown.
    """
    _check("task", task, (*get_args(Task), None))
    _check("transfer", transfer, get_args(Transfer))
    _check("axes", axes, (*get_args(Axes), None))
    contents = read_weights(weights)
    task = task or contents.task
    architecture = _architecture(contents, task, classes, channels)
    network: Any = NETWORKS[task](architecture, axes=axes or contents.info.get("axes", "straight"))
    network.load_report = load_into(network, contents, transfer, show)
    network.info, network.weights = contents.info, contents.path
    return network.eval()


def load_into(
    network: nn.Module, contents: Contents, transfer: Transfer = "both", show: bool = True
) -> LoadReport:
    """Copy the tensors of a file that fit into a network.

    A head is taken only into a network for the task that the file's was trained for.

    Args:
        network: a `SwinUNETR`, `Segmenter` or `FeatureEncoder`.
        contents: of the file.
        transfer: the half that is taken.
        show: print what was taken.

    Raises:
        Dae3dError: where nothing fits.
    """
    task = next(task for task, kind in NETWORKS.items() if isinstance(network, kind))
    wanted = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if not name.endswith("relative_position_index")
    }
    taken: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    skipped = dict(contents.skipped)
    for name, tensor in contents.state.items():
        tensor, how = _with_channels(name, tensor, wanted)
        reason = _why_not(name, tensor, wanted, contents.task, task, transfer)
        if reason is not None:
            skipped[contents.origins.get(name, name)] = reason
            continue
        taken[name] = tensor
        if how:
            adapted[name] = how
    if not taken:
        raise Dae3dError(f"{contents.path}: none of its {len(contents.state)} tensors fits the network")
    network.load_state_dict(taken, strict=False)
    half = "" if transfer == "both" else f", the {transfer} alone"
    report = LoadReport(
        title=f"{contents.path}: {contents.task} weights into a network for {task}{half}",
        taken=sorted(taken.keys() - adapted.keys()),
        adapted=adapted,
        skipped=skipped,
        missing=[name for name in wanted if name not in taken],
    )
    if show:
        report.print()
    _warn_of_other_merging(network, contents, taken)
    return report


def save_weights(
    path: Path, state: Mapping[str, Tensor], architecture: Architecture, info: dict[str, Any]
) -> None:
    """Write the network's weights, whole or not at all. `info` must be plain JSON."""
    header = {"format": "1", "architecture": json.dumps(asdict(architecture)), "info": json.dumps(info)}
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if not name.endswith("relative_position_index")
    }
    with whole_file(path) as temporary:
        # Its `save_file` writes to a name that does not say whose it is, and for the owner's eyes alone.
        temporary.write_bytes(save(tensors, metadata=header))


def read_weights(source: str | Path) -> Contents:
    """Read a file of weights, or a run folder's best ones.

    Raises:
        Dae3dError: where there is no such file, or it holds no weights.
    """
    path = _weights_file(Path(source))
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def is_ours(path: Path) -> bool:
    """Whether a file has weights with the header of dae3d, in any of the layouts that it writes."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {"architecture", "info"} <= (file.metadata() or {}).keys()
        file = torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # whatever is raised for what is no such file
        return False
    return HEADER in file or HEADER in getattr(file, "_metadata", {})


def _check(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise Dae3dError(f"{name}: must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def _architecture(contents: Contents, task: Task, classes: int | None, channels: int | None) -> Architecture:
    architecture = replace(contents.architecture, in_channels=channels or contents.architecture.in_channels)
    if task != "segmentation":
        if classes is not None:
            raise Dae3dError(f'classes: only for the task "segmentation", not for "{task}"')
        return replace(architecture, out_channels=architecture.in_channels)
    if classes is None and contents.task != "segmentation":
        raise Dae3dError(
            f"{contents.path}: these are no weights of a segmentation network, so say how many classes "
            "there are (classes=14), or fine-tune first"
        )
    if classes is not None and classes < 1:
        raise Dae3dError(f"classes: must be 1 or more, not {classes}")
    return replace(architecture, out_channels=classes or architecture.out_channels)


def _with_channels(name: str, tensor: Tensor, wanted: dict[str, Tensor]) -> tuple[Tensor, str]:
    """A convolution of a one-channel image for one of several channels, and what was done."""
    if name in wanted and name in _SEES_THE_IMAGE and tensor.ndim == 5:
        channels = wanted[name].shape[1]
        if tensor.shape[1] == 1 < channels:
            repeated = tensor.repeat(1, channels, 1, 1, 1) / channels
            return repeated, f"repeated for {channels} input channels, divided by {channels}"
    return tensor, ""


def _why_not(
    name: str, tensor: Tensor, wanted: dict[str, Tensor], trained: Task, task: Task, transfer: Transfer
) -> str | None:
    part = part_of(name)
    half = "encoder" if part == "encoder" else "decoder"
    if half == "decoder" and task == "encoder":
        return "the network is an encoder alone"
    if transfer not in ("both", half):
        return f"the {transfer} alone is transferred"
    if part == "head" and trained != task:
        return f"the head of a network for {trained} is none for {task}"
    if name == MASK_TOKEN and task != "pretrain":
        return "pre-training alone masks tokens"
    if name not in wanted:
        return NO_SUCH_TENSOR
    if wanted[name].shape != tensor.shape:
        return f"shape {tuple(tensor.shape)}, the network's is {tuple(wanted[name].shape)}"
    return None


def _warn_of_other_merging(network: Any, contents: Contents, taken: dict[str, Tensor]) -> None:
    trained, now = contents.architecture.patch_merging, network.architecture.patch_merging
    if trained != now and any("downsample" in name for name in taken):
        log.warning(
            'trained with patch_merging "%s"; with "%s" these weights are of little use', trained, now
        )


def _weights_file(source: Path) -> Path:
    if source.is_dir():
        for name in ("best", "last"):
            path = source / "weights" / f"{name}.safetensors"
            if path.is_file():
                return path
        raise Dae3dError(
            f"{source}: no weights/best.safetensors or weights/last.safetensors in this run folder"
        )
    if not source.is_file():
        raise Dae3dError(f"{source}: no such file or run folder")
    if source.suffix not in (".safetensors", ".pth", ".pt"):
        raise Dae3dError(f"{source}: not weights; give a run folder, a .safetensors, .pth or .pt file")
    return source


def _read_safetensors(path: Path) -> Contents:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in list(file.keys())}
        architecture, info = _header(json.loads(header["architecture"])), json.loads(header["info"])
        return Contents(path, info.get("task", "pretrain"), architecture, info, state, {}, {})
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Dae3dError(f"{path}: not a weights file of dae3d: {error}") from None


def _header(fields: dict[str, Any]) -> Architecture:
    # What a file from before a field was there has in its place.
    fields = {"normalise_skips": False, **fields}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Architecture(**values)


def _info(layout: Layout) -> dict[str, Any]:
    """What is known of the training of a file without our header."""
    return {"axes": "reference"} if layout.task == "pretrain" else {"task": layout.task}


def _read_torch(path: Path) -> Contents:
    """A published checkpoint, MONAI's weights, or our own in one of these layouts."""
    try:
        file = torch.load(path, map_location="cpu", weights_only=True)
        entry = next((name for name in ("model", "state_dict") if name in file), None)
        tensors = file[entry] if entry else file
        layout = layout_of(tensors)
        if layout is None:
            raise KeyError("no names of tensors that are known")
        renamed = from_layout({n: t for n, t in tensors.items() if isinstance(t, Tensor)}, layout)
        # A state dict carries metadata of its modules, and PyTorch keeps what it does not know.
        header = file.get(HEADER) or getattr(tensors, "_metadata", {}).get(HEADER)
        architecture = _header(header["architecture"]) if header else architecture_of(renamed.state)
        info = header["info"] if header else _info(layout)
    except Exception as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Dae3dError(f"{path}: not a published checkpoint, nor weights of MONAI: {message}") from None
    if not header and layout is FINETUNING and architecture.patch_embed == "linear":
        log.warning(
            "%s: does not say in which order its patch merging took octants; taken to be MONAI's default of "
            'versions before 1.5 (patch_merging "reference")',
            path,
        )
    return Contents(
        path,
        info.get("task", "pretrain"),
        architecture,
        info,
        renamed.state,
        renamed.origins,
        renamed.skipped,
    )
