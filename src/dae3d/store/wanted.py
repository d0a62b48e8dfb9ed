"""The scans of a manifest that a run of `prepare` handles, with a few bytes each in memory."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dae3d.errors import Dae3dError, ScanError
from dae3d.scans.manifest import Manifest, Scan, Split
from dae3d.scans.read import source_files
from dae3d.store.convert import Outcome, described, measured_alike
from dae3d.store.index import iterate, read_index_header
from dae3d.store.scan import SCANS, Preparation, StoredScan, file_name
from dae3d.store.shards import Shard
from dae3d.store.source import Stamp


class Wanted:
    """The scans of a manifest, or of one shard, and which of them are still to be done.

    Raises:
        Dae3dError: if the manifest cannot be used, lists no scans, or lists one twice.
    """

    def __init__(self, manifest: Path, shard: Shard | None = None) -> None:
        self._scans = Manifest.load(manifest).scans
        if not self._scans:
            raise Dae3dError(f"{manifest}: lists no scans")
        listed = tqdm(self._scans, desc="manifest", unit="scan", leave=False, delay=1)
        pairs = ((file_key(file_name(scan)), _side_key(scan.subject, scan.split)) for scan in listed)
        both = np.fromiter(pairs, np.dtype((np.uint64, 2)), len(self._scans))
        keys, self._sides = both[:, 0], np.unique(both[:, 1])
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self.manifest = manifest
        twice = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        if len(twice):
            raise Dae3dError(f"{manifest}: lists {self._scans[int(self._order[twice[0]])].name} twice")
        self._mine = slice(shard.number, None, shard.of) if shard else slice(None)
        self._open = np.zeros(len(keys), bool)
        self._open[self._mine] = True

    def __len__(self) -> int:
        """The number of scans of this run, done or not."""
        return len(self._open[self._mine])

    @property
    def to_do(self) -> int:
        """The number of scans that are still to be done."""
        return int(np.count_nonzero(self._open))

    def still_to_do(self) -> Iterator[Scan]:
        """The scans that are still to be done, with absolute paths."""
        return map(self._scan, np.flatnonzero(self._open))

    def unchanged(self, store: Path, indexes: Iterable[Path], preparation: Preparation) -> Iterator[Outcome]:
        """Scans unchanged by the index of an earlier run, found without opening them; marks them as done."""
        for scan, stored in self._as_listed(store, indexes, preparation):
            try:
                source: Stamp | None = Stamp.of(source_files(scan))
            except (OSError, ScanError):
                source = None
            if source in (None, stored.source_stamp):
                self.done(stored.file)
                yield Outcome.kept(described(stored, scan, stored.source_stamp), unseen=source is None)

    def not_looked_at(
        self, store: Path, indexes: Iterable[Path], preparation: Preparation
    ) -> Iterator[Outcome]:
        """The stored versions of scans still to be done, whether or not their sources have changed."""
        for scan, stored in self._as_listed(store, indexes, preparation):
            self.done(stored.file)
            yield Outcome.kept(described(stored, scan, stored.source_stamp))

    def __contains__(self, file: str) -> bool:
        """Whether the manifest lists the scan with that stored file, in this shard or another."""
        return self._number(file) is not None

    def find(self, file: str) -> Scan | None:
        """The manifest's entry of the scan with that stored file."""
        number = self._number(file)
        return None if number is None else self._scan(number)

    def has_on_other_side(self, subject: str, split: Split) -> bool:
        """Whether the manifest has a scan of the subject on the other side of the split."""
        other = _side_key(subject, "train" if split == "val" else "val")
        place = np.searchsorted(self._sides, np.uint64(other))
        return bool(place < len(self._sides) and int(self._sides[place]) == other)

    def done(self, file: str) -> None:
        """Count the scan with that stored file as done."""
        number = self._number(file)
        if number is not None:
            self._open[number] = False

    def _as_listed(
        self, store: Path, indexes: Iterable[Path], preparation: Preparation
    ) -> Iterator[tuple[Scan, StoredScan]]:
        """Scans still to be done whose stored files match their entries in the indexes."""
        for index in indexes:
            try:
                header = read_index_header(index)
                if header.preparation != preparation:
                    continue
                listed = iterate(index)
                for stored in tqdm(listed, "unchanged", header.scans, unit="scan", leave=False, delay=1):
                    number = self._number(stored.file)
                    if number is None or not self._open[number]:
                        continue
                    scan = self._scan(number)
                    if measured_alike(stored, scan) and _unchanged(store / SCANS / stored.file, stored):
                        yield scan, stored
            except (FileNotFoundError, Dae3dError):
                continue  # slower: the metadata in the stored files will be read

    def _scan(self, number: int | np.integer) -> Scan:
        scan = self._scans[int(number)]
        return scan.model_copy(update={"path": Path(os.path.abspath(scan.path))})

    def _number(self, file: str) -> int | None:
        key = file_key(file)
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        found = place < len(self._keys) and int(self._keys[place]) == key
        return int(self._order[place]) if found else None


def _unchanged(file: Path, stored: StoredScan) -> bool:
    """Whether a stored file has not been touched since the index was written."""
    try:
        return Stamp.of([file]) == stored.stored_stamp
    except (OSError, ScanError):
        return False


def file_key(file: str) -> int:
    """A 64-bit key of a stored file's name; collisions within a store are negligible."""
    return _key(file)


def _side_key(subject: str, split: Split) -> int:
    return _key(f"{split} {subject}")


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest())
