"""Describes a file or a DICOM series, from its header, the user's rules, lists and layouts."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dae3d.errors import ScanError, as_scan_error
from dae3d.scans.dicom.contradiction import contradiction
from dae3d.scans.dicom.finder import FoundSeries
from dae3d.scans.header_cache import FileFacts, HeaderCache, VoxelInfo
from dae3d.scans.index_settings import IndexSettings
from dae3d.scans.layouts.layout import LAYOUTS
from dae3d.scans.manifest import LeftOut, Scan, Split
from dae3d.scans.modality import label_by_bids, label_by_rules, matches, parse_rule
from dae3d.scans.readers import scan_stem
from dae3d.scans.rule_hints import rule_for_file, rule_for_series
from dae3d.scans.sources import Candidate
from dae3d.scans.subject_table import SubjectTable
from dae3d.scans.subjects import subject_by_bids, subject_in_path

UNKNOWN = "unknown modality"

Teller = Literal["user", "source", "name"]


@dataclass(frozen=True)
class Described:
    """A scan that can be used, before its subject is assigned to a split.

    `given` is the split in a list; `teller` is where its subject comes from: the user's settings, a list,
    layout, header or BIDS name ("source"), or file names alone; `remark` is a note on its header.
    """

    scan: Scan
    given: Split | None
    teller: Teller
    remark: str


@dataclass(frozen=True)
class Undescribed:
    """A file or series that is left out; `rule` would give its modality, if only that is missing."""

    left_out: LeftOut
    rule: str | None = None


class Describer:
    """Describes files and series. Threads may share it."""

    def __init__(self, settings: IndexSettings, roots: Collection[Path], headers: HeaderCache) -> None:
        self._settings = settings
        self._rules = [parse_rule(rule) for rule in settings.rule]
        self._layout = LAYOUTS[settings.layout] if settings.layout else None
        self._roots = roots
        self._headers = headers
        self._table = SubjectTable(settings.subjects) if settings.subjects else None

    def file(self, candidate: Candidate) -> list[Described] | Undescribed | None:
        """The scans of a file, or why it is left out; None for a DICOM file with another suffix."""
        path = candidate.path
        reason = self._excluded(candidate.shown, candidate.root.name)
        if reason:
            return _refused(path, reason)
        facts = self._facts(path)
        if facts.dicom:
            listed = candidate.modality or candidate.subject or candidate.split
            return _refused(path, "DICOM file, despite its name; index its folder") if listed else None
        if facts.voxels is None:
            return _refused(path, str(facts.reason))
        parts = self._parts(candidate, facts.volumes)
        reason = self._absent(candidate, facts) or (self._thin(facts.voxels.shape) if parts else facts.reason)
        if reason:
            return _refused(path, reason)
        described = []
        for volume, modality in parts:
            if modality is None:
                said = f": called {candidate.unread!r}" if candidate.unread else ""
                return Undescribed(LeftOut(path=path, reason=UNKNOWN + said), rule_for_file(candidate))
            subject, teller = self._subject_of(candidate)
            scan = self._scan(candidate, facts.voxels, volume, modality, subject)
            described.append(Described(scan, candidate.split, teller, facts.remark))
        return described

    def _facts(self, path: Path) -> FileFacts:
        try:
            with as_scan_error():
                return self._headers.facts(path)
        except ScanError as error:
            return FileFacts(reason=str(error))
        except FileNotFoundError:
            return FileFacts(reason="missing file")
        except OSError as error:
            return FileFacts(reason=f"unreadable: {error.strerror}")

    def _parts(self, candidate: Candidate, count: int) -> Sequence[tuple[int | None, str | None]]:
        """Which of a file's volumes are scans, and their modalities; None is the whole file."""
        modality = self._modality(candidate)
        if count == 1:
            return [(None, modality)]
        if candidate.volume is not None:
            return [(candidate.volume, modality)]
        if count == len(self._settings.channels):
            return list(enumerate(self._settings.channels))
        return [(volume, modality) for volume in self._chosen(count)]

    def _chosen(self, count: int) -> Sequence[int]:
        """Which volumes of a time series are scans."""
        chosen = self._settings.volume
        if isinstance(chosen, int):
            return range(count)[chosen : chosen + 1]
        return {"none": range(0), "first": range(1), "middle": [count // 2], "all": range(count)}[chosen]

    def _modality(self, candidate: Candidate) -> str | None:
        return (
            label_by_rules(self._rules, candidate.shown, candidate.root.name)
            or self._settings.modality
            or candidate.modality
            or label_by_bids(scan_stem(candidate.path))
        )

    def _scan(
        self, candidate: Candidate, voxels: VoxelInfo, volume: int | None, modality: str, subject: str
    ) -> Scan:
        return Scan(
            path=candidate.path,
            modality=modality,
            subject=subject,
            dataset=candidate.dataset,
            split=candidate.split or "train",
            **voxels.model_dump(),
            volume=volume,
        )

    def series(self, found: FoundSeries, root: Path) -> Described | Undescribed:
        """The scan of a DICOM series under `root`, or why it is left out."""
        shown = found.folder.relative_to(root).as_posix() + "/" if found.folder != root else ""
        place = (shown, root.name, found.description, found.protocol)
        reason = (
            self._excluded(*place)
            or self._thin(found.header.shape)
            or (self._layout and self._layout.refuses(found.modality, found.scanner))
            or self._not_chosen(found)
        )
        if reason:
            return _refused(found.folder, reason, len(found.files))
        modality = label_by_rules(self._rules, *place) or self._settings.modality or found.modality
        if modality is None:
            left_out = LeftOut(path=found.folder, reason=UNKNOWN, files=len(found.files))
            return Undescribed(left_out, rule_for_series(shown, root, found.description or found.protocol))
        wrong = None if self._settings.force_modality else contradiction(modality, found.scanner)
        if wrong:
            return _refused(found.folder, wrong, len(found.files))
        asked = self._asked(found.folder, shown)
        scan = Scan(
            path=found.folder,
            modality=modality,
            subject=asked or found.subject,
            dataset=self._settings.dataset or self._settings.layout or root.name,
            split="train",
            **VoxelInfo.of(found.header).model_dump(),
            series=found.series,
            study=found.study,
            files=found.files,
        )
        return Described(scan, None, "user" if asked else "source", found.header.remark)

    def _not_chosen(self, found: FoundSeries) -> str | None:
        if found.volumes == 1 or found.volume in self._chosen(found.volumes):
            return None
        return f"4-D: volume {found.volume} of {found.volumes} in a series"

    def _absent(self, candidate: Candidate, facts: FileFacts) -> str | None:
        """Why a 4-D file does not have the volumes asked for."""
        count, channels = facts.volumes, self._settings.channels
        asked = self._settings.volume if candidate.volume is None else candidate.volume
        if candidate.volumes is not None and candidate.volumes != count:
            return f"has {count} volumes, but the list names {candidate.volumes} channels"
        if count == 1 and candidate.volume is None:
            return None
        if isinstance(asked, int) and asked >= count:
            return f"no volume {asked}: it has {count}, counted from 0"
        if channels and asked == "none" and count != len(channels):
            return f"4-D: {count} volumes, but --channels names {len(channels)}"
        return None

    def _excluded(self, *place: str) -> str | None:
        glob = next((glob for glob in self._settings.exclude if matches(glob, *place)), None)
        return None if glob is None else f"excluded: {glob}"

    def _thin(self, shape: Sequence[int]) -> str | None:
        if min(shape) >= self._settings.min_slices:
            return None
        times = "x".join(map(str, shape))
        return f"fewer than {self._settings.min_slices} voxels along an axis (--min-slices): shape {times}"

    def unused_paths(self) -> list[str]:
        """The paths of the table of subjects that belong to no scan."""
        return self._table.unused() if self._table else []

    def _subject_of(self, candidate: Candidate) -> tuple[str, Teller]:
        """The subject of a file's scans, and its source."""
        if asked := self._asked(candidate.path, candidate.shown):
            return asked, "user"
        if candidate.subject:
            return candidate.subject, "name" if candidate.by_name else "source"
        if bids := subject_by_bids(candidate.case, self._roots):
            return bids, "source"
        return subject_in_path(candidate.case, self._roots), "name"

    def _asked(self, path: Path, shown: str) -> str | None:
        """The subject by the user's table or pattern."""
        told = self._table.subject(path, shown) if self._table else None
        if told:
            return told
        match = re.search(self._settings.subject, shown) if self._settings.subject else None
        return match[1] if match else None


def _refused(path: Path, reason: str, files: int = 1) -> Undescribed:
    return Undescribed(LeftOut(path=path, reason=reason, files=files))
