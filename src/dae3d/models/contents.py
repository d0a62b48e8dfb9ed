"""What a weights file holds, and how files of other programs are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from dae3d.models.architecture import Architecture
from dae3d.models.network import Task, WeightsInfo

Half = Literal["encoder", "decoder"]
MonaiMerging = Literal["reference", "merging", "mergingv2"]
MONAI_MERGING = (
    "order of octants in patch merging, for a state dict that does not record it: reference, as published "
    "and in MONAI before 1.5; merging, the default since MONAI 1.5; or mergingv2, as written by dae3d export"
)


@dataclass(frozen=True)
class Contents:
    """The contents of a weights file.

    Attributes:
        path: the file.
        task: what its network was trained for.
        architecture: of its network.
        info: metadata of the training, as far as the file has it.
        state: tensors under our names.
        origins: their names in the file, if different.
        skipped: names in the file of tensors that are not in `state`, with the reason.
        assumed: assumptions about what the file does not record, with an explanation.
        misfits: what differs in a half of its network that does not match ours.
    """

    path: Path
    task: Task
    architecture: Architecture
    info: WeightsInfo
    state: dict[str, Tensor]
    origins: dict[str, str]
    skipped: dict[str, str]
    assumed: Mapping[str, str] = field(default_factory=dict)
    misfits: Mapping[Half, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Renamed:
    """A state dict under our names.

    Attributes:
        state: tensors by our names.
        origins: their names in the file, by our names.
        skipped: why a tensor was left out, by its name in the file.
        strangers: names in the file of tensors that another kind of Swin UNETR has and ours does not, with
            the half they belong to.
    """

    state: dict[str, Tensor]
    origins: dict[str, str]
    skipped: dict[str, str]
    strangers: dict[str, Half] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A network in a file: its entry and the prefix of its names ("" if none), its reader and its tensors."""

    entry: str
    prefix: str
    reader: "Reader"
    tensors: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.entry}: {self.prefix}" if self.entry and self.prefix else self.entry or self.prefix


@dataclass(frozen=True)
class Reader:
    """Reads networks with the names of tensors of another program.

    Attributes:
        example: such names, for an error message.
        prefix_of: the prefix ("" if none) of a name that only such networks have; None for other names.
        renamed: the tensors under our names.
        read: the contents of a file without our header, from its path, everything in it, the network found,
            its tensors under our names, and the order of octants that the user gave.
    """

    example: str
    prefix_of: Callable[[str], str | None]
    renamed: Callable[[Found], Renamed]
    read: Callable[[Path, Any, Found, Renamed, MonaiMerging | None], Contents]


def tensors_of(mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among the entries of a file."""
    return {name: t for name, t in mapping.items() if isinstance(name, str) and isinstance(t, Tensor)}
