"""Weight files: ours are safetensors with a JSON header; those of other programs are converted when read."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dae3d.errors import Dae3dError
from dae3d.files import whole_file
from dae3d.models.architecture import Architecture
from dae3d.models.backbones import architecture_of_header
from dae3d.models.contents import Contents, MonaiMerging, Renamed
from dae3d.models.foreign import find_network
from dae3d.models.hub import MODEL, downloaded, hub_address
from dae3d.models.network import WeightsInfo
from dae3d.models.pickled import read_pickled

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")

# Key of our header in a file with another layout.
HEADER = "dae3d"


def save_weights(
    path: Path, state: Mapping[str, Tensor], architecture: Architecture, info: WeightsInfo
) -> None:
    """Write the network's weights atomically. `info` must be plain JSON."""
    header = {"format": "1", "architecture": json.dumps(architecture.header()), "info": json.dumps(info)}
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if not name.endswith("relative_position_index")
    }
    with whole_file(path) as temporary:
        # safetensors' `save_file` would use a temporary name of its own, and permissions for the owner only.
        temporary.write_bytes(save(tensors, metadata=header))


def read_weights(source: str | Path, monai_merging: MonaiMerging | None = None) -> Contents:
    """Read weights; the arguments are as for `load`.

    Raises:
        Dae3dError: if there is no such file, it holds no weights, or `monai_merging` is given although the
            file records it.
    """
    check_choice("monai_merging", monai_merging, (*get_args(MonaiMerging), None))
    path = _weights_file(source)
    if path.suffix != ".safetensors":
        return _in_another_layout(path, read_pickled(path), monai_merging)
    tensors, header = _read_safetensors(path)
    if header is None:
        return _in_another_layout(path, tensors, monai_merging)
    return _of_header(path, Renamed(tensors, {}, {}), header, monai_merging)


def is_ours(path: Path) -> bool:
    """Whether a file holds weights with dae3d's header, in any layout that dae3d writes."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {"architecture", "info"} <= (file.metadata() or {}).keys()
        file = torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # any error means another kind of file
        return False
    return HEADER in file or HEADER in getattr(file, "_metadata", {})


def check_choice(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    """Refuse a value that is not one of those allowed."""
    if value not in allowed:
        raise Dae3dError(f"{name}: must be one of {', '.join(map(repr, allowed))}, not {value!r}")


# Weights in a run folder, or in one made by `export`.
_IN_FOLDERS = ("weights/best.safetensors", "weights/last.safetensors", MODEL, "models/model.pt")


def _weights_file(source: str | Path) -> Path:
    """The file of weights that the user named; one on the Hub is downloaded."""
    try:
        address = hub_address(source)
    except ValueError as error:
        raise Dae3dError(str(error)) from None
    path = Path(source) if address is None else downloaded(address)
    return _local_file(path)


def _local_file(source: Path) -> Path:
    if source.is_dir():
        for name in _IN_FOLDERS:
            path = source / name
            if path.is_file():
                return path
        *names, last = _IN_FOLDERS
        raise Dae3dError(f"{source}: no {', '.join(names)} or {last} in this folder")
    if not source.is_file():
        raise Dae3dError(f"{source}: no such file or run folder")
    if source.suffix not in SUFFIXES:
        raise Dae3dError(f"{source}: not a weights file; give a run folder or a {' or '.join(SUFFIXES)} file")
    if source.parent.name == "checkpoints" and (source.parent.parent / "weights").is_dir():
        raise Dae3dError(
            f"{source}: a checkpoint to resume from, not weights; give the run folder, {source.parent.parent}"
        )
    return source


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a file, and our header; None if it has none."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        if "architecture" not in header:
            return tensors, None
        return tensors, {name: json.loads(header[name]) for name in ("architecture", "info")}
    except (SafetensorError, KeyError, ValueError) as error:
        raise Dae3dError(f"{path}: not a valid weights file of dae3d: {error}") from None


def _in_another_layout(path: Path, file: Any, monai_merging: MonaiMerging | None) -> Contents:
    """Weights of another program, or ours in its layout."""
    found, others = find_network(path, file)
    names = found.reader.renamed(found)
    # A state dict has metadata of its modules, where PyTorch keeps entries that it does not know.
    header = file.get(HEADER) or getattr(found.tensors, "_metadata", {}).get(HEADER)
    if header:
        return _of_header(path, names, header, monai_merging)
    contents = found.reader.read(path, file, found, names, monai_merging)
    if not others:
        return contents
    several = {f"network of {found}": f"the file also has {others}"}
    return replace(contents, assumed={**several, **contents.assumed})


def _of_header(
    path: Path, names: Renamed, header: dict[str, Any], monai_merging: MonaiMerging | None
) -> Contents:
    """The contents of a file with our header."""
    if monai_merging is not None:
        raise Dae3dError(f"monai_merging: {path} records its patch merging; leave this setting out")
    try:
        # Values of fields that are missing in older files.
        earlier: dict[str, Any] = {}
        if "backbone" not in header["architecture"]:
            earlier = {"normalise_skips": False, "window_edges": "reference"}
        info = header["info"]
        if info.get("axes"):  # only of Swin UNETR
            earlier["axes"] = info["axes"]
        architecture = architecture_of_header({**earlier, **header["architecture"]})
    except (KeyError, TypeError, ValueError) as error:
        raise Dae3dError(f"{path}: not a valid weights file of dae3d: {error}") from None
    task = info.get("task", "pretrain")
    return Contents(path, task, architecture, info, names.state, names.origins, names.skipped)
