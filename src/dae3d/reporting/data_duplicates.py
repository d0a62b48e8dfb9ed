"""Duplicate scans: the same file, or the same voxels with a different header."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dae3d.reporting.data_survey import Survey, Surveyed
from dae3d.scans.manifest import Scan
from dae3d.words import listing

GROUPS_SHOWN, MEMBERS_SHOWN = 100, 8


@dataclass(frozen=True)
class DuplicateGroup:
    """`count` scans with the same voxels, of which `scans` are shown; `leak`: in both sides of the split."""

    leak: bool
    what: str
    scans: list[Scan]
    count: int


@dataclass(frozen=True)
class Duplicates:
    """The number of groups of duplicates, of those across the split (`leaks`), and the first groups."""

    groups: int
    leaks: int
    shown: list[DuplicateGroup]


def find_duplicates(survey: Survey, look: Callable[[int], Surveyed]) -> Duplicates:
    """Find scans with the same voxels; groups in both training and validation come first."""
    rows = survey.rows
    order = np.argsort(rows["voxels"], kind="stable")
    _, starts, counts = np.unique(rows["voxels"][order], return_index=True, return_counts=True)
    several = counts > 1
    groups = [order[s : s + n] for s, n in zip(starts[several], counts[several], strict=True)]
    leaks = [bool(np.ptp(rows["val"][group].astype(np.int8))) for group in groups]
    ranked = sorted(zip(leaks, groups, strict=True), key=lambda one: (not one[0], one[1][0]))
    return Duplicates(
        groups=len(groups),
        leaks=sum(leaks),
        shown=[_group(rows, group, leak, look) for leak, group in ranked[:GROUPS_SHOWN]],
    )


def _group(
    rows: np.ndarray, group: np.ndarray, leak: bool, look: Callable[[int], Surveyed]
) -> DuplicateGroup:
    same_file = len(np.unique(rows["content"][group])) == 1
    # Show some from each side of the split.
    first = group[np.argsort(rows["val"][group], kind="stable")]
    chosen = first[np.linspace(0, len(first) - 1, min(len(first), MEMBERS_SHOWN)).round().astype(int)]
    different = [
        noun for noun, field in (("subjects", "subject"), ("modalities", "modality"))
        if len(np.unique(rows[field][group])) > 1
    ]  # fmt: skip
    what = "the same file" if same_file else "the same voxels in different files"
    if different:
        what += f", listed under different {listing(different)}"
    return DuplicateGroup(leak, what, [look(int(number)).scan for number in chosen], len(group))
