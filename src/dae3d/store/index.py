"""The store's index: the metadata of all its scans in one file, so that opening a store opens no scan.

`index.jsonl` holds one JSON object a line: first what the file is, then one line a scan. It is kept as the
bytes it is read as, 1.5 KB a scan, and a line is parsed when its scan is asked for: as objects, the scans of
a large store would fill gigabytes in every loader process.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from dae3d.errors import Dae3dError
from dae3d.files import write_text
from dae3d.store.scan import Preparation, StoredScan

INDEX = "index.jsonl"


class Header(BaseModel):
    """The first line of the index."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    preparation: Preparation
    scans: int


class Index(Sequence[StoredScan]):
    """The scans of an index, in its order."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
        self.header = Header.model_validate_json(text[: self._ends[0]] if len(self._ends) else text)
        if len(self) != self.header.scans:
            raise ValueError(f"{len(self)} scans where there should be {self.header.scans}")

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> StoredScan: ...
    @overload
    def __getitem__(self, number: slice) -> list[StoredScan]: ...
    def __getitem__(self, number: int | slice) -> StoredScan | list[StoredScan]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        place = range(len(self))[number]
        line = self._text[self._ends[place] + 1 : self._ends[place + 1]]
        return StoredScan.model_validate_json(line)


def read_index(store: Path) -> Index:
    """Read a store's index.

    Raises:
        Dae3dError: where there is none, or it is not one.
    """
    try:
        return Index((store / INDEX).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise Dae3dError(
            f"{store}: no store here; make one with `dae3d prepare MANIFEST --out {store}`"
        ) from None
    except (ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise Dae3dError(f"{store / INDEX}: damaged ({reason}); run `dae3d prepare` again") from None


def index_line(scan: StoredScan) -> tuple[str, str]:
    """What `write_index` takes of a scan: its place in the order, and its line."""
    return str(scan.source.path), scan.model_dump_json()


def write_index(store: Path, preparation: Preparation, lines: Iterable[tuple[str, str]]) -> None:
    """Write a store's index, ordered by the path of the source, whole or not at all."""
    ordered = sorted(lines)
    header = Header(preparation=preparation, scans=len(ordered)).model_dump_json()
    write_text(store / INDEX, "\n".join([header, *(line for _, line in ordered)]) + "\n")
