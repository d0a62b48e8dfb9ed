"""Weights on disk: safetensors with a JSON header of what network they are and how they were trained."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dae3d.errors import Dae3dError
from dae3d.models.reference_layout import from_reference
from dae3d.models.swin_unetr import Architecture, Axes, SwinUNETR


@dataclass(frozen=True)
class LoadReport:
    """What a load did: names taken, names left out with the reason, names the file did not have."""

    taken: list[str]
    skipped: dict[str, str]
    missing: list[str]


@dataclass(frozen=True)
class Loaded:
    """A network with the weights of a file, in eval mode, and what its header says (`info`)."""

    network: SwinUNETR
    report: LoadReport
    info: dict[str, Any]
    path: Path


def save_weights(
    path: Path, state: dict[str, Tensor], architecture: Architecture, info: dict[str, Any]
) -> None:
    """Write the network's weights, whole or not at all. `info` must be plain JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": "1", "architecture": json.dumps(asdict(architecture)), "info": json.dumps(info)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if not name.endswith("relative_position_index")
    }
    save_file(tensors, temporary, metadata=header)
    temporary.replace(path)


def load_network(source: Path, axes: Axes | None = None) -> Loaded:
    """Make the network that a file of weights, or a run folder's best ones, belong to.

    Args:
        source: a run folder, a `.safetensors` file of ours, or a published `.pth` checkpoint.
        axes: order of the token axes; None takes what the weights were trained with, "reference" for
            published checkpoints and "straight" for ours.

    Raises:
        Dae3dError: where there is no such file, or nothing in it fits.
    """
    path = _weights_file(source)
    if path.suffix == ".safetensors":
        state, architecture, info, skipped = _read_safetensors(path)
    else:
        state, architecture, info, skipped = _read_published(path)
    network = SwinUNETR(architecture, axes=axes or info.get("axes", "straight"))
    return Loaded(network.eval(), _load(network, state, skipped, path), info, path)


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
        raise Dae3dError(
            f"{source}: not weights; give a run folder, a .safetensors file or a published .pth file"
        )
    return source


Contents = tuple[dict[str, Tensor], Architecture, dict[str, Any], dict[str, str]]


def _read_safetensors(path: Path) -> Contents:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = list(file.keys())
            state = {name: file.get_tensor(name) for name in names}
        architecture: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in json.loads(header["architecture"]).items()
        }
        return state, Architecture(**architecture), json.loads(header["info"]), {}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Dae3dError(f"{path}: not a weights file of dae3d: {error}") from None


def _read_published(path: Path) -> Contents:
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
        state, skipped = from_reference(contents["model"])
        token = state["encoder.mask_token"]
        tables = [state[f"encoder.stages.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(4)]
    except Exception as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Dae3dError(f'{path}: not a published checkpoint (entry "model"): {message}') from None
    depths = [
        len({n.split(".")[4] for n in state if n.startswith(f"encoder.stages.{i}.blocks.")}) for i in range(4)
    ]
    architecture = Architecture(
        embed_dim=token.shape[1],
        depths=(depths[0], depths[1], depths[2], depths[3]),
        heads=(tables[0].shape[1], tables[1].shape[1], tables[2].shape[1], tables[3].shape[1]),
        window=(round(tables[0].shape[0] ** (1 / 3)) + 1) // 2,
        patch_merging="reference",
        restore_intensity=False,
        in_channels=state["encoder.patch_embed.conv1.conv.weight"].shape[1],
        out_channels=state["decoder.head.conv.conv.weight"].shape[0],
    )
    return state, architecture, {"axes": "reference"}, skipped


def _load(network: nn.Module, state: dict[str, Tensor], skipped: dict[str, str], path: Path) -> LoadReport:
    wanted = network.state_dict()
    taken = {}
    for name, tensor in state.items():
        if name not in wanted:
            skipped[name] = "the network has no such tensor"
        elif wanted[name].shape != tensor.shape:
            skipped[name] = f"shape {tuple(tensor.shape)}, the network's is {tuple(wanted[name].shape)}"
        else:
            taken[name] = tensor
    if not taken:
        raise Dae3dError(f"{path}: none of its {len(state)} tensors fits the network")
    network.load_state_dict(taken, strict=False)
    learned = [name for name in wanted if not name.endswith("relative_position_index")]
    return LoadReport(sorted(taken), skipped, [name for name in learned if name not in taken])
