"""Files of JSON lines that are too long to hold as objects: a line is parsed when it is asked for."""

import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from pydantic import BaseModel, ValidationError

from dae3d.errors import Dae3dError, first_problem

Model = TypeVar("Model", bound=BaseModel)

_BLOCK = 1 << 22  # bytes searched at a time


class Lines:
    """The lines of a file, by number, without their line ends.

    Where they end is held, 8 bytes a line, and a line is read when it is asked for. The file stays open, so
    that what takes its place meanwhile does no harm; a copy sent to another process opens it again.

    Raises:
        OSError: where it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._ends = _line_ends(self._file)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> bytes:
        start = int(self._ends[number - 1]) + 1 if number else 0
        return os.pread(self._file.fileno(), int(self._ends[number]) - start, start)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self._path, _state(self._file))


def _opened_again(path: Path, state: tuple[int, ...]) -> Lines:
    lines = Lines(path)
    if _state(lines._file) != state:
        raise Dae3dError(f"{path}: changed while it was in use; run the same command again")
    return lines


def _state(file: FileIO) -> tuple[int, ...]:
    stat = os.fstat(file.fileno())
    return stat.st_size, stat.st_mtime_ns


class Parsed(Sequence[Model], Generic[Model]):
    """The `count` lines of file `path` from line `first`, counted from 0, on, each as a `model`.

    Asking for a line that is not one raises Dae3dError, which names it and says the `remedy`.
    """

    def __init__(
        self, lines: Lines, model: type[Model], first: int, count: int, path: Path, remedy: str
    ) -> None:
        self._lines = lines
        self._model = model
        self._first = first
        self._count = count
        self._path = path
        self._remedy = remedy

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Model: ...
    @overload
    def __getitem__(self, number: slice) -> list[Model]: ...
    def __getitem__(self, number: int | slice) -> Model | list[Model]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(self._count))]
        line = self._first + range(self._count)[number]
        try:
            return self._model.model_validate_json(self._lines[line])
        except ValidationError as error:
            raise Dae3dError(
                f"{self._path}: line {line + 1} is damaged ({first_problem(error)}); {self._remedy}"
            ) from None


def _line_ends(file: FileIO) -> np.ndarray:
    found, start = [np.zeros(0, np.int64)], 0
    while block := file.read(_BLOCK):
        found.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + start)
        start += len(block)
    return np.concatenate(found)
