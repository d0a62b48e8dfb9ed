"""Keeping other processes away from a file, where its disk can do that."""

import fcntl
import logging
from functools import cache
from pathlib import Path
from typing import BinaryIO

_log = logging.getLogger(__name__)


def lock(file: BinaryIO, path: Path, shared: bool = False, wait: bool = False) -> bool:
    """Lock the open file `path` until it is closed, alone or `shared` with others that share it.

    On a disk that keeps no locks, says so once for each folder, and goes on.

    Args:
        file: open for reading and writing, as NFS gives a shared lock only to readers, and the other only to
            writers.
        path: its path.
        shared: let others have it that share it too.
        wait: until the others have given it up.

    Returns:
        Whether it could be: False where another process has it.
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
    _log.warning("%s: its disk keeps no locks (%s); let no other run write to it meanwhile", folder, why)
