"""Checks before a library is called: that a scan is a regular file, is complete and fits into memory."""

import math
import stat
from collections.abc import Sequence
from pathlib import Path

from rich.filesize import decimal

from dae3d.errors import ScanError
from dae3d.memory import free_memory

# The highest compression ratio of deflate (https://zlib.net/zlib_tech.html).
_DEFLATE_RATIO = 1032


def refuse_irregular(path: Path) -> None:
    """Refuse what reading could block on for ever.

    Raises:
        ScanError: if `path` is a pipe, a socket or a device.
        OSError: if it cannot be found.
    """
    refuse_mode(path.stat().st_mode)


def refuse_mode(mode: int) -> None:
    """`refuse_irregular` for a file's mode; raises ScanError."""
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ScanError("unreadable: not a file: a pipe, socket or device")


def refuse_no_utf8(path: Path) -> None:
    """Refuse a path that ITK would crash on, and that JSON cannot hold either.

    Raises:
        ScanError: if it is not in UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ScanError("its path is not in UTF-8; rename it") from None


def refuse_truncated(needed: int, there: int, deflated: bool = False) -> None:
    """Refuse voxels of `needed` bytes if the `there` bytes stored, possibly `deflated`, cannot hold them.

    Raises:
        ScanError: if they cannot.
    """
    if deflated and needed > there * _DEFLATE_RATIO:
        raise ScanError(f"unreadable: {there} compressed bytes cannot hold {needed} bytes of voxels")
    if not deflated and needed > there:
        raise ScanError(f"unreadable: truncated: {max(0, there)} of {needed} bytes of voxels")


def refuse_too_large(shape: Sequence[int], bytes_each: int) -> None:
    """Refuse a scan whose voxels, of `bytes_each`, do not fit into memory.

    Raises:
        ScanError: if less is free.
    """
    needed, free = math.prod(shape) * bytes_each, free_memory()
    if needed > free:
        raise ScanError(
            f"unreadable: its voxels need {decimal(needed)} of memory, but only {decimal(free)} is free; use "
            "fewer workers"
        )
