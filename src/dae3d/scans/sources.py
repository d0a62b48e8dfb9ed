"""The files that may be scans: those in folders, those given singly, and those that lists name."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dae3d.errors import Dae3dError
from dae3d.scans.manifest import LeftOut, Split
from dae3d.scans.readers import SUFFIXES, suffix


@dataclass(frozen=True)
class Candidate:
    """A file that may be a scan, and what is said of it apart from its header.

    `path` is absolute; `shown` is the path relative to `root`, the folder given, or as a list writes it;
    `case` is the file whose place tells the subject: itself, or the first channel of a list's entry.
    `modality`, `subject` and `split` are what a list says.
    """

    path: Path
    shown: str
    root: Path
    dataset: str
    case: Path
    modality: str | None = None
    subject: str | None = None
    split: Split | None = None


def absolute(path: Path) -> Path:
    """The path without `..`, links kept."""
    return Path(os.path.abspath(path))


def scans_in_folder(folder: Path, dataset: str | None) -> tuple[list[Candidate], list[LeftOut]]:
    """Every file with a readable suffix under `folder`, in sorted order; links are followed, hidden ones not.

    Folders that cannot be listed are returned as left out.
    """
    found: list[Candidate] = []
    left_out: list[LeftOut] = []

    def note(error: OSError) -> None:
        left_out.append(LeftOut(path=Path(error.filename), reason=f"unreadable: {error.strerror}"))

    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=note):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if suffix(path) and not name.startswith("."):
                shown = path.relative_to(folder).as_posix()
                found.append(Candidate(path, shown, folder, dataset or folder.name, path))
    return found, left_out


def scan_given(path: Path, dataset: str | None) -> Candidate:
    """The single scan `path`.

    Raises:
        Dae3dError: where no reader takes a file of that name.
    """
    if not suffix(path):
        raise Dae3dError(
            f"{path}: neither a folder, nor a .json list, nor a scan by its suffix ({readable_suffixes()})"
        )
    return Candidate(path, path.name, path.parent, dataset or path.parent.name, path)


def once_each(candidates: Iterable[Candidate]) -> tuple[list[Candidate], list[LeftOut]]:
    """Keep one of several ways to the same file, the first; another name for it (a link) is left out.

    A file that any list holds out for validation is held out.
    """
    kept: dict[str, Candidate] = {}
    left_out: list[LeftOut] = []
    for candidate in candidates:
        real = os.path.realpath(candidate.path)
        first = kept.setdefault(real, candidate)
        if candidate.split == "val":
            kept[real] = replace(first, split="val")
        if candidate.path != first.path:
            left_out.append(LeftOut(path=candidate.path, reason=f"same file as another: {first.path}"))
    return list(kept.values()), left_out


def readable_suffixes(suffixes: Sequence[str] = SUFFIXES) -> str:
    """The suffixes of the files that are read, as a sentence lists them."""
    return ", ".join(suffixes[:-1]) + f" and {suffixes[-1]}"
