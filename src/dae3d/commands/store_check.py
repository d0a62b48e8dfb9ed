"""The command `store check`: is a store whole, and what can be done where it is not."""

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
        description="move damaged files into its folder `damaged`, delete what killed runs left, and list in "
        "the index what is whole; `dae3d prepare` then makes again what is missing",
    )
    prune: bool = Field(
        False,
        description="delete whole files that the index does not list: of scans that have left the manifest",
    )
    workers: int = Field(
        default_factory=usable_cores, ge=1, description="processes, each with one scan in memory"
    )


class _Contents:
    """What the index lists and the folder of scans holds; `why` says what is wrong with the index.

    `listed` are the stored files on its sound lines, `lost` those on others, and `unlisted` all the rest.
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
                read_index(store)  # says what to do
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
        """The names of all files, with what the index says of them."""
        if self.listed:
            entries = readable(self.store / INDEX, StoredScan)
            yield from ((scan.file, scan) for scan in entries if isinstance(scan, StoredScan))
        yield from ((file, None) for file in self.unlisted)


class _Findings:
    """What is wrong, and what of a store may be kept."""

    def __init__(self, contents: _Contents, keep: bool) -> None:
        self._contents = contents
        self._keep = keep
        self.kept: dict[Preparation, StoreTally] = {}
        self.wrong: list[Checked] = []
        self.unlisted: list[str] = []
        self.whole = 0

    def having(self, state: State) -> list[Checked]:
        """The files found to be in a state that is not right."""
        return [checked for checked in self.wrong if checked.state == state]

    def add(self, checked: Checked) -> None:
        """Count one file."""
        lost = checked.file in self._contents.lost
        if checked.listed is None and checked.state in ("whole", "other") and not lost:
            self.unlisted.append(checked.file)
            return
        if checked.state == "whole":
            self.whole += 1
        else:
            self.wrong.append(checked)
        scan = checked.listed or checked.scan
        if self._keep and scan is not None and checked.state in ("whole", "unreadable"):
            if scan.preparation not in self.kept:
                self.kept[scan.preparation] = StoreTally(self._contents.store / PARTIAL)
            self.kept[scan.preparation].add(scan)


@command
def store_check(settings: StoreCheckSettings) -> Store:
    """Read every scan of a store whole, and compare it with what is on record of it.

    Raises:
        Dae3dError: where there is no store, another run is writing to it, or something in it is wrong and is
            not to be repaired, or cannot be read.
    """
    store = settings.store
    if not (store / SCANS).is_dir():
        read_index(store)  # says what to do
    changing = settings.repair or settings.prune
    refuse_writing(store)
    litter = leftovers(store)
    with only_writer(store, SCANS) if changing else nullcontext():
        if changing:
            refuse_unfinished(store)
        contents = _Contents(store)
        if settings.prune and contents.why:
            raise Dae3dError(f"{contents.why}; mend it first, with --repair alone")
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
    mendable = len(findings.wrong) > len(findings.having("unreadable"))
    if not repaired and (contents.why or mendable):
        # What is being written is not damaged.
        refuse_writing(store)
        refuse_unfinished(store)
        raise Dae3dError(
            f"{store}: damaged; mend it with `dae3d store check {store} --repair`, then run "
            f"`dae3d prepare MANIFEST --out {store}` again"
        )
    _refuse_unreadable(store, findings)


def _refuse_unreadable(store: Path, findings: _Findings) -> None:
    unreadable = len(findings.having("unreadable"))
    if unreadable:
        raise Dae3dError(
            f"{store}: {unreadable} files cannot be read; they may be whole and are left as they are: see to "
            "what keeps them from being read, and check again"
        )


def _prune(store: Path, files: list[str]) -> None:
    for file in files:
        path = store / SCANS / file
        with writing(path):
            path.unlink(missing_ok=True)
    _log.info("%s: %d files that its index does not list are deleted", store, len(files))


def _repair(contents: _Contents, findings: _Findings) -> None:
    store = contents.store
    if not contents.why and all(checked.state == "unreadable" for checked in findings.wrong):
        return
    for checked in findings.having("damaged"):
        make_folder(store / DAMAGED)
        with writing(store / DAMAGED):
            (store / SCANS / checked.file).replace(store / DAMAGED / checked.file)
    # Parts of a job array that list what is gone must not be put together any more.
    shutil.rmtree(store / PARTS, ignore_errors=True)
    most = max(findings.kept, key=lambda one: findings.kept[one].scans, default=None)
    preparation = contents.header.preparation if contents.header else most
    if preparation not in findings.kept:
        _refuse_unreadable(store, findings)
        raise Dae3dError(f"{store}: nothing in it is whole; run `dae3d prepare MANIFEST --out {store}` again")
    tally = findings.kept[preparation]
    tally.write_index(store / INDEX, IndexHeader(preparation=preparation, scans=0))
    _log.info(
        "%s: its index lists what is whole, %d scans; run `dae3d prepare MANIFEST` for what is missing%s",
        store,
        tally.scans,
        ", and for the labels, subjects and splits of now" if contents.why else "",
    )


def _show(contents: _Contents, findings: _Findings, litter: list[Path]) -> None:
    table = Table("store", escape(str(contents.store)))
    if contents.why:
        table.add_row("index", escape(contents.why))
    table.add_row("whole", str(findings.whole))
    table.add_row("wrong", str(len(findings.wrong)))
    for checked in sorted(findings.wrong, key=lambda one: one.file)[:_SHOWN]:
        table.add_row("", escape(f"{checked.file}: {checked.why}"))
    if len(findings.wrong) > _SHOWN:
        table.add_row("", f"and {len(findings.wrong) - _SHOWN} others")
    if findings.unlisted:
        table.add_row(
            "not in the index",
            f"{len(findings.unlisted)} whole files, kept: `prepare` takes up those that its manifest lists, "
            "--prune deletes all",
        )
    if litter:
        table.add_row("left by killed runs", escape(", ".join(path.name for path in litter)))
    Console().print(table)
