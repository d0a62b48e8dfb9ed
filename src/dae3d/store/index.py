"""The store's index: the metadata of all its scans in one file, so that opening a store opens no scan.

`index.jsonl` holds one JSON object a line: first what the file is, then one line a scan. It is kept as the
bytes it is read as, 1.5 KB a scan, and a line is parsed when its scan is asked for: as objects, the scans of
a large store would fill gigabytes in every loader process.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dae3d.errors import Dae3dError
from dae3d.files import whole_file
from dae3d.lines import Lines, Parsed
from dae3d.store.scan import Preparation, StoredScan
from dae3d.store.shards import in_words, unfinished

INDEX = "index.jsonl"


class Header(BaseModel):
    """The first line of the index, or of a shard's part of it.

    `manifest` is, in a part, the sha256 of the manifest it was made from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    preparation: Preparation
    scans: int
    manifest: str | None = None


class Index(Parsed[StoredScan]):
    """The scans of an index, in its order."""

    def __init__(self, text: bytes) -> None:
        lines = Lines(text)
        self.header = Header.model_validate_json(lines[0] if len(lines) else text)
        super().__init__(lines, StoredScan, 1, len(lines) - 1)
        if len(self) != self.header.scans:
            raise ValueError(f"{len(self)} scans where there should be {self.header.scans}")


def read_index(store: Path, name: str = INDEX) -> Index:
    """Read a store's index.

    Raises:
        Dae3dError: where there is none, or it is not one.
    """
    try:
        return Index((store / name).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise Dae3dError(_why_none(store)) from None
    except (ValidationError, ValueError) as error:
        raise Dae3dError(_damaged(store / name, error)) from None


def read_header(path: Path) -> Header:
    """The first line of an index.

    Raises:
        FileNotFoundError: where there is none.
        Dae3dError: where it is not one.
    """
    with path.open("rb") as file:
        try:
            return Header.model_validate_json(file.readline())
        except ValidationError as error:
            raise Dae3dError(_damaged(path, error)) from None


def iterate(path: Path) -> Iterator[StoredScan]:
    """The scans of an index, one at a time.

    Raises:
        Dae3dError: where they are not as many as it says, or a line is not one.
    """
    with path.open("rb") as file:
        try:
            header = Header.model_validate_json(file.readline())
            for _ in range(header.scans):
                yield StoredScan.model_validate_json(file.readline())
            if file.readline():
                raise ValueError(f"more than the {header.scans} scans that there should be")
        except ValueError as error:  # pydantic's own is one
            raise Dae3dError(_damaged(path, error)) from None


def write_index(path: Path, header: Header, scans: Iterable[StoredScan | str]) -> None:
    """Write an index of `header.scans` scans, or their lines, as they come, whole or not at all."""
    with whole_file(path) as temporary, temporary.open("w") as file:
        file.write(header.model_dump_json() + "\n")
        for scan in scans:
            file.write((scan if isinstance(scan, str) else scan.model_dump_json()) + "\n")


def _why_none(store: Path) -> str:
    missing = unfinished(store)
    if missing:
        return f"{store}: not whole yet: waits for {in_words(missing)} (`dae3d prepare --shard`)"
    return f"{store}: no store here; make one with `dae3d prepare MANIFEST --out {store}`"


def _damaged(path: Path, error: ValueError) -> str:
    return f"{path}: damaged ({str(error).splitlines()[0]}); run `dae3d prepare` again"
