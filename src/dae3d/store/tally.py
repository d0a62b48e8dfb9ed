"""Results of a run of `prepare`, kept on disk until they are written in order."""

import csv
import hashlib
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from dae3d.errors import Dae3dError
from dae3d.files import whole_file, writing
from dae3d.scans.spool import Spool
from dae3d.store.convert import Outcome
from dae3d.store.index import IndexHeader, iterate, write_index
from dae3d.store.scan import StoredScan
from dae3d.store.wanted import file_key


class SortedTexts:
    """Texts kept in an anonymous file in `folder`, iterated in the order of their names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._texts: Spool[str] = Spool(folder)
        self._places: list[tuple[str, int]] = []

    def __len__(self) -> int:
        return len(self._places)

    def add(self, name: str, text: str) -> None:
        """Add a text; raises Dae3dError if it cannot be written."""
        with writing(self._folder):
            self._places.append((name, self._texts.add(text)))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self._places.sort()
        return ((name, self._texts.at(place)) for name, place in self._places)


class StoreTally:
    """Lines of the index, rejected scans, and totals for the summary."""

    def __init__(self, folder: Path) -> None:
        self._lines = SortedTexts(folder)
        self._rejected = SortedTexts(folder)
        # 64-bit keys of the scans: of their stored files, and of their contents.
        self.files, self.contents = array("Q"), array("Q")
        self.prepared = self.unseen = self.kept = self.bytes_stored = self.bytes_raw = 0

    @property
    def scans(self) -> int:
        """The number of scans in the store."""
        return len(self._lines)

    @property
    def rejected(self) -> int:
        """The number of rejected scans."""
        return len(self._rejected)

    def count(self, outcome: Outcome) -> None:
        """Count the result for one scan; `unseen` are those kept without their source."""
        if outcome.stored is None:
            self.reject(outcome.name, outcome.reason)
        else:
            self.add(outcome.stored)
            self.prepared += outcome.written
            self.unseen += outcome.unseen

    def add(self, scan: StoredScan) -> None:
        """Count one scan of the store."""
        self._lines.add(scan.source.name, scan.model_dump_json())
        self.files.append(file_key(scan.file))
        self.contents.append(content_key(scan))
        self.bytes_stored += scan.stored_stamp.bytes if scan.stored_stamp else 0
        self.bytes_raw += scan.voxel_bytes

    def keep(self, scan: StoredScan) -> None:
        """Count one scan of the store that the manifest does not list."""
        self.add(scan)
        self.kept += 1

    def reject(self, name: str, reason: str) -> None:
        """Count one rejected scan."""
        self._rejected.add(name, reason)

    def add_part(self, index: Path, rejected: Path) -> None:
        """Count the results of a shard; raises Dae3dError if they are missing or damaged."""
        for scan in iterate(index):
            self.add(scan)
        try:
            with rejected.open(newline="") as file:
                for name, reason in islice(csv.reader(file), 1, None):
                    self.reject(name, reason)
        except (OSError, ValueError, csv.Error) as error:
            raise Dae3dError(f"{rejected}: cannot be read ({error}); run its shard again") from None

    def first_rejected(self, number: int) -> list[tuple[str, str]]:
        """Names and reasons of the first rejected scans."""
        return list(islice(self._rejected, number))

    def write_index(self, path: Path, header: IndexHeader) -> None:
        """Write the index, ordered by the name of the source."""
        counted = header.model_copy(update={"scans": self.scans})
        write_index(path, counted, (line for _, line in self._lines))

    def write_rejected(self, path: Path) -> None:
        """Write the rejected scans as a table, ordered by name."""
        with whole_file(path) as temporary, temporary.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("path", "reason"))
            table.writerows(self._rejected)


def content_key(scan: StoredScan) -> int:
    """A 64-bit key of the content a scan was made from, whatever its path."""
    content = f"{scan.source.digest} {scan.source.volume}"
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest())
