"""`index --check`: read the voxels of all scans of a manifest to find problems that headers do not show."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from dae3d.cores import usable_cores
from dae3d.errors import ScanError, as_scan_error
from dae3d.journal import Journal
from dae3d.reporting.data_pictures import Drawn, draw_slices, grey_levels, mid_planes
from dae3d.reporting.data_report import PAGE, write_data_report
from dae3d.reporting.data_survey import Surveyed, survey
from dae3d.scans.manifest import LeftOut, Manifest, Scan
from dae3d.scans.read import read_scan, source_files
from dae3d.scans.readers import Volume
from dae3d.scans.spool import Spool
from dae3d.store.boxes import Read, Triple
from dae3d.store.examine import AS_ACQUIRED, examine
from dae3d.store.fingerprint import voxel_digest
from dae3d.store.source import Stamp, digest
from dae3d.store.statistics import Statistics
from dae3d.store.workers import work_through

Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class _Checked(BaseModel):
    """The result of reading a scan in the state given by `stamp`: surveyed, or the `reason` why not.

    Without a stamp the result may be temporary, and the scan is read again next time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: str
    stamp: Stamp | None = None
    surveyed: Surveyed | None = None
    reason: str = ""


class _Task(NamedTuple):
    """A scan to read, with its number in the manifest."""

    number: int
    scan: Scan


class _Results:
    """The results of all scans of a manifest: those that can be used (kept on disk) and those rejected."""

    def __init__(self, count: int, folder: Path) -> None:
        self._surveyed: Spool[Surveyed] = Spool(folder)
        self._places = np.full(count, -1)
        self.open = np.ones(count, bool)
        self.rejected: list[LeftOut] = []

    def add(self, number: int, scan: Scan, checked: _Checked) -> None:
        """Keep the result of scan `number`, with its current entry in the manifest."""
        self.open[number] = False
        if checked.surveyed is None:
            self.rejected.append(LeftOut(path=scan.path, reason=checked.reason))
            return
        now = scan.model_copy(update={"digest": checked.surveyed.scan.digest, "files": ()})
        self._places[number] = self._surveyed.add(checked.surveyed.model_copy(update={"scan": now}))

    @property
    def usable(self) -> np.ndarray:
        """The manifest numbers of the scans that can be used."""
        return np.flatnonzero(self._places >= 0)

    def at(self, number: int) -> Surveyed:
        """A usable scan by its manifest number."""
        return self._surveyed.at(int(self._places[number]))


def check_scans(manifest: Manifest, out: Path, workers: int) -> Path:
    """Read every scan of a manifest completely and write `data-report.html` next to the manifest.

    Results are kept in a hidden file next to the manifest, so that an interrupted check is continued and
    unchanged scans are not read again.

    Args:
        manifest: the scans to read.
        out: path of the manifest.
        workers: reading processes, each with one scan in memory; limited to the number of processors.

    Returns:
        The page's path.

    Raises:
        Dae3dError: if the page cannot be written, or another process is doing the same check.
    """
    scans = manifest.scans
    processes = min(workers, usable_cores())
    results = _Results(len(scans), out.parent)
    _read_all(scans, out.with_name(f".{out.name}.checked"), results, processes)
    usable = results.usable
    if results.rejected:
        first = results.rejected[0]
        _log.warning(
            "%d of %d scans are rejected, such as %s: %s; the report lists all",
            len(results.rejected),
            len(scans),
            first.path,
            first.reason,
        )

    def look(place: int) -> Surveyed:
        return results.at(usable[place])

    def drawn(chosen: Sequence[int]) -> Iterator[tuple[int, Drawn | None]]:
        tasks = (_Task(place, scans[int(usable[place])]) for place in chosen)
        with closing(_spread(tasks, _draw, _not_drawn, min(processes, len(chosen)))) as work:
            yield from tqdm(work, "drawing", len(chosen), unit="scan", leave=False, delay=1)

    found = survey(map(look, range(len(usable))))
    left_out = chain(manifest.left_out, sorted(results.rejected, key=lambda item: item.path))
    return write_data_report(
        out.with_name(PAGE), "/".join(out.absolute().parts[-2:]), found, look, drawn, left_out
    )


def _read_all(scans: Sequence[Scan], notes: Path, results: _Results, processes: int) -> None:
    heading = {"checked": 3, "preparation": AS_ACQUIRED.model_dump(mode="json")}
    with Journal(notes, heading, again=True) as journal:
        for number, scan in enumerate(tqdm(scans, "unchanged", unit="scan", leave=False, delay=1)):
            known = _known(journal, scan)
            if known is not None:
                results.add(number, scan, known)
        todo = np.flatnonzero(results.open).tolist()
        tasks = (_Task(number, scans[number]) for number in todo)
        with (
            tqdm(total=len(scans), initial=len(scans) - len(todo), desc="check", unit="scan") as progress,
            closing(_spread(tasks, _check, _not_checked, min(processes, len(todo)))) as work,
        ):
            for number, checked in work:
                if checked.stamp is not None:
                    # A line of text takes a fraction of the memory of the parsed object.
                    journal.add(scans[number].name, (), checked.model_dump_json())
                results.add(number, scans[number], checked)
                progress.update()


def _known(journal: Journal, scan: Scan) -> _Checked | None:
    """The result of an earlier run, if neither the files nor the modality of the scan have changed."""
    text = journal.find(scan.name, ())
    if text is None:
        return None
    try:
        checked = _Checked.model_validate_json(text)
        same = checked.modality == scan.modality and checked.stamp == Stamp.of(source_files(scan))
    except (OSError, ScanError, ValidationError):
        return None
    return checked if same else None


def _spread(
    tasks: Iterable[_Task],
    run: Callable[[_Task], Result],
    died: Callable[[_Task, str], Result],
    processes: int,
) -> Generator[Result, None, None]:
    return work_through(tasks, run, died, max(processes, 1), False)


def _check(task: _Task) -> tuple[int, _Checked]:
    scan = task.scan
    try:
        files = source_files(scan)
        stamp = Stamp.of(files)
        with as_scan_error():
            surveyed = _survey(scan, digest(files))
    except OSError as error:
        reason = f"unreadable: {error.strerror}"
    except ScanError as error:
        reason = str(error)
        if not reason.startswith("unreadable"):
            return task.number, _Checked(modality=scan.modality, stamp=stamp, reason=reason)
    else:
        return task.number, _Checked(modality=scan.modality, stamp=stamp, surveyed=surveyed)
    # Disk or memory errors may be temporary.
    return task.number, _Checked(modality=scan.modality, reason=reason)


def _not_checked(task: _Task, reason: str) -> tuple[int, _Checked]:
    return task.number, _Checked(modality=task.scan.modality, reason=reason)


def _survey(scan: Scan, content: str) -> Surveyed:
    volume, statistics = _examine(scan)
    return Surveyed(
        scan=scan.model_copy(update={"digest": content, "files": ()}),
        statistics=statistics,
        voxel_digest=voxel_digest(volume),
        levels=grey_levels(mid_planes(_boxes(volume), volume.array.shape, statistics)),
    )


def _examine(scan: Scan) -> tuple[Volume, Statistics]:
    """A scan as in a store, with its statistics; raises ScanError if `prepare` would reject it."""
    return examine(read_scan(scan), AS_ACQUIRED, scan.modality)


def _draw(task: _Task) -> tuple[int, Drawn | None]:
    try:
        with as_scan_error():
            volume, statistics = _examine(task.scan)
            planes = mid_planes(_boxes(volume), volume.array.shape, statistics)
            return task.number, draw_slices(planes, volume.spacing, task.scan.modality, statistics)
    except (OSError, ScanError):
        return task.number, None


def _not_drawn(task: _Task, _: str) -> tuple[int, Drawn | None]:
    return task.number, None


def _boxes(volume: Volume) -> Read:
    def read(start: Triple, size: Triple) -> np.ndarray:
        box = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
        return replace(volume, array=volume.array[box]).intensities()

    return read
