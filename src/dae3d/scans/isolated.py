"""Reading by libraries that can die of a file, in processes that may."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dae3d.cores import usable_cores
from dae3d.errors import ScanError
from dae3d.processes import Worker, WorkerDied, expendable

Result = TypeVar("Result")

_idle: list[Worker] = []
_places = threading.BoundedSemaphore(usable_cores())


def isolated(function: Callable[[Path], Result], path: Path, seconds: float) -> Result:
    """Call a function of a file where its death is survived: here only where this process's is.

    Processes are kept for the next calls; as many as there are processor cores work at once. What a function
    returns or raises is sent on, so it must be one of a module.

    Raises:
        ScanError: where the process dies, or takes longer than so many seconds.
    """
    if expendable():
        return function(path)
    with _places:
        try:
            worker = _idle.pop()
        except IndexError:
            worker = Worker(_nothing)
        try:
            worker.begin(function, path)
            result = worker.answer(seconds)
        except WorkerDied as death:
            raise ScanError(f"unreadable: the process that read it {death}") from None
        except Exception:
            _idle.append(worker)
            raise
        except BaseException:
            worker.kill()  # its answer would be taken for that of the next call
            raise
        _idle.append(worker)
        return result


def _nothing() -> None:
    pass
