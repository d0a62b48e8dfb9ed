"""The counts that `index` reports."""

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dae3d.scans.describe import Described, Teller
from dae3d.scans.manifest import LeftOut
from dae3d.scans.splits import Member

_DETAIL = re.compile(r" \([^)]*\)")


@dataclass
class CountedFiles:
    """The number of files that share a reason or remark, and the first of them."""

    files: int
    example: Path
    detail: str


class IndexCounts:
    """The counts shown in the tables, updated file by file.

    `tellers` counts the scans by the source of their subject, `by_name` holds the subjects known by names
    alone, `not_asked` is the first scan without a subject by the user's settings, and `unused` the paths in a
    table of subjects that match no scan.
    """

    def __init__(self) -> None:
        self.members: Counter[Member] = Counter()
        self.tellers: Counter[Teller] = Counter()
        self.by_name: set[str] = set()
        self.not_asked: Path | None = None
        self.unused: Sequence[str] = ()
        self.left_out: dict[str, CountedFiles] = {}
        self.remarks: dict[str, CountedFiles] = {}
        self.rules: Counter[str] = Counter()

    def add(self, item: Described) -> None:
        """Count a scan that can be used."""
        # Equal strings are kept in memory once.
        subject, modality = sys.intern(item.scan.subject), sys.intern(item.scan.modality)
        self.members[Member(subject, modality, item.given)] += 1
        self.tellers[item.teller] += 1
        if item.teller == "name":
            self.by_name.add(subject)
        if item.teller != "user" and self.not_asked is None:
            self.not_asked = item.scan.path
        if item.remark:
            self.add_remark(item.scan.path, item.remark)

    def named(self) -> dict[str, frozenset[str]]:
        """The modalities of each subject known by names alone."""
        found: dict[str, frozenset[str]] = {}
        for member in self.members:
            if member.subject in self.by_name:
                found[member.subject] = _with(found.get(member.subject, _NONE), member.modality)
        return found

    def rename(self, subject_of: Mapping[str, str]) -> None:
        """Move the counts of subjects to their new names."""
        for member in [member for member in self.members if member.subject in subject_of]:
            self.members[member._replace(subject=subject_of[member.subject])] += self.members.pop(member)
        self.by_name -= subject_of.keys()

    def add_left_out(self, item: LeftOut) -> None:
        """Count a file, or the files of a series, under the first part of its reason."""
        kind, _, detail = item.reason.partition(": ")
        self.left_out.setdefault(kind, CountedFiles(0, item.path, detail)).files += item.files

    def add_remark(self, path: Path, remark: str) -> None:
        """Count a note on a scan's header."""
        self.remarks.setdefault(_DETAIL.sub("", remark), CountedFiles(0, path, "")).files += 1


_NONE: frozenset[str] = frozenset()


@cache
def _with(modalities: frozenset[str], modality: str) -> frozenset[str]:
    """A set with one more element; equal sets are kept in memory once."""
    return modalities | {modality}
