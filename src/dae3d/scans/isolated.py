"""Reading files in worker processes, with libraries that may crash on them."""

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
    """Call a function of a file in a worker process, or here if this process may crash itself.

    Workers are kept for the next calls; at most one per processor core runs at a time. The function, its
    result and its errors are pickled.

    Raises:
        ScanError: if the process dies, or takes longer than `seconds`.
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
            worker.kill()  # the next call would take its answer
            raise
        _idle.append(worker)
        return result


def _nothing() -> None:
    pass
