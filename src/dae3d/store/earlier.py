"""What a store lists before a run of `prepare`, which adds to it, and what becomes of that."""

import logging
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel
from tqdm import tqdm

from dae3d.errors import Dae3dError
from dae3d.scans.manifest import Split
from dae3d.store.index import INDEX, OtherVersion, read_index_header, readable
from dae3d.store.place import stored_files
from dae3d.store.scan import Preparation, StoredScan
from dae3d.store.tally import StoreTally, content_key
from dae3d.store.wanted import Wanted, file_key

_log = logging.getLogger(__name__)


class _Labels(BaseModel):
    modality: str
    subject: str
    split: Split


class _Listed(BaseModel):
    """The part of a line of the index that says whose scan it is."""

    file: str
    source: _Labels


class Earlier:
    """The scans that a store lists before a run of `prepare`, compared with those that the run wants.

    `scans` is the number of all of them, `others` of those that are not wanted, and `relabelled` of those
    that are to have another modality, subject or split. `moved` counts the others that `keep` left out.
    `lost` counts stored files that are not wanted and that a damaged or missing index does not list.

    Holds 8 bytes of each scan.
    """

    def __init__(self, store: Path, wanted: Wanted) -> None:
        self._store, self._wanted = store, wanted
        self._keys = array("Q")
        self.others = self.relabelled = self.lost = self.moved = 0
        for entry in self._entries():
            if isinstance(entry, str):
                self.lost += entry not in wanted
                continue
            self._keys.append(file_key(entry.file))
            scan, was = wanted.find(entry.file), entry.source
            if scan is None:
                self.others += 1
            else:
                self.relabelled += (scan.modality, scan.subject, scan.split) != (
                    *(was.modality, was.subject, was.split),
                )

    @property
    def scans(self) -> int:
        """How many scans the store lists."""
        return len(self._keys)

    def _entries(self) -> Iterator[_Listed | str]:
        try:
            yield from tqdm(
                readable(self._store / INDEX, _Listed), "index", unit="scan", leave=False, delay=1
            )
        except FileNotFoundError:
            yield from stored_files(self._store)

    def refuse_other_preparation(self, preparation: Preparation, again: bool, only: bool) -> None:
        """Raise Dae3dError where the store was prepared otherwise, and is not to be prepared `again`.

        What a manifest does not list cannot be prepared again, and stays only in an index of its own kind: it
        must be said that the store is to hold `only` what is wanted.
        """
        try:
            there = read_index_header(self._store / INDEX).preparation
            if there == preparation:
                return
            how = f"with {_words(there)}, not with {_words(preparation)}"
        except FileNotFoundError:
            return
        except OtherVersion:
            how = "by another version of dae3d"
        except Dae3dError:
            return  # damaged; the stored files say how they were prepared
        if not again:
            raise Dae3dError(
                f"{self._store}: was prepared {how}: name another folder, or prepare all its scans again "
                "with --again"
            )
        if self.others and not only:
            raise Dae3dError(
                f"{self._store}: lists {self.others} scans that {self._wanted.manifest} does not, and which "
                "cannot stay beside scans that are prepared otherwise: add --only to take them out, or name "
                "another folder"
            )

    def refuse_both_sides(self) -> None:
        """Raise Dae3dError where wanted scans put a subject of the others on the other side of the split."""
        for entry in self._entries() if self.others else ():
            if isinstance(entry, str) or entry.file in self._wanted:
                continue
            subject, split = entry.source.subject, entry.source.split
            if self._wanted.has_on_other_side(subject, split):
                there, here = ("training", "validation") if split == "train" else ("validation", "training")
                raise Dae3dError(
                    f"{self._store}: subject {subject} is in {there} in it, and in {here} in "
                    f"{self._wanted.manifest}: index all data into one manifest, which puts each subject on "
                    "one side, and prepare that; or name another folder; or, with --only, let the store hold "
                    "what the manifest lists and nothing else"
                )

    def added(self, tally: StoreTally) -> int:
        """How many of the scans that a run has counted so far the store did not list."""
        listed = np.array(self._keys, np.uint64)
        return int(np.count_nonzero(~np.isin(np.array(tally.files, np.uint64), listed)))

    def keep(self, tally: StoreTally, preparation: Preparation) -> None:
        """Count the others too, but for those whose file is gone while its content is among the wanted.

        In an index whose first line is damaged, some may be of another preparation; these are lost.
        """
        if not self.others:
            return
        contents = np.sort(np.array(tally.contents, np.uint64))
        twice, example = 0, ""
        self.lost = 0
        for scan in readable(self._store / INDEX, StoredScan):
            if (scan if isinstance(scan, str) else scan.file) in self._wanted:
                continue
            if isinstance(scan, str) or scan.preparation != preparation:
                self.lost += 1
                continue
            place = np.searchsorted(contents, np.uint64(content_key(scan)))
            if place < len(contents) and int(contents[place]) == content_key(scan):
                if not os.path.lexists(scan.path):
                    self.moved += 1
                    continue
                twice, example = twice + 1, example or scan.source.name
            tally.keep(scan)
        if twice:
            _log.warning(
                "%s: %d scans are there under another path as well, such as %s, and are drawn twice as often",
                self._store,
                twice,
                example,
            )

    def warn_of_lost(self) -> None:
        """Say that scans may have left the index with a part of it."""
        if self.lost:
            _log.warning(
                "%s: its index was missing or damaged, and does not list %d stored files that %s does not "
                "list either; prepare the manifests they are of as well, or delete them with `dae3d store "
                "check --prune`",
                self._store,
                self.lost,
                self._wanted.manifest,
            )


def _words(preparation: Preparation) -> str:
    spacing = "as acquired"
    if preparation.spacing:
        spacing = " ".join(f"{side:g}" for side in preparation.spacing)
    return f"spacing {spacing} and crop_foreground {'on' if preparation.crop_foreground else 'off'}"
