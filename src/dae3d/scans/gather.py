"""All files that an index reads: from lists, in folders or given one by one, each once."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from dae3d.errors import Dae3dError
from dae3d.scans.ahead import in_threads
from dae3d.scans.dicom.header import is_dicom
from dae3d.scans.index_settings import IndexSettings
from dae3d.scans.layouts.layout import LAYOUTS, Layout
from dae3d.scans.lists import read_list
from dae3d.scans.manifest import LeftOut
from dae3d.scans.other_files import OtherFiles, is_archive
from dae3d.scans.readers import files_read, suffix
from dae3d.scans.sources import Candidate, absolute, files_in, scan_given, scan_in_folder
from dae3d.scans.spool import Spool


class Gathered:
    """The files found, kept on disk in the folder `scratch`.

    `dicom` are the DICOM files, and `roots` the folders that the scans belong to.
    """

    def __init__(self, scratch: Path) -> None:
        self.dicom: Spool[Path] = Spool(scratch)
        self.left_out: Spool[LeftOut] = Spool(scratch)
        self.roots: dict[Path, None] = {}
        self.archives = 0
        self._candidates: Spool[Candidate] = Spool(scratch)
        self._unknown: Spool[Path] = Spool(scratch)
        self._not_dicom: Spool[Path] = Spool(scratch)
        self._other_files = OtherFiles()
        self._places: dict[bytes, int] = {}
        self._held_out: set[int] = set()

    def add(self, item: Candidate | LeftOut) -> None:
        """Add a candidate, unless its file was added before; a second name of a file (a link) is left out.

        A file that any list holds out for validation is held out.
        """
        if isinstance(item, LeftOut):
            self.left_out.add(item)
            return
        key = _key(item)
        place = self._places.get(key)
        if place is None:
            self._places[key] = place = self._candidates.add(item)
            self.roots[item.root] = None
        else:
            first = self._candidates.at(place).path
            if item.path != first:
                self.left_out.add(LeftOut(path=item.path, reason=f"same file as another: {first}"))
        if item.split == "val":
            self._held_out.add(place)

    def add_folder(self, folder: Path, dataset: str | None, visited: set[str]) -> None:
        """Add the files under a folder: scans by their names, and others that may be DICOM."""
        self.roots[folder] = None
        for path in tqdm(files_in(folder, visited), "finding files", unit="file", leave=False, delay=1):
            if isinstance(path, LeftOut):
                self.left_out.add(path)
            elif suffix(path):
                self.add(scan_in_folder(path, folder, dataset))
            elif is_archive(path):
                self.archives += 1
                self._other_files.add(path)
            else:
                self._unknown.add(path)

    def add_layout(self, folder: Path, layout: Layout, dataset: str | None, visited: set[str]) -> None:
        """Add the files under a folder that has the layout of a public data set.

        Raises:
            Dae3dError: if it does not.
        """
        if layout.dicom:
            self.add_folder(folder, dataset, visited)
        else:
            found = layout.candidates(folder, dataset)
            for item in tqdm(found, "finding scans", unit="file", leave=False, delay=1):
                self.add(item)

    def add_given(self, path: Path, dataset: str | None) -> None:
        """Add a single file."""
        if suffix(path) or not is_dicom(path):
            self.add(scan_given(path, dataset))
        else:
            self.roots[path.parent] = None
            self.dicom.add(path)

    def look_for_dicom(self, workers: int) -> None:
        """Find the DICOM files among those of unknown suffix, and count the others as left out."""
        looks = in_threads(is_dicom, self._unknown, workers)
        total = len(self._unknown)
        for path, yes in tqdm(looks, "looking for DICOM", total, unit="file", leave=False, delay=1):
            if yes:
                self.dicom.add(path)
            else:
                self._not_dicom.add(path)
        named = self._named_by_headers(workers) if self._not_dicom else set()
        for path in self._not_dicom:
            if _digest(path) not in named:
                self._other_files.add(path)
        for kind in self._other_files:
            self.left_out.add(kind)

    def _named_by_headers(self, workers: int) -> set[bytes]:
        """Digests of the files that are read together with a header that names them or has the same stem."""
        paths = (candidate.path for _, candidate in self._candidates.items())
        return {_digest(file) for _, files in in_threads(_read_with, paths, workers) for file in files}

    def __len__(self) -> int:
        return len(self._candidates)

    def __iter__(self) -> Iterator[Candidate]:
        """The files that are read one by one."""
        for place, candidate in self._candidates.items():
            yield replace(candidate, split="val") if place in self._held_out else candidate

    def root_of(self, folder: Path) -> Path:
        """The first root that holds `folder`; else the folder itself."""
        return next((root for root in self.roots if folder.is_relative_to(root)), folder)


def gather(settings: IndexSettings, scratch: Path) -> Gathered:
    """Find all files to read. Lists come first, because they give more information than folders.

    Raises:
        Dae3dError: if a source is missing or holds no scans, or a folder does not have the layout.
    """
    sources = [absolute(source) for source in settings.folders]
    for source in sources:
        if not (source.is_file() or source.is_dir()):
            raise Dae3dError(f"{source}: no such folder or file")
    folders = [source for source in sources if source.is_dir()]
    lists = [source for source in sources if source.suffix.lower() == ".json" and source not in folders]
    layout = LAYOUTS[settings.layout] if settings.layout else None
    if layout and not folders:
        raise Dae3dError(f"layout: {settings.layout} is for folders, and no folder is given")
    found = Gathered(scratch)
    for source in lists:
        for candidate in read_list(source, settings.fold, settings.dataset, settings.root):
            found.add(candidate)
    visited: set[str] = set()
    for source in sources:
        if source in folders and layout:
            found.add_layout(source, layout, settings.dataset, visited)
        elif source in folders:
            found.add_folder(source, settings.dataset, visited)
        elif source not in lists:
            found.add_given(source, settings.dataset)
    found.look_for_dicom(settings.workers)
    if layout and layout.dicom:
        for folder in folders:
            if not any(path.is_relative_to(folder) for path in found.dicom):
                raise layout.mismatch(folder)
    return found


def _read_with(path: Path) -> list[Path]:
    try:
        return files_read(path)[1:]
    except OSError:
        return []


def _digest(path: Path) -> bytes:
    return hashlib.blake2b(os.fsencode(absolute(path)), digest_size=16).digest()


def _key(candidate: Candidate) -> bytes:
    """A short key that only candidates for the same scan share."""
    path = candidate.path
    real = os.path.realpath(path) if path.is_symlink() else f"{_real_folder(path.parent)}/{path.name}"
    return hashlib.blake2b(os.fsencode(f"{real}#{candidate.volume}"), digest_size=16).digest()


@lru_cache(maxsize=4096)
def _real_folder(folder: Path) -> str:
    return os.path.realpath(folder)
