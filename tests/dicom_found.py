"""Series of DICOM files that are found."""

from pathlib import Path

from pydicom.uid import (
    generate_uid,
)

from dae3d.scans.dicom.finder import FoundSeries, find_series
from dae3d.scans.manifest import LeftOut

SALT = b"salt of the tests"


def find(folder: Path, salt: bytes = SALT, workers: int = 2) -> tuple[list[FoundSeries], list[LeftOut]]:
    """What is found in a folder, and that every file of it is accounted for."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    answers = list(find_series(files, salt, workers))
    found = [answer for answer in answers if isinstance(answer, FoundSeries)]
    left_out = [answer for answer in answers if isinstance(answer, LeftOut)]
    taken = [one.folder / name for one in found for name in one.files]
    assert len(taken) == len(set(taken))
    assert all(path in files for path in taken)
    assert len(taken) + sum(one.files for one in left_out) == len(files)
    return found, left_out


def one_series() -> dict[str, str]:
    """Identifiers for what is written in several calls."""
    return {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()}


def reasons(left_out: list[LeftOut]) -> dict[str, int]:
    return {one.reason: one.files for one in left_out}
