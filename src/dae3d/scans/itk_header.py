"""What the text of a NRRD or MetaImage header says that ITK does not pass on.

ITK leaves units of length unread, gives an axis without a size 1 mm, and does not tell which files it reads
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
    """How ITK's world (LPS, in the header's own unit) is to be understood.

    Its three coordinates times `factors` are LPS in mm; `remark` is what a user should know of it, or "".
    """

    factors: tuple[float, float, float]
    remark: str


class ItkHeader(ABC):
    """The text of a header at `path`: its `fields` by name, and the lines that follow the last one as `more`.

    `end` is where the text ends, in bytes: where the voxels begin, if they are in the same file.
    """

    image_io: ClassVar[str]  # ITK's name for what reads the format

    def __init__(self, path: Path, fields: dict[str, str], more: list[str], end: int) -> None:
        self.path = path
        self.fields = fields
        self.more = more
        self.end = end

    @abstractmethod
    def _names(self) -> Iterable[str]:
        """The names of the files with the voxels, as the header gives them; none where they follow it."""

    @abstractmethod
    def placing(self, affine: np.ndarray) -> Placing:
        """How to understand the `affine` (4, 4) from voxels to LPS that ITK makes of the header.

        Raises:
            ScanError: where the header gives an axis of space no finite size.
        """

    def data_files(self) -> list[Path]:
        """The files with the voxels, whether they are there or not; none where they follow the header.

        Raises:
            ScanError: where the header does not tell which they are.
        """
        return [self.path.parent / name for name in self._names()]

    def check(self, whole: bool) -> None:
        """Check what ITK says wrongly or not at all of a file, and of its voxels if it is to be read `whole`.

        Raises:
            ScanError: where a file with voxels is missing, or something is damaged or cut short.
        """
        missing = [file.name for file in self.data_files() if not file.is_file()]
        if missing:
            raise ScanError(f"unreadable: its data file {missing[0]} is missing")


def numbered(pattern: str, numbers: list[float]) -> Iterator[str]:
    """The file names of a pattern such as `slice%03d.raw`, from the first number to the last by a step.

    Raises:
        ScanError: where these make no files.
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
        ScanError: where one is none.
    """
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise ScanError(f"unreadable: {error}") from None


def text_lines(path: Path) -> Iterator[tuple[str, int]]:
    """The lines of a file as long as it is text, without their ends, and the bytes up to each one's end.

    Bytes that are not in UTF-8 are kept as Python keeps them in file names.
    """
    end = 0
    with path.open("rb") as file:
        for line in islice(iter(lambda: file.readline(_LINE), b""), _MOST):
            end += len(line)
            if len(line) == _LINE:
                return
            yield line.decode(errors="surrogateescape").rstrip("\r\n"), end
