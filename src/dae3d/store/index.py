"""The store's index: the metadata of all scans in one file, so that opening a store opens no scan.

`index.jsonl` has one JSON object per line: a header, then one line per scan (1.5 KB). A line is parsed when
its scan is accessed: as objects, the scans of a large store would take gigabytes in every loader process.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dae3d.errors import Dae3dError, first_problem
from dae3d.files import whole_file
from dae3d.lines import Lines, Model, Parsed
from dae3d.scans.manifest import Modality, Split
from dae3d.store.scan import Preparation, StoredScan
from dae3d.store.shards import Shard, shard_list, unfinished

INDEX = "index.jsonl"
_REMEDY = "run `dae3d prepare` again"
_FILE = re.compile(rb'"file":"([^"/]+)"')


class IndexHeader(BaseModel):
    """The first line of the index, or of the part of one shard.

    `manifest` is, in a part, the sha256 of its manifest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    preparation: Preparation
    scans: int
    manifest: str | None = None


class _Version(BaseModel):
    version: int


class _AnyHeader(_Version):
    """The common part of the headers of all versions of dae3d."""

    preparation: _Version


class _Origin(BaseModel):
    path: str
    modality: Modality
    subject: str | None = None
    dataset: str
    split: Split
    digest: str | None = None


class Outline(BaseModel):
    """A scan's labels, grid and digests: parsed in a third of the time of the full line."""

    source: _Origin
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    voxel_digest: str | None = None


class OtherVersion(Dae3dError):
    """The store was made by another version of dae3d."""


class Index(Parsed[StoredScan]):
    """The scans of an index, in its order; `outlines` has the `Outline` of each."""

    def __init__(self, path: Path) -> None:
        with _opened(path):
            lines = Lines(path)
        self.header = _header(lines[0] if len(lines) else b"", path)
        super().__init__(lines, StoredScan, 1, len(lines) - 1, path, _REMEDY)
        if len(self) != self.header.scans:
            raise ValueError(f"{len(self)} scans, expected {self.header.scans}")
        self.outlines = Parsed(lines, Outline, 1, len(self), path, _REMEDY)


def read_index(store: Path, name: str = INDEX) -> Index:
    """Read a store's index.

    Raises:
        Dae3dError: if it does not exist, or is damaged.
    """
    try:
        return Index(store / name)
    except (FileNotFoundError, NotADirectoryError):
        raise Dae3dError(_why_none(store)) from None
    except ValueError as error:
        raise Dae3dError(_damaged(store / name, error)) from None


def read_index_header(path: Path) -> IndexHeader:
    """The first line of an index.

    Raises:
        FileNotFoundError: if it does not exist.
        OtherVersion: if another version of dae3d made it.
        Dae3dError: if it is damaged.
    """
    with _opened(path) as file:
        return _header(file.readline(), path)


def iterate(path: Path) -> Iterator[StoredScan]:
    """The scans of an index, one at a time.

    Raises:
        Dae3dError: if their number is not that of the header, or a line is damaged.
    """
    with _opened(path) as file:
        header = _header(file.readline(), path)
        try:
            for _ in range(header.scans):
                yield StoredScan.model_validate_json(file.readline())
            if file.readline():
                raise ValueError(f"more than the {header.scans} scans of the header")
        except ValueError as error:  # a ValidationError is one
            raise Dae3dError(_damaged(path, error)) from None


def readable(path: Path, model: type[Model]) -> Iterator[Model | str]:
    """The scans on the valid lines of an index, as a `model` of all or some fields of `StoredScan`.

    For damaged lines the name of the stored file, if that can be read.
    """
    with _opened(path) as file:
        file.readline()
        for line in file:
            try:
                yield model.model_validate_json(line)
            except ValidationError:
                if name := _FILE.search(line):
                    yield name[1].decode(errors="replace")


def write_index(path: Path, header: IndexHeader, scans: Iterable[StoredScan | str]) -> None:
    """Write an index of `header.scans` scans, given as objects or as lines, atomically."""
    with whole_file(path) as temporary, temporary.open("w") as file:
        file.write(header.model_dump_json() + "\n")
        for scan in scans:
            file.write((scan if isinstance(scan, str) else scan.model_dump_json()) + "\n")


def refuse_unfinished(store: Path) -> None:
    """Raise Dae3dError if a job array on the store is not finished."""
    missing = unfinished(store)
    if missing:
        raise Dae3dError(_unfinished_message(store, missing))


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise Dae3dError(f"{path}: cannot be read: {error.strerror}") from None


def _header(line: bytes, path: Path) -> IndexHeader:
    try:
        return IndexHeader.model_validate_json(line)
    except ValidationError as error:
        if _of_another_version(line):
            raise OtherVersion(
                f"{path.parent}: made by another version of dae3d; prepare it again with "
                f"`dae3d prepare MANIFEST --out {path.parent} --again`"
            ) from None
        raise Dae3dError(_damaged(path, error)) from None


def _of_another_version(line: bytes) -> bool:
    try:
        header = _AnyHeader.model_validate_json(line)
    except ValidationError:
        return False
    ours = (IndexHeader.model_fields["version"].default, Preparation.model_fields["version"].default)
    return (header.version, header.preparation.version) != ours


def _unfinished_message(store: Path, missing: list[Shard]) -> str:
    return f"{store}: not complete yet: waiting for {shard_list(missing)} (`dae3d prepare --shard`)"


def _why_none(store: Path) -> str:
    missing = unfinished(store)
    if missing:
        return _unfinished_message(store, missing)
    return f"{store}: not a store; make one with `dae3d prepare MANIFEST --out {store}`"


def _damaged(path: Path, error: ValueError) -> str:
    return f"{path}: damaged ({first_problem(error)}); {_REMEDY}"
