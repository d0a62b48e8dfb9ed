"""Scans that are there more than once: the same file, or the same voxels under another header."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dae3d.reporting.data_survey import Survey, Surveyed
from dae3d.scans.manifest import Scan
from dae3d.words import listing

GROUPS_SHOWN, MEMBERS_SHOWN = 100, 8


@dataclass(frozen=True)
class Twins:
    """Scans with the same voxels, the first of them; `leak`: some are trained on, others validated on."""

    leak: bool
    what: str
    scans: list[Scan]
    count: int


@dataclass(frozen=True)
class Repeats:
    """All groups of twins: how many there are, in all and across the split, and the worst of them."""

    groups: int
    leaks: int
    shown: list[Twins]


def repeats(survey: Survey, look: Callable[[int], Surveyed]) -> Repeats:
    """Find scans of the same voxels; those on both sides of the split come first."""
    rows = survey.rows
    order = np.argsort(rows["voxels"], kind="stable")
    _, starts, counts = np.unique(rows["voxels"][order], return_index=True, return_counts=True)
    several = counts > 1
    groups = [order[s : s + n] for s, n in zip(starts[several], counts[several], strict=True)]
    leaks = [bool(np.ptp(rows["val"][group].astype(np.int8))) for group in groups]
    ranked = sorted(zip(leaks, groups, strict=True), key=lambda one: (not one[0], one[1][0]))
    return Repeats(
        groups=len(groups),
        leaks=sum(leaks),
        shown=[_twins(rows, group, leak, look) for leak, group in ranked[:GROUPS_SHOWN]],
    )


def _twins(rows: np.ndarray, group: np.ndarray, leak: bool, look: Callable[[int], Surveyed]) -> Twins:
    same_file = len(np.unique(rows["content"][group])) == 1
    # Of many, some from either side.
    first = group[np.argsort(rows["val"][group], kind="stable")]
    chosen = first[np.linspace(0, len(first) - 1, min(len(first), MEMBERS_SHOWN)).round().astype(int)]
    different = [
        noun for noun, field in (("subjects", "subject"), ("modalities", "modality"))
        if len(np.unique(rows[field][group])) > 1
    ]  # fmt: skip
    what = "the same file" if same_file else "the same voxels in different files"
    if different:
        what += f", listed under different {listing(different)}"
    return Twins(leak, what, [look(int(number)).scan for number in chosen], len(group))
