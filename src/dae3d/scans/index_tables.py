"""What `index` shows on screen: what there is, what was left out and why, and how to say what is unknown."""

import glob
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dae3d.scans.manifest import LeftOut, Manifest, Scan
from dae3d.scans.modality import LIST_NAMES
from dae3d.scans.readers import scan_stem
from dae3d.scans.sources import Candidate
from dae3d.scans.subjects import sequence_at_end

RULES_SHOWN = 5


def print_tables(manifest: Manifest, notes: Sequence[str], unknown: Sequence[Candidate]) -> None:
    """Print what a manifest holds; `unknown` are the files left out for want of a modality."""
    console = Console(highlight=False)
    if manifest.scans:
        console.print(_scans_table(manifest.scans))
    if manifest.left_out:
        console.print(_left_out_table(manifest.left_out))
    for note in notes:
        console.print(Text(f"note: {note}", "yellow"), soft_wrap=True)
    if unknown:
        console.print("A modality is never guessed from a name. Say what these files are by rules:")
        for rule, count in example_rules(unknown):
            # Not wrapped, so that it can be copied.
            console.print(Text(f"  --rule {shlex.quote(rule)}  ({count} of them)"), soft_wrap=True)
        console.print("or by --modality LABEL where all are the same. Label maps can stay left out.")


def example_rules(unknown: Sequence[Candidate]) -> list[tuple[str, int]]:
    """Rules that name most of the unknown scans, and how many each does; LABEL is for the user to fill in."""
    counts = Counter(_example_rule(candidate) for candidate in unknown)
    return counts.most_common(RULES_SHOWN)


def _example_rule(candidate: Candidate) -> str:
    stem = scan_stem(candidate.path)
    ending = candidate.path.name[len(stem) :]
    sequence = sequence_at_end(stem)
    if sequence is None:
        inner = candidate.shown.rpartition("/")[0]
        return f"{'/'.join(filter(None, [candidate.root.name, glob.escape(inner)]))}/*=LABEL"
    before = "" if stem == sequence else f"*{stem[-len(sequence) - 1]}"
    label = LIST_NAMES.get(sequence.lower(), sequence.lower())
    return f"{before}{sequence}{ending}={label}"


def _scans_table(scans: Sequence[Scan]) -> Table:
    table = Table(title="scans", title_justify="left")
    table.add_column("modality")
    for name in ("train", "val", "scans", "subjects"):
        table.add_column(name, justify="right")
    modalities = sorted({scan.modality for scan in scans})
    for modality in modalities:
        table.add_row(*_row(modality, [scan for scan in scans if scan.modality == modality]))
    if len(modalities) > 1:
        table.add_section()
        table.add_row(*_row("all", scans))
    return table


def _row(name: str, scans: Sequence[Scan]) -> list[str]:
    train = sum(scan.split == "train" for scan in scans)
    subjects = len({scan.subject for scan in scans})
    return [name, *map(str, (train, len(scans) - train, len(scans), subjects))]


def _left_out_table(left_out: Sequence[LeftOut]) -> Table:
    table = Table(title="left out", title_justify="left")
    table.add_column("reason")
    table.add_column("files", justify="right")
    table.add_column("for example", overflow="fold")
    kinds: dict[str, list[LeftOut]] = {}
    for item in left_out:
        kinds.setdefault(item.reason.partition(":")[0], []).append(item)
    for kind, items in sorted(kinds.items(), key=lambda pair: -len(pair[1])):
        detail = items[0].reason.partition(": ")[2]
        example = Text(_short(items[0].path)).append(f"\n{detail}" if detail else "", "dim")
        table.add_row(kind, str(len(items)), example)
    return table


def _short(path: Path) -> str:
    """The path as it is shortest: absolute, or from the working folder."""
    return min(str(path), os.path.relpath(path), key=len)
