"""The scans that a store lists before a run of `prepare`, and whether they are kept."""

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
    """The part of an index line that `Earlier` needs."""

    file: str
    source: _Labels


class Earlier:
    """The scans that a store lists before a run of `prepare`, compared with those of the manifest.

    Counts all `scans`; `others` that the manifest does not list; `relabelled` ones whose modality, subject or
    split changes; `moved` ones of the others, which `keep` left out; and `lost` stored files that neither the
    manifest nor the damaged or missing index lists. Keeps 8 bytes per scan in memory.
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
        """The number of scans that the store lists."""
        return len(self._keys)

    def _entries(self) -> Iterator[_Listed | str]:
        try:
            yield from tqdm(
                readable(self._store / INDEX, _Listed), "index", unit="scan", leave=False, delay=1
            )
        except FileNotFoundError:
            yield from stored_files(self._store)

    def refuse_other_preparation(self, preparation: Preparation, again: bool, only: bool) -> None:
        """Raise Dae3dError if the store was prepared with other settings, unless `again`.

        An index has scans of one preparation, and scans that the manifest does not list cannot be prepared
        again. With such scans in the store, `only` is needed too.
        """
        try:
            there = read_index_header(self._store / INDEX).preparation
            if there == preparation:
                return
            how = f"with {_in_words(there)}, not with {_in_words(preparation)}"
        except FileNotFoundError:
            return
        except OtherVersion:
            how = "by another version of dae3d"
        except Dae3dError:
            return  # damaged; the metadata in the stored files will be used
        if not again:
            raise Dae3dError(
                f"{self._store}: was prepared {how}: choose another folder, or prepare all its scans again "
                "with --again"
            )
        if self.others and not only:
            raise Dae3dError(
                f"{self._store}: lists {self.others} scans that {self._wanted.manifest} does not; they "
                "cannot be mixed with scans prepared with other settings: add --only to remove them, or "
                "choose another folder"
            )

    def refuse_both_sides(self) -> None:
        """Raise Dae3dError if a subject of the other scans changes sides in the manifest."""
        for entry in self._entries() if self.others else ():
            if isinstance(entry, str) or entry.file in self._wanted:
                continue
            subject, split = entry.source.subject, entry.source.split
            if self._wanted.has_on_other_side(subject, split):
                there, here = ("training", "validation") if split == "train" else ("validation", "training")
                raise Dae3dError(
                    f"{self._store}: subject {subject} is in {there} there, but in {here} in "
                    f"{self._wanted.manifest}: index all data into one manifest, which puts each subject on "
                    "one side, and prepare that; or choose another folder; or use --only to keep only the "
                    "scans of the manifest in the store"
                )

    def added(self, tally: StoreTally) -> int:
        """The number of scans counted so far that the store did not list."""
        listed = np.array(self._keys, np.uint64)
        return int(np.count_nonzero(~np.isin(np.array(tally.files, np.uint64), listed)))

    def keep(self, tally: StoreTally, preparation: Preparation) -> None:
        """Add the other scans, except those whose file is gone and whose content is in the manifest.

        If the first line of the index is damaged, scans of other preparations may be in it; they are lost.
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
                "%s: %d scans are stored twice, from different paths, and drawn twice as often, such as %s",
                self._store,
                twice,
                example,
            )

    def warn_of_lost(self) -> None:
        """Warn that scans may have been lost with a part of the index."""
        if self.lost:
            _log.warning(
                "%s: its index was missing or damaged; %d stored files are neither in it nor in %s; prepare "
                "their manifests too, or delete them with `dae3d store check --prune`",
                self._store,
                self.lost,
                self._wanted.manifest,
            )


def _in_words(preparation: Preparation) -> str:
    spacing = "as acquired"
    if preparation.spacing:
        spacing = " ".join(f"{side:g}" for side in preparation.spacing)
    return f"spacing {spacing} and crop_foreground {'on' if preparation.crop_foreground else 'off'}"
