"""The command `store check`: verify a store, and repair it."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from dae3d.cores import usable_cores
from dae3d.errors import Dae3dError
from dae3d.files import make_folder, writing
from dae3d.settings import Positional, Settings, command
from dae3d.store.index import (
    INDEX,
    IndexHeader,
    OtherVersion,
    iterate,
    read_index,
    read_index_header,
    readable,
    refuse_unfinished,
)
from dae3d.store.integrity import Checked, State, check_file
from dae3d.store.place import DAMAGED, stored_files
from dae3d.store.scan import PARTIAL, SCANS, Preparation, StoredScan
from dae3d.store.shards import PARTS, unfinished
from dae3d.store.store import Store
from dae3d.store.tally import StoreTally
from dae3d.store.workers import work_through
from dae3d.store.writer import leftovers, only_writer, refuse_writing

_SHOWN = 50

_log = logging.getLogger(__name__)


class StoreCheckSettings(Settings):
    """Settings of `store check`."""

    store: Annotated[Path, Positional()] = Field(description="folder written by `dae3d prepare`")
    repair: bool = Field(
        False,
        description="move damaged files into the folder `damaged`, delete what killed runs left, and rewrite "
        "the index with the intact files; `dae3d prepare` then restores what is missing",
    )
    prune: bool = Field(
        False,
        description="delete intact files that the index does not list: of scans removed from the manifest",
    )
    workers: int = Field(
        default_factory=usable_cores, ge=1, description="processes, each with one scan in memory"
    )


class _Contents:
    """The contents of the index and of the folder of scans; `why` says what is wrong with the index.

    `listed` are the stored files on valid lines, `lost` those on damaged lines, `unlisted` all others.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.header: IndexHeader | None = None
        self.why = ""
        self.listed: set[str] = set()
        self.lost: set[str] = set()
        files = set(stored_files(store))
        index = store / INDEX
        try:
            self.header = read_index_header(index)
            self.listed = {scan.file for scan in iterate(index)}
        except OtherVersion:
            raise
        except FileNotFoundError:
            if not files or unfinished(store):
                read_index(store)  # raises an error with advice
            self.why, self.lost = f"{index}: missing", files
        except Dae3dError as error:
            self.why = str(error)
            for entry in readable(index, StoredScan):
                if isinstance(entry, str):
                    self.lost.add(entry)
                else:
                    self.listed.add(entry.file)
            if not self.listed and not self.lost:
                self.lost = files
        self.unlisted = sorted(files - self.listed)

    def __len__(self) -> int:
        return len(self.listed) + len(self.unlisted)

    def __iter__(self) -> Iterator[tuple[str, StoredScan | None]]:
        """The names of all files, with their entries in the index."""
        if self.listed:
            entries = readable(self.store / INDEX, StoredScan)
            yield from ((scan.file, scan) for scan in entries if isinstance(scan, StoredScan))
        yield from ((file, None) for file in self.unlisted)


class _Findings:
    """Files with problems, and scans that can be kept."""

    def __init__(self, contents: _Contents, keep: bool) -> None:
        self._contents = contents
        self._keep = keep
        self.kept: dict[Preparation, StoreTally] = {}
        self.wrong: list[Checked] = []
        self.unlisted: list[str] = []
        self.intact = 0

    def having(self, state: State) -> list[Checked]:
        """The wrong files of one state."""
        return [checked for checked in self.wrong if checked.state == state]

    def add(self, checked: Checked) -> None:
        """Count one file."""
        lost = checked.file in self._contents.lost
        if checked.listed is None and checked.state in ("intact", "other") and not lost:
            self.unlisted.append(checked.file)
            return
        if checked.state == "intact":
            self.intact += 1
        else:
            self.wrong.append(checked)
        scan = checked.listed or checked.scan
        if self._keep and scan is not None and checked.state in ("intact", "unreadable"):
            if scan.preparation not in self.kept:
                self.kept[scan.preparation] = StoreTally(self._contents.store / PARTIAL)
            self.kept[scan.preparation].add(scan)


@command
def store_check(settings: StoreCheckSettings) -> Store:
    """Read all files of a store, and compare them with their checksums and the index.

    Raises:
        Dae3dError: if the folder is not a store, another run is writing to it, a file cannot be read, or
            something is wrong and not repaired.
    """
    store = settings.store
    if not (store / SCANS).is_dir():
        read_index(store)  # raises an error with advice
    changing = settings.repair or settings.prune
    refuse_writing(store)
    litter = leftovers(store)
    with only_writer(store, SCANS) if changing else nullcontext():
        if changing:
            refuse_unfinished(store)
        contents = _Contents(store)
        if settings.prune and contents.why:
            raise Dae3dError(f"{contents.why}; repair it first, with --repair alone")
        findings = _checked(contents, settings)
        _show(contents, findings, litter)
        if settings.prune:
            _prune(store, findings.unlisted)
        if settings.repair:
            _repair(contents, findings)
    _refuse_wrong(contents, findings, settings.repair)
    return Store(store)


def _checked(contents: _Contents, settings: StoreCheckSettings) -> _Findings:
    findings = _Findings(contents, settings.repair)
    work = work_through(
        contents,
        partial(check_file, store=settings.store),
        _died,
        min(settings.workers, max(1, len(contents))),
        False,
    )
    with closing(work), tqdm(work, "check", len(contents), unit="scan") as progress:
        for checked in progress:
            findings.add(checked)
    return findings


def _died(entry: tuple[str, StoredScan | None], reason: str) -> Checked:
    return Checked(*entry, "unreadable", why=f"cannot be read: {reason}")


def _refuse_wrong(contents: _Contents, findings: _Findings, repaired: bool) -> None:
    store = contents.store
    repairable = len(findings.wrong) > len(findings.having("unreadable"))
    if not repaired and (contents.why or repairable):
        # A store that is being written is not damaged.
        refuse_writing(store)
        refuse_unfinished(store)
        raise Dae3dError(
            f"{store}: damaged; repair it with `dae3d store check {store} --repair`, then run "
            f"`dae3d prepare MANIFEST --out {store}` again"
        )
    _refuse_unreadable(store, findings)


def _refuse_unreadable(store: Path, findings: _Findings) -> None:
    unreadable = len(findings.having("unreadable"))
    if unreadable:
        raise Dae3dError(
            f"{store}: {unreadable} files cannot be read; they may be intact and are left as they are: fix "
            "the cause, and check again"
        )


def _prune(store: Path, files: list[str]) -> None:
    for file in files:
        path = store / SCANS / file
        with writing(path):
            path.unlink(missing_ok=True)
    _log.info("%s: deleted %d files that the index does not list", store, len(files))


def _repair(contents: _Contents, findings: _Findings) -> None:
    store = contents.store
    if not contents.why and all(checked.state == "unreadable" for checked in findings.wrong):
        return
    for checked in findings.having("damaged"):
        make_folder(store / DAMAGED)
        with writing(store / DAMAGED):
            (store / SCANS / checked.file).replace(store / DAMAGED / checked.file)
    # Parts of a job array may list moved files, so they must not be merged.
    shutil.rmtree(store / PARTS, ignore_errors=True)
    most = max(findings.kept, key=lambda one: findings.kept[one].scans, default=None)
    preparation = contents.header.preparation if contents.header else most
    if preparation not in findings.kept:
        _refuse_unreadable(store, findings)
        raise Dae3dError(f"{store}: no scan is intact; run `dae3d prepare MANIFEST --out {store}` again")
    tally = findings.kept[preparation]
    tally.write_index(store / INDEX, IndexHeader(preparation=preparation, scans=0))
    _log.info(
        "%s: the index now lists the %d intact scans; run `dae3d prepare MANIFEST` for missing ones%s",
        store,
        tally.scans,
        ", and to update labels, subjects and splits" if contents.why else "",
    )


def _show(contents: _Contents, findings: _Findings, litter: list[Path]) -> None:
    table = Table("store", escape(str(contents.store)))
    if contents.why:
        table.add_row("index", escape(contents.why))
    table.add_row("intact", str(findings.intact))
    table.add_row("wrong", str(len(findings.wrong)))
    for checked in sorted(findings.wrong, key=lambda one: one.file)[:_SHOWN]:
        table.add_row("", escape(f"{checked.file}: {checked.why}"))
    if len(findings.wrong) > _SHOWN:
        table.add_row("", f"and {len(findings.wrong) - _SHOWN} others")
    if findings.unlisted:
        table.add_row(
            "not in the index",
            f"{len(findings.unlisted)} intact files, kept: `prepare` adds those that its manifest lists, "
            "--prune deletes all",
        )
    if litter:
        table.add_row("left by killed runs", escape(", ".join(path.name for path in litter)))
    Console().print(table)
