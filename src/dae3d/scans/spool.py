"""Long sequences kept in a temporary file, so that memory does not grow with them."""

import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from dae3d.files import writing

Item = TypeVar("Item")


class Spool(Generic[Item]):
    """Items in the order in which they were added, in an unnamed temporary file in `folder`.

    Raises:
        Dae3dError: if it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        with writing(folder):
            descriptor, name = tempfile.mkstemp(dir=folder)
            os.unlink(name)
        self._file = os.fdopen(descriptor, "w+b")
        self._folder = folder
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: Item) -> int:
        """Append an item; returns the place by which `at` finds it again."""
        with writing(self._folder):
            place = self._file.seek(0, 2)
            pickle.dump(item, self._file)
        self._count += 1
        return place

    def at(self, place: int) -> Item:
        """The item that was added at that place."""
        self._file.seek(place)
        return pickle.load(self._file)

    def __iter__(self) -> Iterator[Item]:
        return (item for _, item in self.items())

    def items(self) -> Iterator[tuple[int, Item]]:
        """Places and items; nothing may be added meanwhile."""
        place = 0
        for _ in range(self._count):
            self._file.seek(place)
            item = pickle.load(self._file)
            yield place, item
            place = self._file.tell()
