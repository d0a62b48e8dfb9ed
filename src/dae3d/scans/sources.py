"""The files that may be scans: in folders, given one by one, or named in lists."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dae3d.errors import Dae3dError
from dae3d.scans.manifest import LeftOut, Split
from dae3d.scans.readers import SUFFIXES, suffix


@dataclass(frozen=True)
class Candidate:
    """A file that may be a scan, and what is known of it apart from its header.

    `path` is absolute; `shown` is the path relative to `root`, the folder given, or as written in a list;
    `case` is the file whose path gives the subject: itself, or the first channel of a list's entry.
    `modality`, `subject` and `split` come from a list or a layout, `unread` is its word for a modality if
    that is not a label; `by_name` is set if the subject is only the file's name; `volume` is the index of a
    volume in a 4-D file, from 0, and `volumes` the number of volumes expected.
    """

    path: Path
    shown: str
    root: Path
    dataset: str
    case: Path
    modality: str | None = None
    subject: str | None = None
    split: Split | None = None
    volume: int | None = None
    volumes: int | None = None
    unread: str | None = None
    by_name: bool = False


def absolute(path: Path) -> Path:
    """The absolute path without `..`; links are not resolved."""
    return Path(os.path.abspath(path))


def files_in(folder: Path, visited: set[str]) -> Iterator[Path | LeftOut]:
    """Every file under `folder`, sorted; links are followed, hidden files and folders ignored.

    Folders in `visited` (real paths) are not entered again. A folder that cannot be listed is left out, and
    so is a pipe, socket or device, which reading could block on for ever.
    """
    failed: list[OSError] = []
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=failed.append):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (_checked(Path(parent, name)) for name in sorted(files) if not name.startswith("."))
        while failed:
            yield _unlisted(failed.pop())
    yield from map(_unlisted, failed)


def _checked(path: Path) -> Path | LeftOut:
    with suppress(OSError):  # reading it later reports why
        if not stat.S_ISREG(path.stat().st_mode):
            return LeftOut(path=path, reason="not a file: a pipe, socket or device")
    return path


def _unlisted(error: OSError) -> LeftOut:
    return LeftOut(path=Path(error.filename), reason=f"unreadable: {error.strerror}")


def scan_in_folder(path: Path, folder: Path, dataset: str | None) -> Candidate:
    """The scan at `path` under `folder`."""
    return Candidate(path, path.relative_to(folder).as_posix(), folder, dataset or folder.name, path)


def scan_given(path: Path, dataset: str | None) -> Candidate:
    """The single scan `path`.

    Raises:
        Dae3dError: if its suffix is not known.
    """
    if not suffix(path):
        raise Dae3dError(
            f"{path}: not a folder, a .json list, a DICOM file or a file with a suffix that can be read "
            f"({readable_suffixes()})"
        )
    return Candidate(path, path.name, path.parent, dataset or path.parent.name, path)


def readable_suffixes(suffixes: Sequence[str] = SUFFIXES) -> str:
    """The suffixes of the files that are read, for a message."""
    return ", ".join(suffixes[:-1]) + f" and {suffixes[-1]}"
