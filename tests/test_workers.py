"""Work in processes that die of it."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from dae3d.errors import Dae3dError
from dae3d.store.workers import work_through


def run(item: str, folder: Path) -> str:
    """Does what the item says; "once" kills its process the first time."""
    if item == "segv" or (item == "once" and not (folder / item).exists()):
        (folder / item).touch()
        os.kill(os.getpid(), signal.SIGSEGV if item == "segv" else signal.SIGKILL)
    if item == "exit":
        os._exit(3)
    if item == "full":
        raise Dae3dError("is the disk full?")
    return item.upper()


def died(item: str, reason: str) -> str:
    return f"{item}: {reason}"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_death_is_the_result_of_one_item_alone(tmp_path: Path, workers: int) -> None:
    items = ["a", "segv", "b", "once", "exit", "c"]
    results = list(work_through(items, partial(run, folder=tmp_path), died, workers, False))
    assert sorted(results) == [
        *("A", "B", "C", "ONCE"),
        "exit: its process ended with status 3",
        "segv: its process crashed (SIGSEGV)",
    ]


def test_an_error_that_concerns_all_ends_the_work(tmp_path: Path) -> None:
    with pytest.raises(Dae3dError, match="is the disk full"):
        list(work_through(["a", "full", "b"], partial(run, folder=tmp_path), died, 1, False))
