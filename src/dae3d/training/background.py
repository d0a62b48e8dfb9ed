"""Writing files while training continues: a copy of what is to be written, and a thread that writes it."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO


class Background:
    """A thread that runs one job at a time.

    An exception of a job is raised by the next call. The interpreter does not exit before a job has finished.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Start a job once the previous one has finished."""
        self.wait()
        self._job = self._thread.submit(job)

    def check(self) -> None:
        """Raise the exception of a finished job, without waiting for a running one."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Wait until no job is running."""
        job, self._job = self._job, None
        if job is not None:
            job.result()


class Snapshots(TorchCheckpointIO):
    """Keeps a copy of a checkpoint in CPU memory, for the `Saver` to write; reading is unchanged.

    Lightning passes the state gathered from all ranks, on rank 0 only.
    """

    def __init__(self) -> None:
        self._taken: dict[str, Any] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, *_: Any, **__: Any) -> None:
        """Copy the checkpoint."""
        self._taken = on_cpu(checkpoint)

    def take(self) -> dict[str, Any]:
        """Return the last copy, and release it here."""
        taken, self._taken = self._taken, {}
        return taken


def on_cpu(state: Any) -> Any:
    """A copy in CPU memory of tensors in dicts, lists and tuples, and of everything else in them."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        # A copy keeps the type of dict, and the module versions that a state dict carries.
        copied = copy.copy(state)
        copied.update((key, on_cpu(value)) for key, value in state.items())
        return copied
    if type(state) in (list, tuple):
        return type(state)(on_cpu(value) for value in state)
    return copy.deepcopy(state)
