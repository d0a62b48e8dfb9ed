"""Files of JSON lines that are too long to hold as objects: a line is parsed when it is asked for."""

from collections.abc import Sequence
from mmap import mmap
from typing import Generic, TypeVar, overload

import numpy as np
from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)

_BLOCK = 1 << 24  # bytes searched at a time


class Lines:
    """The lines of a text, by number, without their line ends."""

    def __init__(self, text: bytes | mmap) -> None:
        self._text = text
        self._ends = _line_ends(text)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> bytes:
        start = self._ends[number - 1] + 1 if number else 0
        return self._text[start : self._ends[number]]


class Parsed(Sequence[Model], Generic[Model]):
    """The `count` lines from line `first` on, each as a `model`."""

    def __init__(self, lines: Lines, model: type[Model], first: int, count: int) -> None:
        self._lines = lines
        self._model = model
        self._first = first
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Model: ...
    @overload
    def __getitem__(self, number: slice) -> list[Model]: ...
    def __getitem__(self, number: int | slice) -> Model | list[Model]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(self._count))]
        return self._model.model_validate_json(self._lines[self._first + range(self._count)[number]])


def _line_ends(text: bytes | mmap) -> np.ndarray:
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(text), _BLOCK):
        block = np.frombuffer(text[start : start + _BLOCK], np.uint8)
        found.append(np.flatnonzero(block == ord("\n")) + start)
    return np.concatenate(found)
