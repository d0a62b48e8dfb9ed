"""Which subjects are held out for validation. A subject is on one side whole."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dae3d.scans.manifest import Split


class Member(NamedTuple):
    """One scan, as far as splitting needs it; `given` is the side that a list puts it on."""

    subject: str
    modality: str
    given: Split | None


def hash01(seed: int, subject: str) -> float:
    """A number in [0, 1) that depends on `seed` and `subject` alone."""
    digest = hashlib.sha256(f"{seed}:{subject}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def split_subjects(members: Iterable[Member], val_fraction: float, seed: int) -> dict[str, Split]:
    """The side of every subject.

    1. A subject with a side given by a list keeps it; one on both sides is held out whole.
    2. Of the others, those whose `hash01` is below `val_fraction` are held out. This depends on no other
       subject, so adding scans moves nobody.
    3. A modality that then has nothing held out gives its subject of smallest hash, if that leaves every
       modality something to train on. This subject alone may change when scans are added.
    """
    given: dict[str, set[Split | None]] = defaultdict(set)
    subjects_of: dict[str, set[str]] = defaultdict(set)
    for member in members:
        given[member.subject].add(member.given)
        subjects_of[member.modality].add(member.subject)
    sides: dict[str, Split] = {}
    for subject, marks in given.items():
        held_out = "val" in marks or ("train" not in marks and hash01(seed, subject) < val_fraction)
        sides[subject] = "val" if held_out else "train"
    free = {subject for subject, marks in given.items() if marks == {None}}
    if val_fraction > 0:
        for modality in sorted(subjects_of):
            _hold_one_out(subjects_of, modality, free, sides, seed)
    return sides


def straddling(members: Iterable[Member]) -> list[str]:
    """The subjects that lists put on both sides, sorted."""
    given: dict[str, set[Split | None]] = defaultdict(set)
    for member in members:
        given[member.subject].add(member.given)
    return sorted(subject for subject, marks in given.items() if marks >= {"train", "val"})


def _hold_one_out(
    subjects_of: Mapping[str, set[str]], modality: str, free: set[str], sides: dict[str, Split], seed: int
) -> None:
    if any(sides[subject] == "val" for subject in subjects_of[modality]):
        return

    def others_train(subject: str) -> bool:
        return all(
            any(sides[other] == "train" for other in subjects - {subject})
            for subjects in subjects_of.values()
            if subject in subjects
        )

    candidates = [subject for subject in subjects_of[modality] & free if others_train(subject)]
    if candidates:
        sides[min(candidates, key=lambda subject: hash01(seed, subject))] = "val"
