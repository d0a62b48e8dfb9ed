"""Distribute work over processes, each with one scan at a time; they end with their parent."""

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
    """Call `run` for each item in `workers` processes; yields the results as they are done.

    An item whose process dies is tried again at the end, alone. If the process dies again, or takes an hour,
    `died` makes the result from the item and the reason. On Ctrl-C the running items are finished and yielded
    before KeyboardInterrupt. `resampling`: limit PyTorch to one thread too (its import takes seconds).

    Raises:
        Exception: any error of `run`.
    """
    crew = _Crew(run, died, partial(use_one_thread, resampling))
    try:
        for item in items:
            # No items are queued, so that only those in progress are in memory.
            while crew.busy >= workers:
                yield from crew.finished()
            crew.begin(item)
        while crew.busy:
            yield from crew.finished()
        for item in crew.again():
            crew.begin(item)
            yield from crew.finished()
    except KeyboardInterrupt:
        _log.warning("finishing the %d scans in progress", crew.busy)
        while crew.busy:
            yield from crew.finished()
        raise
    finally:
        crew.end()


class _Crew(Generic[Item, Result]):
    """Worker processes, and their items."""

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
        """The number of processes at work."""
        return len(self._at_work)

    def begin(self, item: Item) -> None:
        """Give an item to an idle process."""
        worker = self._idle.pop() if self._idle else Worker(self._start)
        try:
            self._at_work[worker] = item
            # A death is noticed when the answer is read.
            with suppress(WorkerDied):
                worker.begin(self._run, item)
        except BaseException:
            # Interrupted: the process may or may not have the item, so nothing may wait for it.
            self._at_work.pop(worker, None)
            worker.kill()
            raise

    def finished(self) -> Iterator[Result]:
        """Wait until at least one item is done; yields the results."""
        signs = {sign: worker for worker in self._at_work for sign in worker.signs}
        ready = wait(list(signs), _PATIENCE)
        # If none is done in that time, the first has been running the longest.
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
        """The items whose processes died, for a last try."""
        self._last_try = True
        for worker in self._idle:
            worker.end()
        self._idle.clear()
        if self._fatal:
            _log.warning("their processes died: trying %d scans again, one at a time", len(self._fatal))
        yield from self._fatal

    def end(self) -> None:
        """End all processes once their items are done."""
        for worker in [*self._idle, *self._at_work]:
            worker.end()


def use_one_thread(resampling: bool) -> None:
    """Limit the libraries to one thread; with `resampling`, PyTorch too."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if resampling:
        import torch

        torch.set_num_threads(1)
