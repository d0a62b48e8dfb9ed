"""The manifest: which scans there are, what each one is, and what was left out and why."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dae3d.errors import Dae3dError
from dae3d.files import write_text

Split = Literal["train", "val"]


class Scan(BaseModel):
    """One scan. `shape`, `spacing` (mm) and `orientation` are those of the stored axes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    modality: str
    subject: str
    dataset: str
    split: Split
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    dtype: str
    orientation: str
    digest: str | None = None  # sha256 of the file, known once it has been read whole


class LeftOut(BaseModel):
    """A file that looked like a scan and is not in the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    reason: str


class Manifest(BaseModel):
    """All scans found by `index`, and all files it left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    scans: tuple[Scan, ...]
    left_out: tuple[LeftOut, ...] = ()

    def save(self, path: Path) -> None:
        """Write the manifest as JSON, whole or not at all."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read a manifest.

        Raises:
            Dae3dError: where `path` is missing or is not a manifest.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except FileNotFoundError:
            raise Dae3dError(
                f"{path}: no such manifest; make one with `dae3d index FOLDER --out {path}`"
            ) from None
        except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise Dae3dError(f"{path}: not a dae3d manifest: {str(error).splitlines()[0]}") from None
