"""The manifest: the scans found, what each one is, and what was left out and why.

A file of JSON lines: a header, then a line for each scan, then one for each file that was left out. Lines are
parsed on demand, so a manifest may have any length.
"""

import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, field_serializer

from dae3d.errors import Dae3dError
from dae3d.files import whole_file
from dae3d.lines import Lines, Parsed

_INDEX = "`dae3d index FOLDER --out manifest.jsonl`"

Split = Literal["train", "val"]


def _usable(label: str) -> str:
    # Pictures of a run are in folders named after its modalities.
    if not label or label.startswith(".") or not label.isprintable() or any(c in label for c in "/\\"):
        raise ValueError(f"{label!r} is not a modality label: one word such as ct, t1, flair")
    return label


# As in a manifest or a store's index; `modality.Label` is for what a user writes.
Modality = Annotated[str, AfterValidator(_usable)]


class Scan(BaseModel):
    """One scan. `shape`, `spacing` (mm) and `orientation` are those of the stored axes.

    `path` is its file, or the folder that holds the `files` of a DICOM series. `volume` is the index of the
    volume in a 4-D file, from 0. `subject` and, for DICOM, `series` and `study` are salted hashes if they
    stand for identifiers in a header.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    modality: Modality
    subject: str
    dataset: str
    split: Split
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    dtype: str
    orientation: str
    volume: int | None = None
    series: str | None = None
    study: str | None = None
    files: tuple[str, ...] = ()
    digest: str | None = None  # sha256 of the content, known once all of it has been read

    @property
    def name(self) -> str:
        """A unique name: the path, and which part of it the scan is."""
        part = f"#{self.volume}" if self.volume is not None else f"#{self.series}" if self.series else ""
        return f"{self.path}{part}"


class LeftOut(BaseModel):
    """A file that was left out, or the first of several `files` of a DICOM series or of one kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    reason: str
    files: int = 1

    @field_serializer("path", when_used="json")
    def _written(self, path: Path) -> str:
        """The path for JSON, with bytes that are not UTF-8 as `\\xff`."""
        return os.fsencode(path).decode(errors="backslashreplace")


class ManifestHeader(BaseModel):
    """The first line of a manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: Literal[2] = 2
    scans: int


class Manifest:
    """All scans found by `index`, and all files it left out."""

    def __init__(self, scans: Sequence[Scan], left_out: Sequence[LeftOut] = ()) -> None:
        self.scans = scans
        self.left_out = left_out

    def save(self, path: Path) -> None:
        """Write the manifest atomically."""
        write_manifest(path, len(self.scans), self.scans, self.left_out)

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Open a manifest.

        Raises:
            Dae3dError: if `path` is missing or is not a manifest.
        """
        try:
            lines = Lines(path)
            header = ManifestHeader.model_validate_json(lines[0] if len(lines) else b"")
        except FileNotFoundError:
            raise Dae3dError(
                f"{path}: no such manifest; make one with `dae3d index FOLDER --out {path}`"
            ) from None
        except OSError as error:
            raise Dae3dError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError:
            advice = f"`dae3d index {path} --out manifest.jsonl`" if path.suffix == ".json" else _INDEX
            raise Dae3dError(
                f"{path}: not a manifest written by this version; make one with {advice}"
            ) from None
        remedy = f"make the manifest again with `dae3d index FOLDER --out {path}`"
        if len(lines) <= header.scans:
            raise Dae3dError(f"{path}: cut short: {len(lines) - 1} of {header.scans} scans are there")
        return cls(
            Parsed(lines, Scan, 1, header.scans, path, remedy),
            Parsed(lines, LeftOut, 1 + header.scans, len(lines) - 1 - header.scans, path, remedy),
        )


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest, of this or an earlier version."""
    with path.open("rb") as file:
        start = file.read(64)
    return start.startswith((b'{"manifest":', b'{\n "version": 1,\n "scans": ['))


def write_manifest(path: Path, count: int, scans: Iterable[Scan], left_out: Iterable[LeftOut]) -> None:
    """Write a manifest of `count` scans atomically, without holding them in memory."""
    with whole_file(path) as temporary, temporary.open("w") as file:
        file.write(ManifestHeader(scans=count).model_dump_json() + "\n")
        for entry in chain(scans, left_out):
            file.write(entry.model_dump_json(exclude_defaults=True) + "\n")
