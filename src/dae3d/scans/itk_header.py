"""The parts of NRRD and MetaImage headers that ITK does not pass on.

ITK ignores units of length, gives an axis without a size 1 mm, and does not report which files it reads
voxels from.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from dae3d.errors import ScanError

_LINE = 1 << 16  # bytes; a longer one is not text
_MOST = 100_000  # lines, or files of one scan


class Placing(NamedTuple):
    """How to interpret ITK's world coordinates (LPS, in the header's own unit).

    Multiplied by `factors` they are LPS in mm; `remark` is a note for the user, or "".
    """

    factors: tuple[float, float, float]
    remark: str


class ItkHeader(ABC):
    """The text of a header at `path`: its `fields` by name, and the lines after the last field as `more`.

    `end` is the byte where the text ends, and the voxels begin if they are in the same file.
    """

    image_io: ClassVar[str]  # ITK's name for the reader of the format

    def __init__(self, path: Path, fields: dict[str, str], more: list[str], end: int) -> None:
        self.path = path
        self.fields = fields
        self.more = more
        self.end = end

    @abstractmethod
    def _names(self) -> Iterable[str]:
        """The names of the voxel files, as in the header; empty if the voxels follow it."""

    @abstractmethod
    def placing(self, affine: np.ndarray) -> Placing:
        """How to interpret the `affine` (4, 4) from voxels to LPS that ITK derives from the header.

        Raises:
            ScanError: if the header gives a spatial axis no finite size.
        """

    def data_files(self) -> list[Path]:
        """The voxel files, whether they exist or not; empty if the voxels follow the header.

        Raises:
            ScanError: if the header does not define them.
        """
        return [self.path.parent / name for name in self._names()]

    def check(self, whole: bool) -> None:
        """Check what ITK reports wrongly or not at all; if the file is to be read `whole`, its voxels too.

        Raises:
            ScanError: if a voxel file is missing, or something is damaged or cut short.
        """
        missing = [file.name for file in self.data_files() if not file.is_file()]
        if missing:
            raise ScanError(f"unreadable: its data file {missing[0]} is missing")


def numbered(pattern: str, numbers: list[float]) -> Iterator[str]:
    """The file names of a pattern such as `slice%03d.raw`, from the first number to the last by a step.

    Raises:
        ScanError: if they make no valid file names.
    """
    first, last, step = map(int, numbers)
    if step == 0 or (last - first) / step >= _MOST:
        raise ScanError(f"unreadable: data files {first} to {last} by {step}")
    for number in range(first, last + (1 if step > 0 else -1), step):
        try:
            yield pattern % number
        except (TypeError, ValueError):
            raise ScanError(f"unreadable: data files are numbered by {pattern[:40]!r}") from None


def floats(words: Iterable[str]) -> list[float]:
    """Words as numbers.

    Raises:
        ScanError: if one is not a number.
    """
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise ScanError(f"unreadable: {error}") from None


def text_lines(path: Path) -> Iterator[tuple[str, int]]:
    """The lines of a file as far as it is text, without line ends, and the offset of the end of each.

    Bytes that are not UTF-8 become surrogate escapes, as in file names.
    """
    end = 0
    with path.open("rb") as file:
        for line in islice(iter(lambda: file.readline(_LINE), b""), _MOST):
            end += len(line)
            if len(line) == _LINE:
                return
            yield line.decode(errors="surrogateescape").rstrip("\r\n"), end
