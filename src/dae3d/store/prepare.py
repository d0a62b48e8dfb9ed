"""The verb `prepare`: from the scans of a manifest to a store that training reads from."""

import csv
import io
import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from dae3d.errors import Dae3dError
from dae3d.files import write_text
from dae3d.scans.manifest import Manifest, Scan
from dae3d.settings import Positional, Settings, verb
from dae3d.store.convert import convert, described
from dae3d.store.index import index_line, read_index, write_index
from dae3d.store.recipe import Spacing
from dae3d.store.scan import SCANS, Preparation, StoredScan, file_name
from dae3d.store.source import Stamp, source_files
from dae3d.store.store import Store
from dae3d.store.workers import work_through
from dae3d.store.writer import only_writer

REJECTED = "rejected.csv"
_REJECTED_SHOWN = 10


class PrepareSettings(Settings):
    """Settings of `prepare`."""

    manifest: Annotated[Path, Positional()] = Field(description="manifest written by `dae3d index`")
    out: Path = Field(description="folder of the store; run again, it does what is missing or changed")
    spacing: Spacing | None = Field(
        None, description="resample to this voxel size in mm, right, anterior and superior; none: as acquired"
    )
    crop_foreground: bool = Field(
        False, description="cut away the surroundings beyond 10 mm of the foreground"
    )
    workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="processes, each with one scan in memory",
    )

    @field_validator("spacing", mode="before")
    @classmethod
    def _three(cls, spacing: Any) -> Any:
        if spacing is not None and (not isinstance(spacing, list | tuple) or len(spacing) != 3):
            raise ValueError("must be three numbers in mm, or none")
        return spacing

    @property
    def preparation(self) -> Preparation:
        """The settings that a stored scan depends on."""
        return Preparation(spacing=self.spacing, crop_foreground=self.crop_foreground)


class Tally:
    """What a run has come to: the index's lines, the rejected scans, and the totals for the screen."""

    def __init__(self) -> None:
        self.lines: dict[str, tuple[str, str]] = {}
        self.rejected: list[tuple[Path, str]] = []
        self.kept = self.prepared = self.bytes_stored = self.bytes_raw = 0

    def add(self, scan: StoredScan, written: bool) -> None:
        """Count one scan of the store, written by this run or there before."""
        self.lines[scan.file] = index_line(scan)
        self.bytes_stored += scan.stored_stamp.bytes if scan.stored_stamp else 0
        self.bytes_raw += scan.voxel_bytes
        self.prepared += written
        self.kept += not written


@verb
def prepare(settings: PrepareSettings) -> Store:
    """Write the scans of a manifest into a store, in parallel, and only those it does not have as they are.

    Raises:
        Dae3dError: where the manifest or the store cannot be used, a worker died, or no scan is usable.
    """
    scans = _wanted(settings.manifest)
    with only_writer(settings.out, SCANS):
        tally = Tally()
        try:
            _run(scans, settings, tally)
        finally:
            _write_results(settings, tally)
            _show(settings.out, tally)
    if not tally.lines:
        raise Dae3dError(f"none of the {len(scans)} scans is usable; {settings.out / REJECTED} says why")
    return Store(settings.out)


def _wanted(path: Path) -> dict[str, Scan]:
    """The manifest's scans by their stored file."""
    scans: dict[str, Scan] = {}
    for scan in Manifest.load(path).scans:
        name = file_name(scan.path)
        if name in scans:
            raise Dae3dError(f"{path}: lists {scan.path} twice")
        scans[name] = scan.model_copy(update={"path": Path(os.path.abspath(scan.path))})
    if not scans:
        raise Dae3dError(f"{path}: lists no scans")
    return scans


def _run(scans: dict[str, Scan], settings: PrepareSettings, tally: Tally) -> None:
    for stored in _unchanged(scans, settings):
        tally.add(stored, written=False)
    todo = [scan for name, scan in scans.items() if name not in tally.lines]
    if not todo:
        return
    workers = min(settings.workers, len(todo))
    run = partial(convert, preparation=settings.preparation, store=settings.out)
    resampling = settings.spacing is not None
    work = work_through(todo, run, lambda scan: str(scan.path), workers, resampling, "--workers")
    with (
        tqdm(total=len(scans), initial=len(tally.lines), desc="prepare", unit="scan") as progress,
        closing(work) as outcomes,
    ):
        for outcome in outcomes:
            if outcome.stored is None:
                tally.rejected.append((outcome.path, outcome.reason))
            else:
                tally.add(outcome.stored, outcome.written)
            progress.update()


def _unchanged(scans: dict[str, Scan], settings: PrepareSettings) -> Iterator[StoredScan]:
    """The scans that, by the index of the last run, need not even be opened."""
    try:
        index = read_index(settings.out)
    except Dae3dError:
        return  # the stored files say what they are, only slower
    if index.header.preparation != settings.preparation:
        return
    for stored in index:
        scan = scans.get(stored.file)
        if scan is None:
            continue
        try:
            source = Stamp.of(source_files(scan.path))
            same = stored.source_stamp == source
            same &= stored.stored_stamp == Stamp.of([settings.out / SCANS / stored.file])
        except OSError:
            continue
        if same:
            yield described(stored, scan, source)


def _write_results(settings: PrepareSettings, tally: Tally) -> None:
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([("path", "reason"), *sorted(tally.rejected)])
    write_text(settings.out / REJECTED, table.getvalue())
    if tally.lines:
        write_index(settings.out, settings.preparation, tally.lines.values())


def _show(store: Path, tally: Tally) -> None:
    table = Table("store", escape(str(store)))
    table.add_row("prepared now", str(tally.prepared))
    table.add_row("already there", str(tally.kept))
    table.add_row("rejected", str(len(tally.rejected)))
    for path, reason in sorted(tally.rejected)[:_REJECTED_SHOWN]:
        table.add_row("", escape(f"{path.name}: {reason}"))
    if len(tally.rejected) > _REJECTED_SHOWN:
        table.add_row("", escape(f"and others, all in {store / REJECTED}"))
    table.add_row("size", f"{decimal(tally.bytes_stored)} on disk, {decimal(tally.bytes_raw)} uncompressed")
    Console().print(table)
