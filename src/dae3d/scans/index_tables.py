"""The tables of `index`: the scans found, what was left out and why, and rules to complete."""

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dae3d.scans.index_counts import CountedFiles, IndexCounts
from dae3d.scans.manifest import Split
from dae3d.scans.splits import Member

RULES_SHOWN = 5


def print_tables(counts: IndexCounts, sides: Mapping[str, Split], notes: Sequence[str]) -> None:
    """Print what a manifest holds; `sides` has the split of every subject."""
    console = Console(highlight=False)
    if counts.members:
        console.print(_scans_table(counts.members, sides))
    if counts.left_out:
        console.print(_left_out_table(counts.left_out))
    for note in notes:
        console.print(Text(f"note: {note}", "yellow"), soft_wrap=True)
    if counts.rules:
        console.print("Modalities are not guessed from names. Say what these files are with rules:")
        for rule, count in counts.rules.most_common(RULES_SHOWN):
            # Not wrapped, so that it can be copied.
            console.print(Text(f"  --rule {shlex.quote(rule)}  ({count} of them)"), soft_wrap=True)
        if len(counts.rules) > RULES_SHOWN:
            console.print(f"  and {len(counts.rules) - RULES_SHOWN} more rules of this kind,")
        console.print("or with --modality LABEL if all are the same. Label maps can stay left out.")


def short(path: Path) -> str:
    """The path, absolute or relative to the working folder, whichever is shorter."""
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


def _left_out_table(left_out: Mapping[str, CountedFiles]) -> Table:
    table = Table(title="left out", title_justify="left")
    table.add_column("reason")
    table.add_column("files", justify="right")
    table.add_column("for example", overflow="fold")
    for kind, found in sorted(left_out.items(), key=lambda pair: -pair[1].files):
        example = Text(short(found.example)).append(f"\n{found.detail}" if found.detail else "", "dim")
        table.add_row(kind, str(found.files), example)
    return table
