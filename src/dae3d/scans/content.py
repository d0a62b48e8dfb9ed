"""What a file is by its first bytes, for files that were given the wrong extension."""

import gzip
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_GZIP = b"\x1f\x8b"
_MGH_VERSION = b"\0\0\0\1"
_HEAD = 348  # bytes of a NIfTI-1 header, whose last four are its magic


def suffix_by_content(path: Path) -> str | None:
    """The suffix that would fit the content of `path`, or None where it is none that readers know.

    Raises:
        OSError: where the file cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    zipped = head.startswith(_GZIP)
    if zipped:
        try:
            with gzip.open(path) as file:
                head = file.read(_HEAD)
        except (EOFError, OSError, zlib.error):
            return None
    if head[344:] == b"n+1\0" or head[4:8] == b"n+2\0":
        return ".nii.gz" if zipped else ".nii"
    if head.startswith(_MGH_VERSION):
        return ".mgz" if zipped else ".mgh"
    if head.startswith(b"NRRD"):
        return ".nrrd"
    return ".mha" if head.startswith((b"ObjectType", b"NDims")) else None


@contextmanager
def renamed(path: Path, suffix: str) -> Iterator[Path]:
    """Another name for `path`, with another suffix, as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="dae3d-") as folder:
        link = Path(folder, f"scan{suffix}")
        link.symlink_to(path.absolute())
        yield link
