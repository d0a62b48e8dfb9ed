"""The command `prepare`: write the scans of a manifest into a store for training."""

import logging
import os
import re
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from dae3d.cores import usable_cores
from dae3d.errors import Dae3dError, ScanError
from dae3d.scans.manifest import Scan
from dae3d.scans.read import source_files
from dae3d.settings import Positional, Settings, command
from dae3d.store.convert import Outcome, convert
from dae3d.store.earlier import Earlier
from dae3d.store.index import INDEX, IndexHeader, OtherVersion, read_index_header
from dae3d.store.recipe import Spacing
from dae3d.store.scan import PARTIAL, REJECTED, SCANS, Preparation
from dae3d.store.shards import PARTS, Shard, ShardText, all_shards, shard_list
from dae3d.store.source import digest
from dae3d.store.store import Store
from dae3d.store.tally import StoreTally
from dae3d.store.wanted import Wanted
from dae3d.store.workers import work_through
from dae3d.store.writer import locked, only_writer, shard_writer

_REJECTED_SHOWN = 10

_log = logging.getLogger(__name__)


class PrepareSettings(Settings):
    """Settings of `prepare`."""

    manifest: Annotated[Path, Positional()] = Field(description="manifest written by `dae3d index`")
    out: Path = Field(
        description="folder of the store; another run only does missing or changed scans, and with another "
        "manifest it adds scans"
    )
    spacing: Spacing | None = Field(
        None,
        description="resample to this voxel size in mm along right, anterior and superior; none: as acquired",
    )
    crop_foreground: bool = Field(False, description="crop to the foreground plus 10 mm")
    only: bool = Field(
        False,
        description="keep only the scans of the manifest in the store: scans of other manifests, or removed "
        "from this one, are removed from its index; `dae3d store check --prune` deletes their files",
    )
    again: bool = Field(
        False,
        description="if the store was prepared with other settings, prepare all its scans again instead of "
        "refusing",
    )
    workers: int = Field(
        default_factory=usable_cores,
        ge=1,
        description="processes, each with one scan in memory",
    )
    scheduler: str | None = Field(
        None,
        description="address of a Dask scheduler, such as tcp://host:8786, whose workers do the work; they "
        "must see scans and store under the same paths",
    )
    shard: ShardText | None = Field(
        None,
        description="i/n, with i from 0: prepare every n-th scan, in a job array on a shared disk; the last "
        "shard to finish writes the index",
    )
    report: bool = Field(True, description="write data-report.html with pictures and outliers")

    @field_validator("scheduler")
    @classmethod
    def _address(cls, scheduler: str | None) -> str | None:
        if scheduler is not None and not re.fullmatch(r"\w+://\S+:\d+", scheduler):
            raise ValueError("must be PROTOCOL://HOST:PORT, as `dask scheduler` prints it: tcp://host:8786")
        return scheduler

    @field_validator("spacing", mode="before")
    @classmethod
    def _three(cls, spacing: Any) -> Any:
        if spacing is not None and (not isinstance(spacing, list | tuple) or len(spacing) != 3):
            raise ValueError("must be three numbers in mm, or none")
        return spacing

    @property
    def preparation(self) -> Preparation:
        """The settings that stored scans depend on."""
        return Preparation(spacing=self.spacing, crop_foreground=self.crop_foreground)


@command
def prepare(settings: PrepareSettings) -> Store:
    """Add the scans of a manifest to a store, in parallel, skipping those it has already.

    Other scans of the store are kept unless `only` is set. Those whose file is gone while the manifest has
    its content under another path were moved, and are removed.

    Returns:
        The store; for a shard while others are unfinished, with the scans of that shard only.

    Raises:
        Dae3dError: if the manifest or the store cannot be used, the store was prepared with other settings
            (unless `again`), a subject would be on both sides of the split, or no scan is usable.
    """
    shard = Shard.parse(settings.shard) if settings.shard else None
    wanted = Wanted(settings.manifest, shard)
    if shard is None:
        _prepare_whole(settings, wanted)
    elif not _prepare_shard(settings, wanted, shard):
        return Store(settings.out, shard.index)
    if settings.report:
        from dae3d.reporting.data_store import report_store

        report_store(settings.out)
    return Store(settings.out)


def _prepare_whole(settings: PrepareSettings, wanted: Wanted) -> None:
    out = settings.out
    with only_writer(out, SCANS):
        earlier = _look_at_earlier(wanted, settings)
        # Shards run later must not be merged with parts that are older than this run.
        shutil.rmtree(out / PARTS, ignore_errors=True)
        header = IndexHeader(preparation=settings.preparation, scans=0)
        tally = StoreTally(out / PARTIAL)
        # Until unchanged scans are known, the old index is more complete than any that could be written.
        _keep_unchanged(wanted, settings, tally, [out / INDEX])
        _retire_other(out / INDEX, header)
        to_do = wanted.to_do
        try:
            _convert(wanted, settings, tally, PARTIAL)
        except BaseException:
            begun = wanted.to_do < to_do
            # The original error must be raised, not one of writing the index after it.
            with _logged():
                for kept in wanted.not_looked_at(out, [out / INDEX], settings.preparation):
                    tally.count(kept)
                if begun:
                    _write_down(tally, settings, header, earlier)
            raise
        _write_down(tally, settings, header, earlier)
    _refuse_empty(tally, out / REJECTED)


def _look_at_earlier(wanted: Wanted, settings: PrepareSettings) -> Earlier:
    """The scans that the store lists; raises Dae3dError if those of the manifest cannot be added."""
    earlier = Earlier(settings.out, wanted)
    earlier.refuse_other_preparation(settings.preparation, settings.again, settings.only)
    if not settings.only:
        earlier.refuse_both_sides()
    return earlier


def _add_earlier(tally: StoreTally, earlier: Earlier, settings: PrepareSettings) -> list[tuple[str, str]]:
    """Add the earlier scans that are kept to the tally; returns rows for the summary."""
    if not earlier.scans:
        if not settings.only:
            earlier.warn_of_lost()
        return []
    rows = [("listed before", str(earlier.scans)), ("added", str(earlier.added(tally)))]
    if earlier.relabelled:
        rows.append(("relabelled", f"{earlier.relabelled}: modality, subject or split changed"))
    if settings.only:
        if earlier.others:
            rows.append(("removed", f"{earlier.others}, which the manifest does not list"))
        return rows
    earlier.keep(tally, settings.preparation)
    earlier.warn_of_lost()
    if tally.kept:
        rows.append(("kept", f"{tally.kept}, which the manifest does not list (--only removes them)"))
    if earlier.moved:
        rows.append(("moved", f"{earlier.moved}, which the manifest lists under other paths"))
    return rows


def _write_down(tally: StoreTally, settings: PrepareSettings, header: IndexHeader, earlier: Earlier) -> None:
    out = settings.out
    _show(str(out), tally, out / REJECTED, _add_earlier(tally, earlier, settings))
    if tally.scans:
        tally.write_index(out / INDEX, header)
    tally.write_rejected(out / REJECTED)


@contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except Dae3dError as error:
        _log.warning("%s", error)


def _prepare_shard(settings: PrepareSettings, wanted: Wanted, shard: Shard) -> bool:
    """Prepare a shard's scans; returns whether it was the last one and wrote the store's index."""
    out = settings.out
    header = IndexHeader(preparation=settings.preparation, scans=0, manifest=digest([settings.manifest]))
    with shard_writer(out, SCANS, shard) as folder:
        _look_at_earlier(wanted, settings)
        for part in (out / PARTS).glob("index-*.jsonl"):
            if not (part.stem.endswith(f"-of-{shard.of}") and _matches(part, header)):
                part.unlink(missing_ok=True)
        tally = StoreTally(out / folder)
        try:
            _keep_unchanged(wanted, settings, tally, [out / shard.index, out / INDEX])
            _retire_other(out / INDEX, header.model_copy(update={"manifest": None}))
            # The old part of the shard is not valid until this run has finished.
            (out / shard.index).unlink(missing_ok=True)
            _convert(wanted, settings, tally, folder)
        finally:
            _show(f"{out}, shard {settings.shard}", tally, out / shard.rejected)
        tally.write_rejected(out / shard.rejected)
        tally.write_index(out / shard.index, header)
        # One shard at a time, so that the last merge has the newest parts.
        with locked(out / PARTS / ".lock", wait=True):
            return _merge(wanted, settings, header, shard.of, folder)


def _merge(wanted: Wanted, settings: PrepareSettings, header: IndexHeader, of: int, folder: str) -> bool:
    """Merge the parts of all shards into the index, if they are complete."""
    out = settings.out
    shards = all_shards(of)
    missing = [shard for shard in shards if not _matches(out / shard.index, header)]
    if missing:
        _log.info("%s: the index is waiting for %s", out, shard_list(missing))
        return False
    tally = StoreTally(out / folder)
    for shard in shards:
        tally.add_part(out / shard.index, out / shard.rejected)
    tally.write_rejected(out / REJECTED)
    _refuse_empty(tally, out / REJECTED)
    # Scans that other shards have added since this one began are in the manifest, so they are not "others".
    rows = _add_earlier(tally, _look_at_earlier(wanted, settings), settings)
    tally.write_index(out / INDEX, header.model_copy(update={"manifest": None}))
    _show(f"{out}, all {of} shards", tally, out / REJECTED, rows)
    return True


def _matches(part: Path, header: IndexHeader) -> bool:
    """Whether a shard's part exists, and was made from the same manifest with the same settings."""
    try:
        return read_index_header(part).model_copy(update={"scans": header.scans}) == header
    except (FileNotFoundError, Dae3dError):
        return False


def _retire_other(index: Path, header: IndexHeader) -> None:
    """Delete an index of another preparation: the files that it lists will be replaced."""
    try:
        if read_index_header(index).preparation == header.preparation:
            return
    except OtherVersion:
        pass
    except (FileNotFoundError, Dae3dError):
        return  # a damaged index cannot be opened as a store, and its valid lines are still needed
    index.unlink(missing_ok=True)


def _keep_unchanged(
    wanted: Wanted, settings: PrepareSettings, tally: StoreTally, indexes: list[Path]
) -> None:
    for outcome in wanted.unchanged(settings.out, indexes, settings.preparation):
        tally.count(outcome)


def _convert(wanted: Wanted, settings: PrepareSettings, tally: StoreTally, folder: str) -> None:
    if not wanted.to_do:
        return
    with (
        tqdm(total=len(wanted), initial=tally.scans, desc="prepare", unit="scan") as progress,
        closing(_outcomes(wanted, settings, folder)) as outcomes,
    ):

        def count(outcome: Outcome) -> None:
            wanted.done(outcome.file)
            tally.count(outcome)
            progress.update()

        try:
            for outcome in outcomes:
                count(outcome)
        except KeyboardInterrupt as interrupt:
            # If it came between two results, the scans in progress must still be finished.
            with suppress(KeyboardInterrupt):
                count(outcomes.throw(interrupt))
                for outcome in outcomes:
                    count(outcome)
            raise


def _outcomes(wanted: Wanted, settings: PrepareSettings, folder: str) -> Generator[Outcome, None, None]:
    store = settings.out.absolute()
    run = partial(convert, preparation=settings.preparation, store=store, partial=folder)
    resampling = settings.spacing is not None
    if settings.scheduler is None:
        workers = min(settings.workers, wanted.to_do)
        return work_through(wanted.still_to_do(), run, Outcome.rejected, workers, resampling)
    try:
        from dae3d.store.cluster import work_on_cluster
    except ModuleNotFoundError:
        raise Dae3dError(
            "--scheduler requires Dask; install it with `pip install 'dae3d[cluster]'`"
        ) from None
    return work_on_cluster(
        wanted.still_to_do(),
        run,
        lambda scan: Outcome.rejected(scan, "its workers died, most often for lack of memory"),
        lambda scan, outcome: scan.path if outcome.unseen and _seen(scan) else None,
        settings.scheduler,
        store / folder,
        resampling,
    )


def _seen(scan: Scan) -> bool:
    """Whether the files of a scan can be read by this process."""
    try:
        return all(os.access(file, os.R_OK) for file in source_files(scan))
    except (OSError, ScanError):
        return False


def _refuse_empty(tally: StoreTally, rejected: Path) -> None:
    if tally.scans == tally.kept:
        raise Dae3dError(f"none of the {tally.rejected} scans is usable; the reasons are in {rejected}")


def _show(what: str, tally: StoreTally, rejected: Path, rows: Iterable[tuple[str, str]] = ()) -> None:
    table = Table("store", escape(what))
    table.add_row("prepared now", str(tally.prepared))
    table.add_row("already there", str(tally.scans - tally.prepared))
    for row in rows:
        table.add_row(*row)
    table.add_row("rejected", str(tally.rejected))
    for name, reason in tally.first_rejected(_REJECTED_SHOWN):
        table.add_row("", escape(f"{Path(name).name}: {reason}"))
    if tally.rejected > _REJECTED_SHOWN:
        table.add_row("", escape(f"and others, all in {rejected}"))
    table.add_row("size", f"{decimal(tally.bytes_stored)} on disk, {decimal(tally.bytes_raw)} uncompressed")
    Console().print(table)
    if tally.unseen:
        _log.warning("%s: %d source files are missing; the stored scans are kept", what, tally.unseen)
