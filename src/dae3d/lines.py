"""Files of lines, usually JSON, which may not fit into memory: read by number, or appended by key."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np
from pydantic import BaseModel, ValidationError

from dae3d.errors import Dae3dError, first_problem
from dae3d.files import make_folder, writing

Model = TypeVar("Model", bound=BaseModel)

_BLOCK = 1 << 22  # bytes searched at a time


class Lines:
    """The lines of a file, by number, without their line ends.

    Only their offsets are held in memory, 8 bytes a line. The file stays open, so replacing it does no harm;
    a pickled copy opens it again.

    Raises:
        OSError: if the file cannot be opened.
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
    """The `count` lines of file `path` from line `first` (counted from 0) on, each parsed as a `model`.

    A line that does not parse raises Dae3dError with its number and the `remedy`.
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


class KeyedLines(ABC):
    """A file of lines that are appended, each found again by its key; a context that closes it.

    The offset of each key's last line is held in memory. Lines added are found once the file is opened again.
    Threads may share it.

    Raises:
        Dae3dError: if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._places: dict[Any, int] = {}
        make_folder(path.parent)
        with writing(path):
            self._file = path.open("a+b")

    @abstractmethod
    def key_of(self, line: bytes) -> Any:
        """The key of a line, or None if the line has none or is damaged."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read_places(self) -> None:
        """Find the lines in the file, and cut off a last one that a crash left incomplete."""
        place = 0
        with writing(self.path):
            self._file.seek(0)
            for line in self._file:
                if not line.endswith(b"\n"):
                    self._file.truncate(place)
                    break
                key = self.key_of(line)
                if key is not None:
                    self._places[key] = place
                place += len(line)

    def line_of(self, key: Any) -> bytes | None:
        """The line with that key, or None."""
        if key not in self._places:
            return None
        with self._lock:
            self._file.seek(self._places[key])
            line = self._file.readline()
        # Another process may have changed the file.
        return line if self.key_of(line) == key else None

    def append(self, line: bytes) -> None:
        """Write a line, given without its line end."""
        with self._lock, writing(self.path):
            self._file.write(line + b"\n")
            self._file.flush()
