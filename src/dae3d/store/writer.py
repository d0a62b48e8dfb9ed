"""Keeping a store whole while it is written: one writer at a time, and nothing left of a killed one."""

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dae3d.errors import Dae3dError
from dae3d.store.scan import PARTIAL

_log = logging.getLogger(__name__)


@contextmanager
def only_writer(store: Path, folder: str, wait: bool = False) -> Iterator[None]:
    """Make the store and its `folder`, clear what a killed run left, and keep other runs out.

    Raises:
        Dae3dError: where it cannot be written to, or another run is writing and this one is not to `wait`.
    """
    try:
        (store / folder).mkdir(parents=True, exist_ok=True)
        lock = (store / ".lock").open("w")
    except OSError as error:
        raise Dae3dError(f"{store}: cannot be written to: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise Dae3dError(f"{store}: another `dae3d prepare` is writing to it") from None
            _log.warning("%s: another process is writing to it; waiting", store)
            fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(store / PARTIAL, ignore_errors=True)
        for leftover in store.glob(".*.tmp"):
            leftover.unlink()
        (store / PARTIAL).mkdir()
        try:
            yield
        finally:
            shutil.rmtree(store / PARTIAL, ignore_errors=True)
