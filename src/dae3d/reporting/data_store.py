"""The report page of a store, made from its index and a few slices."""

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dae3d.errors import Dae3dError
from dae3d.reporting.data_outliers import label_candidates
from dae3d.reporting.data_pictures import Drawn, draw_slices, grey_levels, mid_planes
from dae3d.reporting.data_report import PAGE, write_data_report
from dae3d.reporting.data_survey import Surveyed, survey
from dae3d.scans.manifest import LeftOut
from dae3d.store.scan import REJECTED, StoredScan
from dae3d.store.store import Store


def report_store(store: Path) -> Path:
    """Write `data-report.html` into a store: contents, outliers and duplicates.

    Reads the index once, and slices of at most a few hundred scans.

    Returns:
        The page's path.

    Raises:
        Dae3dError: if there is no store, or the page cannot be written.
    """
    opened = Store(store)

    def look(number: int) -> Surveyed:
        return _surveyed(opened.scans[number])

    def drawn(numbers: Sequence[int]) -> Iterator[tuple[int, Drawn | None]]:
        for number in tqdm(numbers, "drawing", unit="scan", leave=False, delay=1):
            scan = opened.scans[number]
            planes = _planes(opened, number)
            picture = draw_slices(planes, scan.spacing, scan.modality, scan.statistics) if planes else None
            yield number, picture

    scans = tqdm(opened.scans, "data report", unit="scan", leave=False, delay=1)
    found = survey(map(_surveyed, scans))
    for number in label_candidates(found):
        count = grey_levels(_planes(opened, number) or ())
        found.rows["levels"][number] = -1 if count is None else count
    return write_data_report(
        store / PAGE, store.absolute().name, found, look, drawn, _rejected(store / REJECTED)
    )


def _surveyed(scan: StoredScan) -> Surveyed:
    return Surveyed(scan=scan.source, statistics=scan.statistics, voxel_digest=scan.voxel_digest)


def _planes(store: Store, number: int) -> list[np.ndarray] | None:
    """The mid-slices of a scan; None if its file is missing or damaged (shown on the page)."""
    scan = store.scans[number]
    try:
        return mid_planes(partial(store.read, number), scan.shape, scan.statistics)
    except Dae3dError:
        return None


def _rejected(path: Path) -> Iterator[LeftOut]:
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                yield LeftOut(path=Path(row["path"]), reason=row["reason"])
