"""Weight files of other programs: finds the Swin UNETR, and checks whether it fits ours."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dae3d.errors import Dae3dError
from dae3d.models.layouts import (
    MASK_TOKEN,
    PRETRAINING,
    Half,
    Layout,
    Renamed,
    architecture_of,
    from_layout,
    networks_among,
)
from dae3d.models.load_report import part_of
from dae3d.models.network import RepairNetwork, Segmenter, Task
from dae3d.models.swin_unetr import SwinArchitecture

MonaiMerging = Literal["reference", "merging", "mergingv2"]
MONAI_MERGING = (
    "order of octants in patch merging, for a state dict that does not record it: reference, as published "
    "and in MONAI before 1.5; merging, the default since MONAI 1.5; or mergingv2, as written by dae3d export"
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
_EXPECTED = (
    "swinViT.layers1.0.... (MONAI's SwinUNETR), encoder.layers1.0.0.... (published pre-training) or "
    "layers1.0.... (MONAI's model_swinvit.pt), with any prefix"
)
_EXAMPLES, _DEPTH = 3, 4


@dataclass(frozen=True)
class Found:
    """A network in a file: its entry and the prefix of its names ("" if none), its layout and its tensors."""

    entry: str
    prefix: str
    layout: Layout
    tensors: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.entry}: {self.prefix}" if self.entry and self.prefix else self.entry or self.prefix


def find_network(path: Path, file: Any) -> tuple[Found, str]:
    """Find the network in the contents of a file; also returns the names of any others.

    Averaged weights (teacher, ema) are preferred and a student comes last; otherwise the first network is
    taken.

    Raises:
        Dae3dError: if there is none; the message lists what the file holds.
    """
    found = [
        Found(entry, prefix, layout, tensors)
        for entry, tensors in _state_dicts(file)
        for prefix, layout in networks_among(name for name in tensors if isinstance(name, str)).items()
    ]
    if not found:
        raise Dae3dError(f"{path}: no Swin UNETR in it, but {_inventory(file)}; expected {_EXPECTED}")
    chosen = min(found, key=_rank)
    if len(found) == 1:
        return chosen, ""
    return chosen, ", ".join(str(other) or "one without a prefix" for other in found if other is not chosen)


def renamed(found: Found) -> Renamed:
    """The tensors of a network under our names."""
    return from_layout(_tensors(found.tensors), found.layout, found.prefix)


def task_of(found: Found, names: Renamed) -> Task:
    """The task that a network was trained for. With MONAI's names it may be an encoder only."""
    has_decoder = any(part_of(name) != "encoder" for name in names.state)
    return found.layout.task if has_decoder else "encoder"


def bare_architecture(path: Path, names: Renamed) -> SwinArchitecture:
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


def could_be_of_any_monai(names: Renamed) -> bool:
    """Whether nothing shows the MONAI version a network was trained with, and so how it merged patches."""
    mlps = [origin for origin in names.origins.values() if ".mlp." in origin]
    return _EMBEDDING in names.state and all(".mlp.linear" in origin for origin in mlps)


def merged_as(
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


def misfits(names: Renamed, layout: Layout, architecture: SwinArchitecture) -> dict[Half, str]:
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
        theirs = {name: tuple(t.shape) for name, t in names.state.items() if half_of(name) == half}
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
            if half_of(name) == half and name not in theirs and name != MASK_TOKEN and part_of(name) != "head"
        ]
        reasons = [_kind(unknown)] if unknown else []
        reasons += [_some(unknown, "tensors that ours does not have")] if unknown else []
        reasons += [_some(others, "tensors with other shapes")] if others else []
        reasons += [_some(lacking, "tensors missing")] if lacking and theirs else []
        if any(reasons):
            found[half] = "; ".join(filter(None, reasons))
    return found


def half_of(name: str) -> Half:
    """The half that one of our tensors belongs to; a head belongs to the decoder."""
    return "encoder" if part_of(name) == "encoder" else "decoder"


def _kind(names: list[str]) -> str:
    kind = next((kind for kind, is_of in _KINDS.items() if any(map(is_of.search, names))), None)
    return f"it is {kind}" if kind else ""


def _some(names: list[str], what: str) -> str:
    more = ", ..." if len(names) > _EXAMPLES else ""
    return f"{len(names)} {what}: {', '.join(names[:_EXAMPLES])}{more}"


def _rank(found: Found) -> int:
    words = set(re.split(r"[._]", f"{found.entry}.{found.prefix}".lower()))
    if words & {"teacher", "ema"}:
        return 0
    return 2 if "student" in words else 1


def _state_dicts(file: Any, entry: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All mappings of names to tensors in a file, outer ones first."""
    if not isinstance(file, Mapping) or depth > _DEPTH:
        return
    if _tensors(file):
        yield entry, file
    for name, inner in file.items():
        if isinstance(name, str):
            yield from _state_dicts(inner, f"{entry}.{name}" if entry else name, depth + 1)


def _tensors(mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: t for name, t in mapping.items() if isinstance(name, str) and isinstance(t, Tensor)}


def _inventory(file: Any) -> str:
    """The contents of a file in one line."""
    if not isinstance(file, Mapping):
        return f"a {type(file).__name__}"
    parts = []
    for entry, mapping in _state_dicts(file):
        tensors = [f"{name} {tuple(tensor.shape)}" for name, tensor in _tensors(mapping).items()]
        parts.append(_some(tensors, f"tensors{f' under {entry!r}' if entry else ''}"))
    others = [str(name) for name, value in file.items() if not isinstance(value, Tensor)]
    if not parts:
        parts.append("no tensors" + (f", only {', '.join(others[:10])}" if others else ""))
    return "; ".join(parts[:5])
