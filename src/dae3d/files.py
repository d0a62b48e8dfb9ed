"""Writing files whole or not at all, and saying what cannot be written."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from dae3d.errors import Dae3dError

_MARK = ".dae3d-"
_UNFINISHED = re.compile(rf"{re.escape(_MARK)}[0-9a-f]{{8}}\.(.+)")
_LONGEST = 255  # bytes of a file's name
_BEGINNING = 4096  # bytes of a file, by which it is known
_BLOCK = 1 << 24  # bytes written at a time


def unfinished_name(path: Path) -> Path:
    """A path beside `path` for what is not whole yet: hidden, of the same suffix, and marked as ours."""
    # Not the process id: on a shared disk, another machine may have a process of the same one.
    mark = f"{_MARK}{token_hex(4)}."
    name = os.fsencode(path.name)[-(_LONGEST - len(mark)) :]
    return path.with_name(mark + name.decode(errors="ignore"))


def unfinished_files(folder: Path, *names: str) -> list[Path]:
    """What writers that were killed left in a folder, and what others are writing.

    With `names`, only what was to become a file of one of these.
    """
    found = {path: _UNFINISHED.fullmatch(path.name) for path in folder.glob(f"{_MARK}*")}
    return sorted(path for path, match in found.items() if match and (not names or match[1] in names))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to in the place of `path`, which it becomes when everything is written.

    A reader, or a crash, sees the old content or the new, never a part.

    Raises:
        Dae3dError: where it cannot be written.
    """
    make_folder(path.parent)
    temporary = unfinished_name(path)
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


def reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes, all zero, whose room on the disk is taken already.

    What is mapped into memory needs that: where the disk is full when a page is first written to, SIGBUS ends
    the process.

    Raises:
        OSError: where there is no room.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS
            for start in range(0, size, _BLOCK):
                file.write(bytes(min(_BLOCK, size - start)))


def refuse_other_file(path: Path, what: str, beginning: bytes) -> None:
    """Raise Dae3dError where `path` is there and is not `what` it is to become: it may be anybody's.

    Args:
        path: to be written.
        what: in words.
        beginning: how files of that kind begin, a regular expression that takes any byte for a dot.
    """
    if path.is_dir():
        raise Dae3dError(f"out: {path} is a folder; name the file to write")
    if not os.path.lexists(path):
        return
    with reading(path), path.open("rb") as file:
        if not re.match(beginning, file.read(_BEGINNING), re.DOTALL):
            raise Dae3dError(f"out: {path} is there, and is not a {what}; name another, or move it away")


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
def reading(path: Path) -> Iterator[None]:
    """Name `path` in the error where reading it fails.

    Raises:
        Dae3dError: in the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise Dae3dError(f"{path}: cannot be read: {error.strerror or error}") from error


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
