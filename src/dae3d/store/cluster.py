"""Distribute work over machines with Dask: the counterpart of `workers.work_through` (extra `cluster`)."""

import logging
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from distributed import Client, Future, KilledWorker, as_completed, get_worker

from dae3d.errors import Dae3dError
from dae3d.store.workers import use_one_thread

_CONNECT = "15s"

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def work_on_cluster(
    items: Iterable[Item],
    run: Callable[[Item], Result],
    died: Callable[[Item], Result],
    unseen: Callable[[Item, Result], Path | None],
    address: str,
    shared: Path,
    resampling: bool,
) -> Generator[Result, None, None]:
    """Call `run` for each item on the workers of the Dask scheduler at `address`; yields the results.

    Workers may join and leave; the items of one that dies are given to others. `died` makes the result of an
    item on which too many workers died (the scheduler's `allowed-failures`). `shared` is a folder that all
    must be able to write to. `unseen` returns the path that a worker could not see, by its result, although
    it is visible here. On Ctrl-C the running items are finished and yielded before KeyboardInterrupt.

    Raises:
        Dae3dError: if the scheduler cannot be reached, or a worker does not see the files.
    """
    with _connected(address) as client:
        if not client.nthreads():
            _log.info("waiting for Dask workers: start them with `dask worker ADDRESS --nthreads 1`")
            client.wait_for_workers(1)
        pending: dict[Future[Any], Item] = {}
        done = as_completed(loop=client.loop, raise_errors=False)
        source = iter(items)
        try:
            while True:
                # One item per thread and none queued: those would be suspects, too, when a worker dies.
                free = max(1, sum(client.nthreads().values())) - len(pending)
                for item in islice(source, max(0, free)):
                    future = client.submit(_alone, run, item, shared, resampling, pure=False)
                    pending[future] = item
                    done.add(future)
                if not pending:
                    return
                for future in done.next_batch():
                    yield _result(future, pending, died, unseen)
        except KeyboardInterrupt:
            _log.warning("finishing the %d scans in progress", len(pending))
            while pending:
                yield _result(next(done), pending, died, unseen)
            raise
        except (CancelledError, OSError):
            raise Dae3dError(
                f"lost the Dask scheduler at {address}; finished scans are kept: run the same command again"
            ) from None
        finally:
            # No scan may still be written after the store's lock is released.
            for _ in done:
                pass


def _connected(address: str) -> Client:
    try:
        return Client(address, timeout=_CONNECT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise Dae3dError(
            f"no Dask scheduler answers at {address} ({error}); start one with `dask scheduler`"
        ) from None


def _alone(run: Callable[[Item], Result], item: Item, shared: Path, resampling: bool) -> tuple[str, Result]:
    """Run on a worker, which may just have joined: its address, and the result."""
    address = get_worker().address
    if not shared.is_dir():
        raise _blindness(address, shared.parent)
    use_one_thread(resampling)
    return address, run(item)


def _blindness(address: str, path: Path) -> Dae3dError:
    return Dae3dError(
        f"worker {address} does not see {path}: scans and store must be on a disk that all machines mount at "
        "the same path"
    )


def _result(
    future: Any,
    pending: "dict[Future[Any], Item]",
    died: Callable[[Item], Result],
    unseen: Callable[[Item, Result], Path | None],
) -> Result:
    item = pending.pop(future)
    try:
        address, result = future.result()
    except KilledWorker:
        return died(item)
    path = unseen(item, result)
    if path is not None:
        raise _blindness(address, path)
    return result
