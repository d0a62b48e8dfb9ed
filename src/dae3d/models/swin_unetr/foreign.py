"""Weight files of other programs with a Swin UNETR, converted to ours, or what does not fit."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dae3d.errors import Dae3dError
from dae3d.models.contents import Contents, Found, Half, MonaiMerging, Reader, Renamed, tensors_of
from dae3d.models.load_report import part_of, some
from dae3d.models.network import RepairNetwork, Segmenter, Task, WeightsInfo
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.swin_unetr.layouts import (
    FINETUNING,
    MASK_TOKEN,
    PRETRAINING,
    SWIN_VIT,
    Layout,
    architecture_of,
    from_layout,
    prefix_before,
)

_STRAIGHT = [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
# The order in MONAI's `PatchMerging` since version 1.5.
_MERGING = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)]

# Kinds of networks, recognised by the names of tensors that ours does not have.
_KINDS = {
    "SwinUNETR-V2, which has convolutions before its stages": re.compile(r"\blayers\d+c\."),
    "a network with batch norms": re.compile(r"\.running_(mean|var)$"),
    "a network whose norms have weights": re.compile(r"\.norm\d\.(weight|bias)$"),
}
_EMBEDDING = "encoder.patch_embed.weight"


def _renamed(layout: Layout, found: Found) -> Renamed:
    return from_layout(tensors_of(found.tensors), layout, found.prefix)


def _read(
    layout: Layout, path: Path, file: Any, found: Found, names: Renamed, merging: MonaiMerging | None
) -> Contents:
    """A published checkpoint or MONAI's weights."""
    task, architecture = _task_of(layout, names), _bare_architecture(path, names)
    assumed = {}
    if merging is None and _could_be_of_any_monai(names):
        assumed['patch merging "reference"'] = (
            "as published and in MONAI before 1.5; for weights of a later MONAI give monai_merging "
            '"merging" (its default) or "mergingv2"'
        )
    info: WeightsInfo = {"axes": "reference"} if task == "pretrain" else {"task": task}
    if task == "pretrain":
        architecture = replace(architecture, axes="reference")
    if merging is not None:
        info["monai_merging"] = merging
    wrong = _misfits(names, layout, architecture)
    state = names.state
    if "encoder" not in wrong:
        state, architecture = _merged_as(state, architecture, merging or "reference")
    return Contents(path, task, architecture, info, state, names.origins, names.skipped, assumed, wrong)


def _task_of(layout: Layout, names: Renamed) -> Task:
    """The task that a network was trained for. With MONAI's names it may be an encoder only."""
    has_decoder = any(part_of(name) != "encoder" for name in names.state)
    return layout.task if has_decoder else "encoder"


def _bare_architecture(path: Path, names: Renamed) -> SwinArchitecture:
    """The architecture of a network without metadata, assuming the published patch merging.

    Raises:
        Dae3dError: if a tensor needed to infer it is missing, or the network is for 2D images.
    """
    embedding = names.state.get(_EMBEDDING)
    if embedding is not None and embedding.ndim == 4:
        raise Dae3dError(
            f"{path}: weights of a network for 2D images ({names.origins[_EMBEDDING]} has shape "
            f"{tuple(embedding.shape)}); dae3d needs a 3D network"
        )
    try:
        return architecture_of(names.state)
    except (KeyError, IndexError) as error:
        raise Dae3dError(
            f"{path}: the Swin transformer in it is incomplete: tensor {error} (our name) is missing"
        ) from None


def _could_be_of_any_monai(names: Renamed) -> bool:
    """Whether nothing shows the MONAI version a network was trained with, and so how it merged patches."""
    mlps = [origin for origin in names.origins.values() if ".mlp." in origin]
    return _EMBEDDING in names.state and all(".mlp.linear" in origin for origin in mlps)


def _merged_as(
    state: dict[str, Tensor], architecture: SwinArchitecture, merging: MonaiMerging
) -> tuple[dict[str, Tensor], SwinArchitecture]:
    """Convert tensors (under our names) and architecture of a network with a given order of octants.

    Each of MONAI's two orders contains every octant once, so sorting the columns of the reduction and of the
    norm before it converts one into the other exactly. The published order lacks two octants and is kept.
    """
    if merging == "reference":
        return state, replace(architecture, patch_merging="reference")
    if merging == "merging":
        places = torch.tensor([_MERGING.index(octant) for octant in _STRAIGHT])
        state = {
            name: tensor.unflatten(-1, (8, -1))[..., places, :].flatten(-2)
            if ".downsample." in name
            else tensor
            for name, tensor in state.items()
        }
    return state, replace(architecture, patch_merging="straight")


def _misfits(names: Renamed, layout: Layout, architecture: SwinArchitecture) -> dict[Half, str]:
    """What differs, for each half of a network that does not match ours."""
    with torch.device("meta"):
        network = RepairNetwork(architecture) if layout is PRETRAINING else Segmenter(architecture)
    ours = {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if not name.endswith("relative_position_index")
    }
    found: dict[Half, str] = {}
    halves: tuple[Half, ...] = ("encoder", "decoder")
    for half in halves:
        theirs = {name: tuple(t.shape) for name, t in names.state.items() if _half_of(name) == half}
        unknown = [name for name, belongs in names.strangers.items() if belongs == half]
        unknown += [names.origins[name] for name in theirs if name not in ours]
        others = [
            f"{names.origins[name]} {shape} instead of {ours[name]}"
            for name, shape in theirs.items()
            if ours.get(name, shape) != shape
        ]
        lacking = [
            layout.theirs(name) or name
            for name in ours
            if _half_of(name) == half
            and name not in theirs
            and name != MASK_TOKEN
            and part_of(name) != "head"
        ]
        reasons = [_kind(unknown)] if unknown else []
        reasons += [some(unknown, "tensors that ours does not have")] if unknown else []
        reasons += [some(others, "tensors with other shapes")] if others else []
        reasons += [some(lacking, "tensors missing")] if lacking and theirs else []
        if any(reasons):
            found[half] = "; ".join(filter(None, reasons))
    return found


def _half_of(name: str) -> Half:
    """The half that one of our tensors belongs to; a head belongs to the decoder."""
    return "encoder" if part_of(name) == "encoder" else "decoder"


def _kind(names: list[str]) -> str:
    kind = next((kind for kind, is_of in _KINDS.items() if any(map(is_of.search, names))), None)
    return f"it is {kind}" if kind else ""


READERS = tuple(
    Reader(
        example,
        partial(prefix_before, layout=layout),
        partial(_renamed, layout),
        partial(_read, layout),
    )
    for layout, example in (
        (FINETUNING, "swinViT.layers1.0.... (MONAI's SwinUNETR)"),
        (PRETRAINING, "encoder.layers1.0.0.... (published pre-training)"),
        (SWIN_VIT, "layers1.0.... (MONAI's model_swinvit.pt)"),
    )
)
