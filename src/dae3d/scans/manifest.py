"""The manifest: which scans there are, what each one is, and what was left out and why.

A file of JSON lines: what it is, then a line for each scan, then one for each file that was left out. A line
is read when it is asked for, so that a manifest of any length can be used.
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
    # Pictures of a run lie in folders that are called like its modalities.
    if not label or label.startswith(".") or not label.isprintable() or any(c in label for c in "/\\"):
        raise ValueError(f"{label!r} is not a modality label: one word such as ct, t1, flair")
    return label


# As a manifest or a store's index has it; `modality.Label` is what a user may write.
Modality = Annotated[str, AfterValidator(_usable)]


class Scan(BaseModel):
    """One scan. `shape`, `spacing` (mm) and `orientation` are those of the stored axes.

    `path` is its file; of a DICOM series, the folder in or below which its `files` lie. `volume` says which
    volume of a 4-D file it is, from 0. `subject` and, for DICOM, `series` and `study` are salted hashes where
    they stand for identifiers in a header.
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
    digest: str | None = None  # sha256 of the content, known once it has been read whole

    @property
    def name(self) -> str:
        """The path, and which part of it the scan is; no other scan has this name."""
        part = f"#{self.volume}" if self.volume is not None else f"#{self.series}" if self.series else ""
        return f"{self.path}{part}"


class LeftOut(BaseModel):
    """A file that is not in the manifest, or `files` of a DICOM series or of one kind, the first named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    reason: str
    files: int = 1

    @field_serializer("path", when_used="json")
    def _written(self, path: Path) -> str:
        """Bytes that are not in UTF-8, which JSON cannot hold, as `\\xff`."""
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
        """Write the manifest, whole or not at all."""
        write_manifest(path, len(self.scans), self.scans, self.left_out)

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Open a manifest.

        Raises:
            Dae3dError: where `path` is missing or is not a manifest.
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
    """Write a manifest of `count` scans as they come, whole or not at all."""
    with whole_file(path) as temporary, temporary.open("w") as file:
        file.write(ManifestHeader(scans=count).model_dump_json() + "\n")
        for entry in chain(scans, left_out):
            file.write(entry.model_dump_json(exclude_defaults=True) + "\n")
