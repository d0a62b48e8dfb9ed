"""Weight files of other programs: finds the networks in them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dae3d.errors import Dae3dError
from dae3d.models.contents import Found, Reader, tensors_of
from dae3d.models.load_report import some
from dae3d.models.resenc import foreign as resenc_foreign
from dae3d.models.swin_unetr import foreign as swin_foreign

READERS: tuple[Reader, ...] = (*swin_foreign.READERS, *resenc_foreign.READERS)

_DEPTH = 4


def find_network(path: Path, file: Any) -> tuple[Found, str]:
    """Find the network in the contents of a file; also returns the names of any others.

    Averaged weights (teacher, ema) are preferred and a student comes last; otherwise the first network is
    taken.

    Raises:
        Dae3dError: if there is none; the message lists what the file holds.
    """
    found = [
        Found(entry, prefix, reader, tensors)
        for entry, tensors in _state_dicts(file)
        for prefix, reader in _networks_among(name for name in tensors if isinstance(name, str)).items()
    ]
    if not found:
        expected = ", ".join(reader.example for reader in READERS)
        raise Dae3dError(
            f"{path}: no network of dae3d in it, but {_inventory(file)}; expected {expected}, with any prefix"
        )
    chosen = min(found, key=_rank)
    if len(found) == 1:
        return chosen, ""
    return chosen, ", ".join(str(other) or "one without a prefix" for other in found if other is not chosen)


def _networks_among(names: Iterable[str]) -> dict[str, Reader]:
    """The networks that tensor names belong to: the prefix of the names and the reader."""
    found: dict[str, Reader] = {}
    for name in names:
        for reader in READERS:
            if (prefix := reader.prefix_of(name)) is not None:
                found.setdefault(prefix, reader)
    return found


def _rank(found: Found) -> int:
    words = set(re.split(r"[._]", f"{found.entry}.{found.prefix}".lower()))
    if words & {"teacher", "ema"}:
        return 0
    return 2 if "student" in words else 1


def _state_dicts(file: Any, entry: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All mappings of names to tensors in a file, outer ones first."""
    if not isinstance(file, Mapping) or depth > _DEPTH:
        return
    if tensors_of(file):
        yield entry, file
    for name, inner in file.items():
        if isinstance(name, str):
            yield from _state_dicts(inner, f"{entry}.{name}" if entry else name, depth + 1)


def _inventory(file: Any) -> str:
    """The contents of a file in one line."""
    if not isinstance(file, Mapping):
        return f"a {type(file).__name__}"
    parts = []
    for entry, mapping in _state_dicts(file):
        tensors = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors_of(mapping).items()]
        parts.append(some(tensors, f"tensors{f' under {entry!r}' if entry else ''}"))
    others = [str(name) for name, value in file.items() if not isinstance(value, Tensor)]
    if not parts:
        parts.append("no tensors" + (f", only {', '.join(others[:10])}" if others else ""))
    return "; ".join(parts[:5])
