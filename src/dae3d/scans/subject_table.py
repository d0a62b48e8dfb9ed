"""A table of the subjects of files: columns `path` and `subject`, as .csv or .tsv."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dae3d.errors import Dae3dError


class SubjectTable:
    """The subjects of scans by their paths.

    A path is that of a scan, of a DICOM series' folder or of any folder above them: absolute, or relative to
    the folder that is indexed. The longest that matches is used. Threads may share it.

    Raises:
        Dae3dError: if it cannot be read, lacks a column or a value, or has a path twice with different
            subjects; names the file and the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._subjects: dict[str, str] = {}
        self._used: set[str] = set()
        for line, name, subject in _rows(path):
            if self._subjects.setdefault(name, subject) != subject:
                raise Dae3dError(f"{path}: line {line}: {name} has another subject in an earlier line")

    def subject(self, path: Path, shown: str) -> str | None:
        """The subject of a scan at `path` (absolute), `shown` relative to the folder that is indexed."""
        for place in (PurePosixPath(shown), PurePosixPath(path)):
            for name in map(str, (place, *place.parents)):
                if name in self._subjects:
                    self._used.add(name)
                    return self._subjects[name]
        return None

    def unused(self) -> list[str]:
        """The paths that matched no scan."""
        return [name for name in self._subjects if name not in self._used]


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    try:
        tabs = path.suffix.lower() == ".tsv"
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter="\t" if tabs else ",")
            lacking = [name for name in ("path", "subject") if name not in (table.fieldnames or ())]
            if lacking:
                raise Dae3dError(
                    f"{path}: not a table of subjects: its first line must name the columns path and "
                    f"subject, and lacks {' and '.join(lacking)} ({'tabs' if tabs else 'commas'} between "
                    "them)"
                )
            for row in table:
                name, subject = ((row[column] or "").strip() for column in ("path", "subject"))
                if not name or not subject:
                    raise Dae3dError(f"{path}: line {table.line_num}: has no {'subject' if name else 'path'}")
                yield table.line_num, os.path.normpath(name), subject
    except (OSError, UnicodeError, csv.Error) as error:
        raise Dae3dError(f"{path}: cannot be read: {error}") from None
