"""Locks for writing to a store, and removal of the files that killed runs left."""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dae3d.errors import Dae3dError
from dae3d.files import make_folder, unfinished_files
from dae3d.locks import lock
from dae3d.store.case_files import CASE_INDEX
from dae3d.store.index import INDEX
from dae3d.store.place import take_place
from dae3d.store.scan import PARTIAL, REJECTED
from dae3d.store.shards import PARTS, Shard

LOCK = ".lock"
_PARTIAL = re.compile(rf"{re.escape(PARTIAL)}(-\d+-of-\d+)?")

_log = logging.getLogger(__name__)


@contextmanager
def only_writer(store: Path, folder: str, wait: bool = False) -> Iterator[None]:
    """Make the store and its `folder`, delete what killed runs left, and lock out other runs.

    Raises:
        Dae3dError: if it cannot be written to or is not a store, or another run is writing to it and `wait`
            is false.
    """
    take_place(store)
    make_folder(store / folder)
    with locked(store / LOCK, wait=wait):
        for leftover in leftovers(store):
            _remove(leftover)
        make_folder(store / PARTIAL)
        try:
            yield
        finally:
            shutil.rmtree(store / PARTIAL, ignore_errors=True)


@contextmanager
def shard_writer(store: Path, folder: str, shard: Shard) -> Iterator[str]:
    """As `only_writer`, for one shard among others; yields the folder for incomplete files.

    Raises:
        Dae3dError: if the store cannot be written to or is not a store, or is being written to by a run
            without shards or by the same shard.
    """
    take_place(store)
    make_folder(store / folder)
    make_folder(store / PARTS)
    partial = f"{PARTIAL}-{shard.name}"
    with locked(store / LOCK, shared=True), locked(store / shard.lock):
        shutil.rmtree(store / partial, ignore_errors=True)
        make_folder(store / partial)
        try:
            yield partial
        finally:
            shutil.rmtree(store / partial, ignore_errors=True)


def refuse_writing(store: Path) -> None:
    """Raise Dae3dError if a run is writing to the store; does not keep one from starting."""
    if os.access(store, os.W_OK):
        with locked(store / LOCK, shared=True):
            pass


@contextmanager
def locked(path: Path, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, exclusively or `shared`.

    Raises:
        Dae3dError: if it cannot be created, or another run has it and `wait` is false.
    """
    try:
        file = path.open("a+b")
    except OSError as error:
        raise Dae3dError(f"{path.parent}: cannot be written to: {error.strerror}") from None
    with file:
        if not lock(file, path, shared):
            if not wait:
                raise Dae3dError(f"{path.parent}: another run of dae3d is writing to it")
            _log.warning("%s: another process is writing to it; waiting", path.parent)
            lock(file, path, shared, wait=True)
        yield


def leftovers(store: Path) -> list[Path]:
    """Incomplete files that killed runs left, recognised by their names."""
    partial = [path for path in store.glob(f"{PARTIAL}*") if _PARTIAL.fullmatch(path.name)]
    # The report is not among them: it is not written under the lock.
    tables = unfinished_files(store, INDEX, CASE_INDEX, REJECTED)
    return sorted([*partial, *tables, *unfinished_files(store / PARTS)])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
