"""File locks, on file systems that support them."""

import fcntl
import logging
from functools import cache
from pathlib import Path
from typing import BinaryIO

_log = logging.getLogger(__name__)


def lock(file: BinaryIO, path: Path, shared: bool = False, wait: bool = False) -> bool:
    """Lock the open file `path` until it is closed.

    If the file system does not support locking, warns once per folder and continues without a lock.

    Args:
        file: open for reading and writing; NFS requires reading for shared and writing for exclusive locks.
        path: its path.
        shared: take a shared lock instead of an exclusive one.
        wait: wait until other processes release it.

    Returns:
        False if another process has the lock.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _say_once(path.parent, error.strerror)
    return True


@cache
def _say_once(folder: Path, why: str) -> None:
    _log.warning(
        "%s: the file system does not support locking (%s); do not start another run that writes to it",
        folder,
        why,
    )
