"""Which folder may become a store: no file is overwritten or deleted that dae3d has not made."""

import os
import re
from pathlib import Path

from dae3d.errors import Dae3dError
from dae3d.files import make_folder, reading, writing
from dae3d.store.case_files import CASE_INDEX, CASES
from dae3d.store.index import INDEX
from dae3d.store.scan import REJECTED, SCANS

# Folder of a store for damaged files.
DAMAGED = "damaged"
# The file that marks a store.
MARK = ".dae3d-store"
_MARK_TEXT = "What is called {} in this folder belongs to a store of dae3d.\n"
_NAMES = (INDEX, CASE_INDEX, REJECTED, SCANS, CASES, DAMAGED)
# Names of stored files and folders of cases, and beginnings of tables: early stores have no mark.
_STORED = re.compile(r".*-[0-9a-f]{16}(\.b2nd)?")
_BEGINNING = re.compile(rb'\{"version": ?\d+, ?"(preparation|recipe)":|path,reason\n')
_LONGEST = 64  # bytes compared with _BEGINNING


def take_place(store: Path) -> None:
    """Make the folder of a store, or use an existing one that is a store or has none of a store's files.

    Raises:
        Dae3dError: if it cannot be made, or is not a store and has a file or folder that a store would
            overwrite.
    """
    make_folder(store)
    if _marked(store):
        return
    with reading(store):
        others = [name for name in _NAMES if _holds_something(store / name)]
        # Another run may have made it a store meanwhile.
        if others and not is_store(store):
            raise Dae3dError(
                f"{store}: contains {', '.join(others)}, not made by dae3d; choose another folder for the "
                "store, such as a new one in it"
            )
    with writing(store):
        # Not through a temporary file: without the lock, another run might delete that.
        (store / MARK).write_text(_MARK_TEXT.format(", ".join(_NAMES)))


def is_store(folder: Path) -> bool:
    """Whether a folder is a store, made by this or an earlier version of dae3d."""
    return (
        _marked(folder)
        or any(_begins_as_ours(folder / name) for name in (INDEX, CASE_INDEX, REJECTED))
        or any(map(is_stored, (*_entries(folder / SCANS), *_entries(folder / CASES))))
    )


def stored_files(store: Path) -> list[str]:
    """The names of all stored files, listed in the index or not."""
    return [name for name in _entries(store / SCANS) if is_stored(name)]


def is_stored(name: str) -> bool:
    """Whether a name is one of a stored scan or of a case's folder."""
    return _STORED.fullmatch(name) is not None


def _marked(folder: Path) -> bool:
    return (folder / MARK).is_file()


def _entries(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _holds_something(path: Path) -> bool:
    """Whether it exists and is not an empty folder."""
    return bool(_entries(path)) if path.is_dir() else os.path.lexists(path)


def _begins_as_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _BEGINNING.match(file.read(_LONGEST)) is not None
