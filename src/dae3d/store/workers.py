"""Work spread over processes: each holds one scan at a time, and none outlives the one that started it."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType

import SimpleITK as sitk

from dae3d.errors import Dae3dError
from dae3d.scans.manifest import Scan
from dae3d.store.convert import Outcome, convert
from dae3d.store.scan import Preparation

_log = logging.getLogger(__name__)


def convert_all(
    scans: list[Scan], preparation: Preparation, store: Path, workers: int
) -> Generator[Outcome, None, None]:
    """Convert scans in `workers` processes, in this one where that is 1; yields them as they are done.

    Interrupted, it still yields the scans that are being prepared, then raises KeyboardInterrupt.

    Raises:
        Dae3dError: where a process is killed, naming what it may have died of, or the store is not writable.
    """
    run = partial(convert, preparation=preparation, store=store)
    if workers == 1:
        for scan in scans:
            yield run(scan)
        return
    # Forked processes would share the threads of PyTorch and Blosc2 half-way through their work.
    executor = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(preparation.spacing is not None,),
    )
    pending: dict[Future[Outcome], Scan] = {}
    try:
        for scan in scans:
            # No more are handed over than are worked on, so what is pending is what is in memory.
            if len(pending) == workers:
                yield from _finished(pending)
            with _starting_processes():
                pending[executor.submit(run, scan)] = scan
        while pending:
            yield from _finished(pending)
    except KeyboardInterrupt:
        _log.warning("finishing the %d scans at work", len(pending))
        with suppress(BrokenProcessPool):
            while pending:
                yield from _finished(pending)
        raise
    except BrokenProcessPool:
        names = ", ".join(str(scan.path) for scan in pending.values())
        raise Dae3dError(
            f"a worker process died, most often for lack of memory, while these were prepared: {names}. "
            "What is finished is kept: run the same command again to go on, with fewer workers"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _finished(pending: dict[Future[Outcome], Scan]) -> Iterator[Outcome]:
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        outcome = future.result()
        del pending[future]
        yield outcome


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
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if resampling:
        import torch

        torch.set_num_threads(1)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
