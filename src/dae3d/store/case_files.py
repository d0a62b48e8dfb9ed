"""One labelled case in the store: its folder of Blosc2 files, and how they are written.

cases/hippocampus-001-5f0c.../   0.b2nd, 1.b2nd, ...  the channels, in acquired units
                                 label.b2nd           class indices
                                 positions.npy        sampled positions of voxels of each class
                                 case.json            metadata; a folder without it is not a case
"""

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from dae3d.errors import Dae3dError, ScanError, as_scan_error, first_problem
from dae3d.files import write_text
from dae3d.scans.readers import Volume, files_read, read_volume
from dae3d.scans.task import TaskCase
from dae3d.store.conform_case import ConformedCase, conform_case, cut_away, labels_at, upright_label
from dae3d.store.positions import draw_positions
from dae3d.store.recipe import CaseGeometry, CaseRecipe
from dae3d.store.scan import PARTIAL, AffineRow, PlainName, write_array
from dae3d.store.source import Stamp, digest
from dae3d.store.statistics import Box, Statistics

# The folder of cases in a store, and the store's list of them.
CASES, CASE_INDEX = "cases", "cases.jsonl"
LABEL, POSITIONS, CASE_JSON = "label.b2nd", "positions.npy", "case.json"


class SourceFile(BaseModel):
    """A source file of a case, as it was when the case was prepared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    stamp: Stamp
    digest: str


class StoredChannel(BaseModel):
    """One channel: intensity = voxel * `slope` + `intercept`; `bytes` is the size of its file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    dtype: str
    slope: float
    intercept: float
    statistics: Statistics


class StoredCase(BaseModel):
    """A labelled case in the store.

    `shape` and `affine` (voxel to RAS+ mm) are those of the stored arrays, in RAS orientation. `voxels`
    counts the voxels of each class, `drawn` those whose positions are stored, and `cut_away` the labelled
    voxels of the source outside the foreground box. `folder` is in the store's folder `cases`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    subject: str
    fold: int | None
    folder: PlainName
    sources: tuple[SourceFile, ...]
    geometry: CaseGeometry
    shape: tuple[int, int, int]
    affine: tuple[AffineRow, AffineRow, AffineRow, AffineRow]
    foreground: Box
    channels: tuple[StoredChannel, ...]
    label_bytes: int
    voxels: tuple[int, ...]
    drawn: tuple[int, ...]
    cut_away: int

    @property
    def image_digests(self) -> list[str]:
        """Sha256 of the content of each channel's source, as in `contents_of`."""
        return [source.digest for source in self.sources[:-1]]


@dataclass(frozen=True)
class CaseOutcome:
    """The result for one case: stored, or not usable for a `reason`."""

    case: TaskCase
    stored: StoredCase | None = None
    reason: str = ""


def sources_of(case: TaskCase) -> list[Path]:
    """The source files of a case: its channels, then its label."""
    return [*case.images, *filter(None, [case.label])]


def folder_name(case: TaskCase, geometry: CaseGeometry) -> str:
    """A readable folder name, unique for a case's name, files and geometry."""
    paths = [os.path.abspath(path) for path in sources_of(case)]
    # The sampled positions depend on the name.
    key = "\n".join([geometry.model_dump_json(), case.name, *paths])
    readable = re.sub(r"[^a-z0-9]+", "-", case.name.lower()).strip("-")[:80]
    return f"{readable}-{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}"


def store_case(case: TaskCase, recipe: CaseRecipe, store: Path) -> CaseOutcome:
    """Prepare one case, unless the store has it.

    Raises:
        Dae3dError: if the store cannot be written to, or the metadata of a stored case names another folder.
    """
    try:
        sources = tuple(_source(path) for path in sources_of(case))
        stored = _complete(case, recipe, store)
        if stored is not None and _digests(stored.sources) == _digests(sources):
            stored = stored.model_copy(update={"sources": sources})
            write_text(store / CASES / stored.folder / CASE_JSON, stored.model_dump_json(indent=1))
        else:
            with as_scan_error():
                stored = _convert(case, recipe, store, sources)
    except ScanError as error:
        return CaseOutcome(case, reason=str(error))
    return CaseOutcome(case, stored)


def unchanged(case: TaskCase, recipe: CaseRecipe, store: Path) -> StoredCase | None:
    """The stored case; None if it is not in the store, or a source file has changed.

    Raises:
        Dae3dError: if the metadata of the stored case names another folder.
    """
    stored = _complete(case, recipe, store)
    try:
        if stored is None or any(Stamp.of(files_read(s.path)) != s.stamp for s in stored.sources):
            return None
    except (OSError, ScanError):
        return None
    return stored


def _complete(case: TaskCase, recipe: CaseRecipe, store: Path) -> StoredCase | None:
    """The stored case with its present name, subject and fold, if its files are complete."""
    folder = store / CASES / folder_name(case, recipe.geometry)
    try:
        stored = StoredCase.model_validate_json((folder / CASE_JSON).read_bytes())
    except OSError:
        return None
    except ValidationError as error:
        if error.errors()[0]["loc"] == ("folder",):
            raise Dae3dError(f"{folder / CASE_JSON}: {first_problem(error)}") from None
        return None
    if stored.folder != folder.name:
        raise Dae3dError(
            f"{folder / CASE_JSON}: folder: must be the name of the folder it is in, not "
            f"{stored.folder!r}; if it is a copy of another case, delete {folder}"
        )
    try:
        complete = all(
            (folder / f"{number}.b2nd").stat().st_size == channel.bytes
            for number, channel in enumerate(stored.channels)
        )
        complete &= (folder / LABEL).stat().st_size == stored.label_bytes
        complete &= (folder / POSITIONS).is_file()
    except OSError:
        return None
    labels = {"name": case.name, "subject": case.subject, "fold": case.fold}
    return stored.model_copy(update=labels) if complete else None


def _digests(sources: Sequence[SourceFile]) -> list[str]:
    return [source.digest for source in sources]


def read_case(images: Sequence[Path], recipe: CaseRecipe) -> ConformedCase:
    """Read a case's channels and convert them to the network's grid.

    Raises:
        ScanError: naming the files, if one cannot be read or they do not fit together.
    """
    volumes = [_read(path) for path in images]
    try:
        with as_scan_error():
            return conform_case(volumes, recipe)
    except ScanError as error:
        raise ScanError(f"{', '.join(map(str, images))}: {error}") from None


def _convert(case: TaskCase, recipe: CaseRecipe, store: Path, sources: tuple[SourceFile, ...]) -> StoredCase:
    if case.label is None:
        raise ScanError("has no label")
    conformed = read_case(case.images, recipe)
    label_volume = _read(case.label)
    try:
        upright = upright_label(label_volume, conformed, recipe)
    except ScanError as error:
        raise ScanError(f"{case.label}: {error}") from None
    label = labels_at(conformed.grid, upright)
    voxels, drawn = draw_positions(label, conformed.foreground, len(recipe.labels), case.name)
    folder = folder_name(case, recipe.geometry)
    # A process that died on this case may have left such a folder.
    temporary = store / PARTIAL / f"{token_hex(4)}-{folder}"
    final = store / CASES / folder
    try:
        temporary.mkdir()
        channels = [
            _write_channel(temporary / f"{number}.b2nd", volume, statistics)
            for number, (volume, statistics) in enumerate(
                zip(conformed.volumes, conformed.statistics, strict=True)
            )
        ]
        write_array(temporary / LABEL, label)
        np.save(temporary / POSITIONS, np.concatenate(drawn))
        stored = StoredCase(
            name=case.name,
            subject=case.subject,
            fold=case.fold,
            folder=folder,
            sources=sources,
            geometry=recipe.geometry,
            shape=conformed.grid.shape,
            affine=conformed.grid.affine.tolist(),
            foreground=conformed.foreground,
            channels=tuple(channels),
            label_bytes=(temporary / LABEL).stat().st_size,
            voxels=voxels,
            drawn=tuple(map(len, drawn)),
            cut_away=cut_away(upright, conformed.grid) if recipe.crop_foreground else 0,
        )
        (temporary / CASE_JSON).write_text(stored.model_dump_json(indent=1))
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
    except (OSError, RuntimeError) as error:
        raise Dae3dError(f"{final}: cannot be written ({error}); is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return stored


def _read(path: Path) -> Volume:
    try:
        return read_volume(path)
    except ScanError as error:
        raise ScanError(f"{path}: {error}") from None


def _write_channel(path: Path, volume: Volume, statistics: Statistics) -> StoredChannel:
    write_array(path, volume.array)
    return StoredChannel(
        bytes=path.stat().st_size,
        dtype=volume.array.dtype.name,
        slope=volume.slope,
        intercept=volume.intercept,
        statistics=statistics,
    )


def _source(path: Path) -> SourceFile:
    try:
        files = files_read(path)
        return SourceFile(path=path, stamp=Stamp.of(files), digest=digest(files))
    except OSError as error:
        raise ScanError(f"{path}: unreadable: {error.strerror}") from None
