"""Writing files whole or not at all, and saying what cannot be written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from dae3d.errors import Dae3dError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to in the place of `path`, which it becomes when everything is written.

    A reader, or a crash, sees the old content or the new, never a part.

    Raises:
        Dae3dError: where it cannot be written.
    """
    make_folder(path.parent)
    # Not the process id: on a shared disk, another machine may have a process of the same one.
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.tmp")
    with writing(path):
        # Libraries that write it may have errors of their own for a folder that is read-only.
        temporary.touch()
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; raises as `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_text(text)


def make_folder(path: Path) -> None:
    """Make a folder, and those that it lies in, where they are not there yet.

    Raises:
        Dae3dError: where it cannot be made.
    """
    with writing(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            there = next(place for place in (path, *path.parents) if os.path.lexists(place))
            raise Dae3dError(f"{path}: cannot be a folder: {there} is a file") from None


def inside(folder: Path, name: str) -> Path:
    """The path in a folder of a name that comes from a file: a label, or a case's.

    Raises:
        Dae3dError: where it is the name of no file there, and would lead elsewhere.
    """
    if name in ("", ".", "..") or any(c in name for c in ("/", os.sep, "\0")):
        raise Dae3dError(f"{name!r} cannot be the name of a file in {folder}; choose another name")
    return folder / name


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name `path` in the error where writing to it fails.

    Raises:
        Dae3dError: in the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise Dae3dError(f"{path}: cannot be written: {error.strerror or error}") from error
