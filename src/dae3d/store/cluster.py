"""Work spread over many machines by Dask: the counterpart of `workers.work_through` (extra `cluster`)."""

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
    """Do `run` for each item on the workers of the Dask scheduler at `address`; yields what is done.

    The items of a worker that dies are given to others. `died` makes the result of an item that too many
    workers died of (the scheduler's `allowed-failures`). Workers may come and go. `shared` is a folder that
    all must be able to write to, and `unseen` gives what a worker, by its result, did not see although it is
    seen from here. Interrupted, it yields what is at work, then raises KeyboardInterrupt.

    Raises:
        Dae3dError: where there is no scheduler, or it is lost, or a worker does not see what it must.
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
                # One for each thread and none in waiting, which would count as suspect when a worker dies.
                room = max(1, sum(client.nthreads().values())) - len(pending)
                for item in islice(source, max(0, room)):
                    future = client.submit(_alone, run, item, shared, resampling, pure=False)
                    pending[future] = item
                    done.add(future)
                if not pending:
                    return
                for future in done.next_batch():
                    yield _result(future, pending, died, unseen)
        except KeyboardInterrupt:
            _log.warning("finishing the %d scans at work", len(pending))
            while pending:
                yield _result(next(done), pending, died, unseen)
            raise
        except (CancelledError, OSError):
            raise Dae3dError(
                f"lost the Dask scheduler at {address}; what is finished is kept: run the same command again"
            ) from None
        finally:
            # A scan must not go on being written when the store is no longer ours.
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
    """On a worker, which may have joined at any time: its address, and what came of the item."""
    address = get_worker().address
    if not shared.is_dir():
        raise _blindness(address, shared.parent)
    use_one_thread(resampling)
    return address, run(item)


def _blindness(address: str, path: Path) -> Dae3dError:
    return Dae3dError(
        f"worker {address} does not see {path}: scans and store must lie on a disk that all machines have "
        "under the same path"
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
