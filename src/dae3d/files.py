"""Write files and folders atomically, and name the path in errors of reading and writing."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
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
    """A path beside `path` for an incomplete file: hidden, with the same suffix, and marked as ours."""
    # Random rather than the process id, which may be in use on another machine with the same disk.
    mark = f"{_MARK}{token_hex(4)}."
    name = os.fsencode(path.name)[-(_LONGEST - len(mark)) :]
    return path.with_name(mark + name.decode(errors="ignore"))


def unfinished_files(folder: Path, *names: str) -> list[Path]:
    """Incomplete files in a folder: left by killed writers, or being written.

    With `names`, only those that were to become a file of one of these names.
    """
    found = {path: _UNFINISHED.fullmatch(path.name) for path in folder.glob(f"{_MARK}*")}
    return sorted(path for path, match in found.items() if match and (not names or match[1] in names))


@contextmanager
def whole_file(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path, which is renamed to `path` at the end.

    A reader, or a crash, sees the old content or the new, never a part.

    Args:
        path: file to write.
        folder: existing folder for the temporary file, on the same disk (default: beside `path`).

    Raises:
        Dae3dError: if it cannot be written.
    """
    make_folder(path.parent)
    temporary = unfinished_name(path if folder is None else folder / path.name)
    with writing(path):
        # So that a read-only folder gives an OSError, whatever the library that writes the file would raise.
        temporary.touch()
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; raises as `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_text(text)


def reserve(path: Path, size: int) -> None:
    """Make a file of `size` zero bytes with its disk space allocated.

    For memory-mapped files: if the disk is full when a page is first written to, SIGBUS ends the process.

    Raises:
        OSError: if there is not enough space.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS
            for start in range(0, size, _BLOCK):
                file.write(bytes(min(_BLOCK, size - start)))


def refuse_other_file(path: Path, what: str, beginning: bytes) -> None:
    """Raise Dae3dError if `path` exists and is not a file of the kind that would overwrite it.

    Args:
        path: to be written.
        what: the kind of file, for the message.
        beginning: regular expression for the beginning of such files; a dot matches any byte.
    """
    if path.is_dir():
        raise Dae3dError(f"out: {path} is a folder; give the path of a file")
    if not os.path.lexists(path):
        return
    with reading(path), path.open("rb") as file:
        if not re.match(beginning, file.read(_BEGINNING), re.DOTALL):
            raise Dae3dError(f"out: {path} exists and is not a {what}; choose another path, or move it away")


@contextmanager
def whole_folder(path: Path, kind: str) -> Iterator[Path]:
    """Write a folder as a whole: yields a temporary one, which takes the place of `path` at the end.

    An existing folder is replaced only then; check it first with `refuse_other_folder`.

    Args:
        path: folder to write.
        kind: of folder, recorded in an empty file `.dae3d-KIND` in it.

    Raises:
        Dae3dError: if it cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link to a folder is kept
    make_folder(path.parent)
    temporary, before = unfinished_name(path), unfinished_name(path)
    with writing(path):
        temporary.mkdir()
        try:
            yield temporary
            (temporary / f"{_MARK}{kind}").touch()
            if path.exists():
                path.rename(before)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if path.exists():
                shutil.rmtree(before, ignore_errors=True)


def refuse_other_folder(path: Path, kind: str, what: str, is_ours: Callable[[str], bool]) -> None:
    """Raise Dae3dError if `path` has anything that `whole_folder` of that kind did not write.

    Args:
        path: to be written.
        kind: as for `whole_folder`.
        what: the kind of folder, for the message.
        is_ours: whether a path in the folder, with "/" between its parts, is of a file of such folders.
    """
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise Dae3dError(f"out: {path} is a file; give the path of a folder")
    with reading(path):
        found = [each for each in path.rglob("*") if not each.is_dir()]
    names = sorted(each.relative_to(path).as_posix() for each in found)
    others = [name for name in names if not (is_ours(name) or name == f"{_MARK}{kind}")]
    if names and (others or f"{_MARK}{kind}" not in names):
        raise Dae3dError(
            f"out: {path} exists and is not a {what} written by dae3d ({(others or names)[0]} is in it); "
            "choose another folder, or move it away"
        )


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if they do not exist.

    Raises:
        Dae3dError: if it cannot be made.
    """
    with writing(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            there = next(place for place in (path, *path.parents) if os.path.lexists(place))
            raise Dae3dError(f"{path}: cannot be created: {there} is a file") from None


def inside(folder: Path, name: str) -> Path:
    """The path in `folder` for a name read from a file, such as a label or a case's name.

    Raises:
        Dae3dError: if it cannot be a file name, and might lead out of the folder.
    """
    if name in ("", ".", "..") or any(c in name for c in ("/", os.sep, "\0")):
        raise Dae3dError(f"{name!r} cannot be used as a file name in {folder}; choose another name")
    return folder / name


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name `path` in errors of reading it.

    Raises:
        Dae3dError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise Dae3dError(f"{path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name `path` in errors of writing to it.

    Raises:
        Dae3dError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise Dae3dError(f"{path}: cannot be written: {error.strerror or error}") from error
