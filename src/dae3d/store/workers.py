"""Work spread over processes: each holds one scan at a time, and none outlives the one that started it."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait
from typing import Generic, TypeVar

import SimpleITK as sitk

from dae3d.processes import Worker, WorkerDied

_log = logging.getLogger(__name__)

# Seconds, for one scan.
_PATIENCE = 3600.0

Item = TypeVar("Item")
Result = TypeVar("Result")


def work_through(
    items: Iterable[Item],
    run: Callable[[Item], Result],
    died: Callable[[Item, str], Result],
    workers: int,
    resampling: bool,
) -> Generator[Result, None, None]:
    """Do `run` for each item in `workers` processes; yields what is done.

    An item whose process dies is tried again when the others are done, alone. Of one that it dies of again,
    or that takes an hour, `died` makes the result, from the item and the reason. Interrupted, it still yields
    the items that are at work, then raises KeyboardInterrupt. `resampling` says that PyTorch will be used,
    which takes seconds to import.

    Raises:
        Exception: what `run` raises.
    """
    crew = _Crew(run, died, partial(use_one_thread, resampling))
    try:
        for item in items:
            # No more are handed over than are worked on, so what is at work is what is in memory.
            while crew.busy >= workers:
                yield from crew.finished()
            crew.begin(item)
        while crew.busy:
            yield from crew.finished()
        for item in crew.again():
            crew.begin(item)
            yield from crew.finished()
    except KeyboardInterrupt:
        _log.warning("finishing the %d scans at work", crew.busy)
        while crew.busy:
            yield from crew.finished()
        raise
    finally:
        crew.end()


class _Crew(Generic[Item, Result]):
    """Worker processes, and the items that they are at."""

    def __init__(
        self, run: Callable[[Item], Result], died: Callable[[Item, str], Result], start: Callable[[], None]
    ) -> None:
        self._run, self._died, self._start = run, died, start
        self._idle: list[Worker] = []
        self._at_work: dict[Worker, Item] = {}
        self._fatal: list[Item] = []
        self._last_try = False

    @property
    def busy(self) -> int:
        """How many are at work."""
        return len(self._at_work)

    def begin(self, item: Item) -> None:
        """Give an item to a process that has none."""
        worker = self._idle.pop() if self._idle else Worker(self._start)
        try:
            self._at_work[worker] = item
            # What has died meanwhile is found to be dead when it is asked for its answer.
            with suppress(WorkerDied):
                worker.begin(self._run, item)
        except BaseException:
            # Interrupted: whether the process knows of the item cannot be told, and nobody is to wait for it.
            self._at_work.pop(worker, None)
            worker.kill()
            raise

    def finished(self) -> Iterator[Result]:
        """Wait until one item is done, or more; yields what came of them."""
        signs = {sign: worker for worker in self._at_work for sign in worker.signs}
        ready = wait(list(signs), _PATIENCE)
        # Where none is done in that time, the first has been at work the longest.
        late = [] if ready else list(self._at_work)[:1]
        for worker in dict.fromkeys([signs[sign] for sign in ready] or late):
            item = self._at_work.pop(worker)
            try:
                result = worker.answer(0)
            except WorkerDied as death:
                if self._last_try or late:
                    yield self._died(item, f"its process {death}")
                else:
                    self._fatal.append(item)
            else:
                self._idle.append(worker)
                yield result

    def again(self) -> Iterator[Item]:
        """The items whose processes have died, for the last time."""
        self._last_try = True
        for worker in self._idle:
            worker.end()
        self._idle.clear()
        if self._fatal:
            _log.warning("%d scans are tried again, alone: their processes died", len(self._fatal))
        yield from self._fatal

    def end(self) -> None:
        """End all processes when they have done what they are at."""
        for worker in [*self._idle, *self._at_work]:
            worker.end()


def use_one_thread(resampling: bool) -> None:
    """Keep the libraries from starting threads of their own; with `resampling`, PyTorch too."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if resampling:
        import torch

        torch.set_num_threads(1)
