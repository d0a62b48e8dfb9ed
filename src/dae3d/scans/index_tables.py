"""What `index` shows on screen: what there is, what was left out and why, and how to say what is unknown."""

import glob
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dae3d.scans.manifest import LeftOut, Split
from dae3d.scans.modality import DESCRIPTION, LIST_NAMES
from dae3d.scans.readers import scan_stem
from dae3d.scans.sources import Candidate
from dae3d.scans.splits import Member
from dae3d.scans.subjects import sequence_at_end

RULES_SHOWN = 5
_DETAIL = re.compile(r" \([^)]*\)")


@dataclass
class Kind:
    """Files of which the same is to be said, and the first of them."""

    files: int
    example: Path
    detail: str


class Tally:
    """What the tables count, as it comes."""

    def __init__(self) -> None:
        self.members: Counter[Member] = Counter()
        self.left_out: dict[str, Kind] = {}
        self.remarks: dict[str, Kind] = {}
        self.rules: Counter[str] = Counter()

    def add_left_out(self, item: LeftOut) -> None:
        """Count a file, or the files of a series, under what its reason begins with."""
        kind, _, detail = item.reason.partition(": ")
        self.left_out.setdefault(kind, Kind(0, item.path, detail)).files += item.files

    def add_remark(self, path: Path, remark: str) -> None:
        """Count what a user should know of a scan's header."""
        self.remarks.setdefault(_DETAIL.sub("", remark), Kind(0, path, "")).files += 1


def print_tables(tally: Tally, sides: Mapping[str, Split], notes: Sequence[str]) -> None:
    """Print what a manifest holds, with the side of every subject."""
    console = Console(highlight=False)
    if tally.members:
        console.print(_scans_table(tally.members, sides))
    if tally.left_out:
        console.print(_left_out_table(tally.left_out))
    for note in notes:
        console.print(Text(f"note: {note}", "yellow"), soft_wrap=True)
    if tally.rules:
        console.print("A modality is never guessed from a name. Say what these files are by rules:")
        for rule, count in tally.rules.most_common(RULES_SHOWN):
            # Not wrapped, so that it can be copied.
            console.print(Text(f"  --rule {shlex.quote(rule)}  ({count} of them)"), soft_wrap=True)
        if len(tally.rules) > RULES_SHOWN:
            console.print(f"  and {len(tally.rules) - RULES_SHOWN} more rules of this kind,")
        console.print("or by --modality LABEL where all are the same. Label maps can stay left out.")


def rule_for_file(candidate: Candidate) -> str:
    """A rule that names a file and its sisters; LABEL is for the user to fill in."""
    stem = scan_stem(candidate.path)
    ending = candidate.path.name[len(stem) :]
    sequence = sequence_at_end(stem)
    if sequence is None:
        return _rule_for_folder(candidate.shown.rpartition("/")[0], candidate.root)
    before = "" if stem == sequence else f"*{stem[-len(sequence) - 1]}"
    label = LIST_NAMES.get(sequence.lower(), sequence.lower())
    return f"{before}{sequence}{ending}={label}"


def rule_for_series(shown: str, root: Path, description: str) -> str:
    """A rule that names a DICOM series by its description, or where it has none by its folder."""
    if description:
        # Line breaks and what commands a terminal: "?" is any character.
        shown_safely = "".join(c if c.isprintable() else "?" for c in glob.escape(description))
        return f"{DESCRIPTION}{shown_safely}=LABEL"
    return _rule_for_folder(shown.rstrip("/"), root)


def _rule_for_folder(inner: str, root: Path) -> str:
    return f"{'/'.join(filter(None, [root.name, glob.escape(inner)]))}/*=LABEL"


def short(path: Path) -> str:
    """The path as it is shortest: absolute, or from the working folder."""
    return min(str(path), os.path.relpath(path), key=len)


def _scans_table(members: Mapping[Member, int], sides: Mapping[str, Split]) -> Table:
    table = Table(title="scans", title_justify="left")
    table.add_column("modality")
    for name in ("train", "val", "scans", "subjects"):
        table.add_column(name, justify="right")
    modalities = sorted({member.modality for member in members})
    for modality in modalities:
        of_it = [member for member in members if member.modality == modality]
        table.add_row(*_row(modality, of_it, members, sides))
    if len(modalities) > 1:
        table.add_section()
        table.add_row(*_row("all", members, members, sides))
    return table


def _row(
    name: str, some: Iterable[Member], counts: Mapping[Member, int], sides: Mapping[str, Split]
) -> list[str]:
    number: Counter[Split] = Counter()
    subjects = set()
    for member in some:
        number[sides[member.subject]] += counts[member]
        subjects.add(member.subject)
    return [name, *map(str, (number["train"], number["val"], number.total(), len(subjects)))]


def _left_out_table(left_out: Mapping[str, Kind]) -> Table:
    table = Table(title="left out", title_justify="left")
    table.add_column("reason")
    table.add_column("files", justify="right")
    table.add_column("for example", overflow="fold")
    for kind, found in sorted(left_out.items(), key=lambda pair: -pair[1].files):
        example = Text(short(found.example)).append(f"\n{found.detail}" if found.detail else "", "dim")
        table.add_row(kind, str(found.files), example)
    return table
