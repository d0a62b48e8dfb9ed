"""Work in processes that die of it."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dae3d.errors import Dae3dError
from dae3d.processes import Worker
from dae3d.store.workers import work_through


class Odd(Exception):
    """An error that pickle takes apart and cannot put together."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def run(item: str, folder: Path) -> str:
    """Does what the item says; "once" kills its process the first time."""
    if item == "segv" or (item == "once" and not (folder / item).exists()):
        (folder / item).touch()
        os.kill(os.getpid(), signal.SIGSEGV if item == "segv" else signal.SIGKILL)
    if item == "exit":
        os._exit(3)
    if item == "full":
        raise Dae3dError("is the disk full?")
    if item == "odd":
        raise Odd(1, 2)
    while item == "hang":
        time.sleep(0.01)
    return item.upper()


def died(item: str, reason: str) -> str:
    return f"{item}: {reason}"


def test_what_takes_for_ever_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dae3d.store.workers._PATIENCE", 0.3)
    assert list(work_through(["hang"], partial(run, folder=tmp_path), died, 1, False)) == [
        "hang: its process was killed because it took too long"
    ]


def test_errors_that_cannot_be_sent_are_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Odd: 1 and 2"):
        list(work_through(["odd"], partial(run, folder=tmp_path), died, 1, False))


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


def test_an_interrupt_while_an_item_is_handed_over_is_not_waited_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Worker.begin

    def interrupted(worker: Worker, function: Callable[..., Any], item: str) -> None:
        if item == "b":
            raise KeyboardInterrupt
        begin(worker, function, item)

    monkeypatch.setattr(Worker, "begin", interrupted)
    done = work_through(["a", "b", "c"], partial(run, folder=tmp_path), died, 2, False)
    assert next(done) == "A"
    with pytest.raises(KeyboardInterrupt):
        list(done)
