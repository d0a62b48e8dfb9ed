"""The notes below the tables of `index`: on headers, on how subjects were found, and on the split."""

from collections import Counter
from collections.abc import Collection, Mapping

from dae3d.scans.grouping import Grouping
from dae3d.scans.index_counts import IndexCounts
from dae3d.scans.index_settings import IndexSettings
from dae3d.scans.index_tables import short
from dae3d.scans.manifest import Split
from dae3d.scans.splits import Member, straddling

_DOUBTS_SHOWN = 3

# With fewer scans, one subject often has most of them.
_FEW_SCANS = 10


def notes_on(
    counts: IndexCounts,
    grouping: Grouping,
    sides: Mapping[str, Split],
    archives: int,
    settings: IndexSettings,
) -> list[str]:
    """The notes to print after the tables."""
    notes = []
    if archives:
        notes.append(f"archives (.zip, .tar.gz) are not read: {archives}; unpack those that hold scans")
    if "4-D" in counts.left_out:
        notes.append("4-D files: --volume takes one volume, or all; --channels LABEL LABEL ... labels each")
    for remark, kind in counts.remarks.items():
        notes.append(f"in {kind.files} of the scans, {remark}; for example {short(kind.example)}")
    if not counts.members:
        return notes
    return [
        *notes,
        *_subject_notes(counts, grouping, settings),
        *_one_for_all(counts.members),
        *_split_notes(counts.members, sides, settings.val_fraction),
    ]


def _subject_notes(counts: IndexCounts, grouping: Grouping, settings: IndexSettings) -> list[str]:
    notes = []
    asked = " and ".join(f"--{name}" for name in ("subject", "subjects") if getattr(settings, name))
    if asked and counts.not_asked:
        total = counts.tellers.total()
        others = total - counts.tellers["user"]
        notes.append(
            f"{asked} gives no subject for {others} of the {total} scans, such as "
            f"{short(counts.not_asked)}; theirs are found as without it"
        )
    if counts.unused:
        notes.append(f"paths in {settings.subjects} that belong to no scan: {_some(counts.unused)}")
    if counts.by_name:
        notes.append(
            f"{len(counts.by_name)} subjects of {counts.tellers['name']} scans are known by names alone; "
            "if they are wrong, use --subject or --subjects"
        )
    if grouping.subject_of:
        several = len(set(grouping.subject_of.values()))
        other, one = next(iter(grouping.subject_of.items()))
        notes.append(f"similar names are taken as one subject, {several} times: {one} and {other}")
    more = len(grouping.doubts) - _DOUBTS_SHOWN
    notes += [
        f"{doubt}; if they are not, use --subject or --subjects" for doubt in grouping.doubts[:_DOUBTS_SHOWN]
    ]
    if more > 0:
        notes.append(f"and {more} more groups of similar names")
    return notes


def _one_for_all(members: Mapping[Member, int]) -> list[str]:
    """A note if one subject has most of the scans, as when all patients of an archive share a name."""
    scans: Counter[str] = Counter()
    for member, count in members.items():
        scans[member.subject] += count
    ((subject, most),) = scans.most_common(1)
    total = scans.total()
    if total < _FEW_SCANS or 2 * most <= total:
        return []
    return [
        f"one subject has {most} of the {total} scans: {subject}; if they are of several subjects, use "
        "--subject or --subjects"
    ]


def _split_notes(members: Mapping[Member, int], sides: Mapping[str, Split], val_fraction: float) -> list[str]:
    notes = []
    both = straddling(members.keys())
    if both:
        notes.append(f"held out, because lists have them in both splits: {_some(both)}")
    there = {(member.modality, sides[member.subject]) for member in members}
    modalities = sorted({modality for modality, _ in there})
    untrained = [modality for modality in modalities if (modality, "train") not in there]
    if untrained:
        notes.append(f"nothing to train on for {', '.join(untrained)}: every scan is held out")
    unvalidated = [modality for modality in modalities if (modality, "val") not in there]
    if unvalidated and val_fraction > 0:
        notes.append(f"nothing held out for {', '.join(unvalidated)}: too few subjects, or a list decides so")
    return notes + _share_notes(members, sides, val_fraction)


def _share_notes(members: Mapping[Member, int], sides: Mapping[str, Split], val_fraction: float) -> list[str]:
    """A note if far more or fewer scans are held out than asked for, and no list decides it."""
    if any(member.given for member in members):
        return []
    scans = sum(members.values())
    held_out = sum(count for member, count in members.items() if sides[member.subject] == "val")
    of_a_subject = scans / len(sides)
    asked = val_fraction * scans
    if asked / 2 - of_a_subject <= held_out <= 2 * asked + of_a_subject:
        return []
    return [
        f"{held_out} of {scans} scans are held out, {held_out / scans:.0%}, but {val_fraction:.0%} were "
        "asked for: all scans of a subject are held out together, chosen by its name; --seed chooses others"
    ]


def _some(names: Collection[str]) -> str:
    shown = [name for name, _ in zip(names, range(3), strict=False)]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
