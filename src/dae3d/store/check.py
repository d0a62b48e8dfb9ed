"""The verb `store check`: is a store whole, and what can be done where it is not."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from dae3d.errors import Dae3dError
from dae3d.settings import Positional, Settings, verb
from dae3d.store.index import INDEX, Header, iterate, read_header, read_index
from dae3d.store.scan import PARTIAL, SCANS, Preparation, StoredScan
from dae3d.store.shards import PARTS, unfinished
from dae3d.store.store import Store
from dae3d.store.tally import Tally
from dae3d.store.whole import Checked, check_file
from dae3d.store.workers import usable_cores, work_through
from dae3d.store.writer import LOCK, leftovers, locked, only_writer

_SHOWN = 50

_log = logging.getLogger(__name__)


class StoreCheckSettings(Settings):
    """Settings of `store check`."""

    store: Annotated[Path, Positional()] = Field(description="folder written by `dae3d prepare`")
    repair: bool = Field(
        False,
        description="delete damaged files and what killed runs left, and list in the index what is whole; "
        "`dae3d prepare` then makes again what is missing",
    )
    workers: int = Field(
        default_factory=usable_cores, ge=1, description="processes, each with one scan in memory"
    )


class _Contents:
    """What the index lists and the folder of scans holds; `why_none` says why there is no usable index."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.header: Header | None = None
        self.why_none = ""
        self.listed: set[str] = set()
        try:
            self.listed = {scan.file for scan in iterate(store / INDEX)}
            self.header = read_header(store / INDEX)
        except FileNotFoundError:
            self.why_none = f"{store / INDEX}: missing"
        except Dae3dError as error:
            self.listed, self.why_none = set(), str(error)
        self.unlisted = sorted({path.name for path in (store / SCANS).glob("*.b2nd")} - self.listed)
        if self.header is None and (not self.unlisted or unfinished(store)):
            read_index(store)  # says what to do

    def __len__(self) -> int:
        return len(self.listed) + len(self.unlisted)

    def __iter__(self) -> Iterator[tuple[str, StoredScan | None]]:
        """The names of all files, with what the index says of them."""
        if self.header:
            yield from ((scan.file, scan) for scan in iterate(self.store / INDEX))
        yield from ((file, None) for file in self.unlisted)


class _Findings:
    """What is wrong, and what of a store may be kept."""

    def __init__(self, contents: _Contents, keep: bool) -> None:
        self._contents = contents
        self._keep = keep
        self.kept: dict[Preparation, Tally] = {}
        self.wrong: list[Checked] = []
        self.whole = self.unlisted = 0

    def add(self, checked: Checked) -> None:
        """Count one file."""
        if checked.wrong:
            self.wrong.append(checked)
        elif checked.listed is None and self._contents.header:
            self.unlisted += 1
        elif scan := checked.listed or checked.scan:
            self.whole += 1
            if self._keep:
                if scan.preparation not in self.kept:
                    self.kept[scan.preparation] = Tally(self._contents.store / PARTIAL)
                self.kept[scan.preparation].add(scan)


@verb
def store_check(settings: StoreCheckSettings) -> Store:
    """Read every scan of a store whole, and compare it with what is on record of it.

    Raises:
        Dae3dError: where there is no store, another run is writing to it, or something in it is wrong and is
            not to be repaired.
    """
    store = settings.store
    if not (store / SCANS).is_dir():
        read_index(store)  # says what to do
    litter = leftovers(store)
    with _undisturbed(settings):
        contents = _Contents(store)
        findings = _Findings(contents, settings.repair)
        work = work_through(
            contents,
            partial(check_file, store=store),
            lambda entry: entry[0],
            min(settings.workers, max(1, len(contents))),
            False,
            "--workers",
        )
        with closing(work), tqdm(work, "check", len(contents), unit="scan") as progress:
            for checked in progress:
                findings.add(checked)
        _show(contents, findings, litter)
        if settings.repair:
            _repair(contents, findings)
        elif findings.wrong or contents.why_none:
            raise Dae3dError(
                f"{store}: damaged; mend it with `dae3d store check {store} --repair`, then run "
                f"`dae3d prepare MANIFEST --out {store}` again"
            )
    return Store(store)


def _undisturbed(settings: StoreCheckSettings) -> AbstractContextManager[None]:
    if settings.repair:
        return only_writer(settings.store, SCANS)
    return locked(settings.store / LOCK) if os.access(settings.store, os.W_OK) else nullcontext()


def _repair(contents: _Contents, findings: _Findings) -> None:
    store = contents.store
    if not findings.wrong and contents.header:
        return
    for checked in findings.wrong:
        if checked.scan is None:
            (store / SCANS / checked.file).unlink(missing_ok=True)
    # Parts of a job array that list what is gone must not be put together any more.
    shutil.rmtree(store / PARTS, ignore_errors=True)
    if contents.header:
        preparation = contents.header.preparation
    elif findings.kept:
        preparation = max(findings.kept, key=lambda one: findings.kept[one].scans)
    else:
        raise Dae3dError(f"{store}: nothing in it is whole; run `dae3d prepare MANIFEST --out {store}` again")
    tally = findings.kept.get(preparation) or Tally(store / PARTIAL)
    tally.write_index(store / INDEX, Header(preparation=preparation, scans=0))
    again = f"{store}: its index lists what is whole, {tally.scans} scans; run `dae3d prepare MANIFEST`"
    if contents.header:
        _log.info("%s for what is missing", again)
    else:
        _log.info("%s for what is missing, and for the labels, subjects and splits of now", again)


def _show(contents: _Contents, findings: _Findings, litter: list[Path]) -> None:
    table = Table("store", escape(str(contents.store)))
    if contents.why_none:
        table.add_row("index", escape(contents.why_none))
    table.add_row("whole", str(findings.whole))
    table.add_row("wrong", str(len(findings.wrong)))
    for checked in sorted(findings.wrong, key=lambda one: one.file)[:_SHOWN]:
        table.add_row("", escape(f"{checked.file}: {checked.wrong}"))
    if len(findings.wrong) > _SHOWN:
        table.add_row("", f"and {len(findings.wrong) - _SHOWN} others")
    if findings.unlisted:
        table.add_row(
            "not in the index",
            f"{findings.unlisted} whole files, kept: `prepare` takes up those that its manifest lists",
        )
    if litter:
        table.add_row("left by killed runs", escape(", ".join(path.name for path in litter)))
    Console().print(table)
