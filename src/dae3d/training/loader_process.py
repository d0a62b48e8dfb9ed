"""Loader processes: what one does before its first crop, and what is said where one fails."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dae3d.errors import Dae3dError

_LOCKS = 8  # more than PyTorch's queues and events have of each process
_ADVICE = "give the container more (docker run --shm-size 1g), or train with fewer --workers (0 needs none)"


def start_loader_process(number: int) -> None:
    """Leave signals to the process that trains, and memory as it was forked.

    Ctrl-C reaches every process of a terminal, and a queue sends SIGTERM to every process of a job; a loader
    process that ended of it would end the run before anything is saved. So only its parent may end it. It
    ends by itself where its parent is gone (PyTorch's loop watches for that).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_parent_says, args=(os.getppid(),), daemon=True).start()
    # What the process was forked with stays shared with its parent: collecting garbage would write to it.
    gc.freeze()


def _end_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def check_shared_memory(processes: int) -> None:
    """See that the locks of so many loader processes, a page of shared memory each, can be had.

    Raises:
        Dae3dError: where they cannot; PyTorch would leave processes behind, and at times wait for ever.
    """
    try:
        locks = [multiprocessing.Lock() for _ in range(_LOCKS * processes)]
    except OSError as error:
        raise Dae3dError(
            f"workers: /dev/shm has no room for {processes} loader processes ({error.strerror}); {_ADVICE}"
        ) from None
    del locks


@contextmanager
def naming_loader_processes() -> Iterator[None]:
    """Say what to do where loader processes cannot be started, or die.

    Raises:
        Dae3dError: in the place of the error that PyTorch, or the system, gives then.
    """
    try:
        yield
    except Exception as error:
        reason = next(filter(None, map(_of_loader_process, _chain(error))), None)
        if reason is None:
            raise
        raise Dae3dError(f"a loader process failed: {reason} If memory is short, {_ADVICE}") from error


def _of_loader_process(error: BaseException) -> str | None:
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, RuntimeError) and ("DataLoader worker (pid" in text or "shared memory" in text):
        return text
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
