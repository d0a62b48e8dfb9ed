"""Work spread over processes: each holds one scan at a time, and none outlives the one that started it."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import TypeVar

import SimpleITK as sitk

from dae3d.errors import Dae3dError

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def work_through(
    items: Iterable[Item],
    run: Callable[[Item], Result],
    name: Callable[[Item], str],
    workers: int,
    resampling: bool,
    setting: str,
) -> Generator[Result, None, None]:
    """Do `run` for each item in `workers` processes, in this one where that is 1; yields what is done.

    Interrupted, it still yields the items that are at work, then raises KeyboardInterrupt. `resampling` says
    that PyTorch will be used, which takes seconds to import; `setting` is what the user calls `workers`.

    Raises:
        Dae3dError: where a process is killed, with the names of what it may have died of.
    """
    if workers == 1:
        yield from map(run, items)
        return
    # Forked processes would share the threads of PyTorch and Blosc2 half-way through their work.
    executor = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(resampling,),
    )
    pending: dict[Future[Result], Item] = {}
    try:
        for item in items:
            # No more are handed over than are worked on, so what is pending is what is in memory.
            if len(pending) == workers:
                yield from _finished(pending)
            with _starting_processes():
                pending[executor.submit(run, item)] = item
        while pending:
            yield from _finished(pending)
    except KeyboardInterrupt:
        _log.warning("finishing the %d scans at work", len(pending))
        with suppress(BrokenProcessPool):
            while pending:
                yield from _finished(pending)
        raise
    except BrokenProcessPool:
        names = ", ".join(map(name, pending.values()))
        raise Dae3dError(
            f"a worker process died, most often for lack of memory, while these were at work: {names}. "
            f"What is finished is kept: run the same command again to go on, with fewer workers ({setting})"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _finished(pending: dict[Future[Result], Item]) -> Iterator[Result]:
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        result = future.result()
        del pending[future]
        yield result


@contextmanager
def _starting_processes() -> Iterator[None]:
    """What processes inherit that are started within: Ctrl-C is for the main process, to end the work.

    They also do not run the caller's script anew, of which nothing is needed there.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sys.modules["__main__"] = main


def _start_worker(resampling: bool) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    use_one_thread(resampling)


def use_one_thread(resampling: bool) -> None:
    """Keep the libraries from starting threads of their own; with `resampling`, PyTorch too."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if resampling:
        import torch

        torch.set_num_threads(1)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
