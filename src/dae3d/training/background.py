"""Saving while training goes on: a copy of what is to be written, and one thread that writes."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO


class Background:
    """A thread that does one job at a time.

    What a job raises is raised by whatever is called next. The interpreter does not end before a job has.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Start a job once the one before is done."""
        self.wait()
        self._job = self._thread.submit(job)

    def check(self) -> None:
        """Raise what a job that is done has raised, without waiting for one that is not."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Wait until there is nothing to do."""
        job, self._job = self._job, None
        if job is not None:
            job.result()


class Snapshots(TorchCheckpointIO):
    """Keeps a copy of a checkpoint in the CPU's memory, for the `Saver` to write; reads them as ever.

    Lightning hands over what all ranks have gathered, on the first one alone.
    """

    def __init__(self) -> None:
        self._taken: dict[str, Any] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, *_: Any, **__: Any) -> None:
        """Copy it."""
        self._taken = on_cpu(checkpoint)

    def take(self) -> dict[str, Any]:
        """The last one, which is then no longer kept here."""
        taken, self._taken = self._taken, {}
        return taken


def on_cpu(state: Any) -> Any:
    """A copy, in the CPU's memory, of tensors in dicts, lists and tuples, and of what else is in there."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        # A copy keeps the kind of dict, and what a state dict says of its modules' versions.
        copied = copy.copy(state)
        copied.update((key, on_cpu(value)) for key, value in state.items())
        return copied
    if type(state) in (list, tuple):
        return type(state)(on_cpu(value) for value in state)
    return copy.deepcopy(state)
