"""Which subjects are held out for validation. All scans of a subject are in one split."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from dae3d.scans.manifest import Split

# Shared by many subjects, to save memory.
_SAID: dict[Split | None, frozenset[Split | None]] = {
    None: frozenset([None]),
    "train": frozenset(["train"]),
    "val": frozenset(["val"]),
}


class Member(NamedTuple):
    """What splitting needs of a scan; `given` is the split that a list assigns."""

    subject: str
    modality: str
    given: Split | None


def hash01(seed: int, subject: str) -> float:
    """A number in [0, 1) that depends only on `seed` and `subject`."""
    digest = hashlib.sha256(f"{seed}:{subject}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split_subjects(members: Collection[Member], val_fraction: float, seed: int) -> dict[str, Split]:
    """The split of every subject.

    1. A subject whose split a list gives keeps it; one in both splits is held out.
    2. Of the others, those whose `hash01` is below `val_fraction` are held out. This depends on no other
       subject, so adding scans moves nobody.
    3. If that leaves a modality nothing to train on, its subject with the largest hash is trained on.
    4. Modalities that then have nothing held out give up their subject with the smallest hash, those with
       most subjects first, until the share asked for is reached, but at least one subject; and only if every
       modality keeps something to train on. Only subjects of 3 and 4 may change when scans are added.
    """
    given = _given(members)
    subjects_of: dict[str, set[str]] = defaultdict(set)
    for member in members:
        subjects_of[member.modality].add(member.subject)
    sides: dict[str, Split] = {}
    for subject, marks in given.items():
        held_out = "val" in marks or ("train" not in marks and hash01(seed, subject) < val_fraction)
        sides[subject] = "val" if held_out else "train"
    free = {subject for subject, marks in given.items() if marks == {None}}
    if val_fraction > 0:
        for modality in sorted(subjects_of):
            _train_on_one(subjects_of[modality], free, sides, seed)
        wanted = max(1, round(val_fraction * len(free)))
        chosen = [subject for subject in free if sides[subject] == "val"]
        for modality in sorted(subjects_of, key=lambda modality: (-len(subjects_of[modality]), modality)):
            if len(chosen) < wanted:
                chosen += _hold_one_out(subjects_of, modality, free, sides, seed)
    return sides


def straddling(members: Collection[Member]) -> list[str]:
    """The subjects that lists have in both splits, sorted."""
    return sorted(subject for subject, marks in _given(members).items() if marks >= {"train", "val"})


def _given(members: Iterable[Member]) -> dict[str, frozenset[Split | None]]:
    """The splits that lists give each subject."""
    given: dict[str, frozenset[Split | None]] = {}
    for member in members:
        said = _SAID[member.given]
        marks = given.setdefault(member.subject, said)
        if not said <= marks:
            given[member.subject] = marks | said
    return given


def _train_on_one(subjects: set[str], free: set[str], sides: dict[str, Split], seed: int) -> None:
    if subjects & free and all(sides[subject] == "val" for subject in subjects):
        sides[max(subjects & free, key=lambda subject: hash01(seed, subject))] = "train"


def _hold_one_out(
    subjects_of: Mapping[str, set[str]], modality: str, free: set[str], sides: dict[str, Split], seed: int
) -> list[str]:
    """Hold out a subject of a modality that has none held out, if one can be spared; returns it."""
    if any(sides[subject] == "val" for subject in subjects_of[modality]):
        return []
    # The last training subject of any modality stays.
    scarce = [subjects for subjects in subjects_of.values() if _few_train(subjects, sides)]
    last = set().union(*scarce)
    candidates = (subjects_of[modality] & free) - last
    chosen = sorted(candidates, key=lambda subject: hash01(seed, subject))[:1]
    sides |= dict.fromkeys(chosen, "val")
    return chosen


def _few_train(subjects: Iterable[str], sides: Mapping[str, Split]) -> bool:
    """Whether at most one of the subjects is trained on."""
    return sum(sides[subject] == "train" for subject in subjects) <= 1
