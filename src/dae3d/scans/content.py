"""The format of a file by its first bytes, for files with the wrong extension."""

import bz2
import gzip
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PACKED = {b"\x1f\x8b": ".gz", b"BZh": ".bz2"}
_MGH_VERSION = b"\0\0\0\1"
_HEAD = 348  # bytes of a NIfTI-1 header, whose last four are its magic


def suffix_by_content(path: Path) -> str | None:
    """The suffix that fits the content of `path`, or None if it is not a known format.

    Raises:
        OSError: if the file cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    zipped = next((_PACKED[magic] for magic in _PACKED if head.startswith(magic)), "")
    if zipped:
        try:
            with gzip.open(path) if zipped == ".gz" else bz2.open(path) as file:
                head = file.read(_HEAD)
        except (EOFError, OSError, zlib.error):
            return None
    if head[344:] == b"n+1\0" or head[4:8] == b"n+2\0":
        return f".nii{zipped}"
    if head.startswith(_MGH_VERSION):
        return ".mgz" if zipped else ".mgh"
    if head.startswith(b"NRRD"):
        return ".nrrd"
    return ".mha" if head.startswith((b"ObjectType", b"NDims")) else None


@contextmanager
def renamed(path: Path, suffix: str) -> Iterator[Path]:
    """A link to `path` with another suffix, which exists as long as the context."""
    with tempfile.TemporaryDirectory(prefix="dae3d-") as folder:
        link = Path(folder, f"scan{suffix}")
        link.symlink_to(path.absolute())
        yield link
