"""Loader processes: their set-up, and messages if they fail."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from dae3d.errors import Dae3dError

_LOCKS = 8  # more than PyTorch's queues and events use for each process
_ADVICE = "give the container more (docker run --shm-size 1g), or train with fewer --workers (0 needs none)"


class Loader(DataLoader[Any]):
    """A data loader whose processes start with SIGTERM blocked, for `start_loader_process`.

    PyTorch starts threads of its own in a process before that, and a signal reaches any thread that does not
    block it.
    """

    def __iter__(self) -> Any:
        """Start the processes, if they are not there yet."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def start_loader_process(number: int) -> None:
    """Ignore signals from other processes than the parent, and keep forked memory shared.

    Ctrl-C reaches every process of a terminal, and a queue sends SIGTERM to every process of a job. If that
    ended a loader process, the run would end before anything is saved, so only the parent may end it. It
    exits by itself if its parent is gone (PyTorch's loop watches for that).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_parent_says, args=(os.getppid(),), daemon=True).start()
    # Forked memory stays shared with the parent as long as it is not written; garbage collection would.
    gc.freeze()


def _end_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def check_shared_memory(processes: int) -> None:
    """Check that the locks of this many loader processes, a page of shared memory each, can be created.

    Raises:
        Dae3dError: if not; PyTorch would leave processes behind, and sometimes wait forever.
    """
    try:
        locks = [multiprocessing.Lock() for _ in range(_LOCKS * processes)]
    except OSError as error:
        raise Dae3dError(
            f"workers: /dev/shm has no space for {processes} loader processes ({error.strerror}); {_ADVICE}"
        ) from None
    del locks


@contextmanager
def naming_loader_processes() -> Iterator[None]:
    """Advise what to do if loader processes cannot be started, or die.

    Raises:
        Dae3dError: in place of the error of PyTorch or the system.
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
