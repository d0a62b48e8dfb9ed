"""Memory shared by the loader processes and the training process, reused for every batch.

Fresh shared memory costs a page fault for every 4 KiB, which takes longer than copying voxels into it.
"""

import mmap
from secrets import token_hex
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_known: "WeakValueDictionary[str, Slots]" = WeakValueDictionary()


class Slots:
    """Slots that loader processes fill, and the process that forked them empties.

    Pickling passes only their name, which the forked processes know; any other process gets None.

    Args:
        workers: number of loader processes.
        each: slots of each process.
        size: of a slot in bytes; its pages are allocated when first written to.
    """

    def __init__(self, workers: int, each: int, size: int) -> None:
        self._each = each
        self._memory = [mmap.mmap(-1, max(1, size)) for _ in range(workers * each)]
        self._filled = mmap.mmap(-1, max(1, workers * each))
        self._name = token_hex(8)
        _known[self._name] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, (self._name,)

    def fill(self, worker: int) -> "Slot | None":
        """Reserve an empty slot of a process; None if there is none."""
        first = worker * self._each
        for place in range(first, first + self._each):
            if not self._filled[place]:
                self._filled[place] = 1
                return Slot(self, place)
        return None


class Slot(NamedTuple):
    """One of `slots`."""

    slots: Slots
    place: int

    def bytes(self, count: int) -> Tensor:
        """Its first bytes (uint8), without a copy."""
        return torch.frombuffer(self.slots._memory[self.place], dtype=torch.uint8, count=count)

    def empty(self) -> None:
        """Mark it as empty."""
        self.slots._filled[self.place] = 0


def _find(name: str) -> Slots | None:
    return _known.get(name)
