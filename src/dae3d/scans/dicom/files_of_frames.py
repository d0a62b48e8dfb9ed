"""Multi-frame files: each is a volume, or a part of one in several files (a concatenation).

A file is read whole or not at all, so its frames cannot be separated.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dae3d.scans.dicom.alike import alike_texts, leaders
from dae3d.scans.dicom.geometry import ALIKE
from dae3d.scans.dicom.header import Slice
from dae3d.scans.dicom.stack_keys import STACK_KEYS
from dae3d.scans.dicom.stacks import MIXED, PLACE, Stack, in_order, numbered, repeats, stacks

# Volumes of a time series may differ this much, if the scanner follows the head: mm, direction cosines.
_MOVED, _TURNED = 10.0, 0.1

LeftOutSlices = tuple[list[Slice], str]


def is_whole(one: Slice) -> bool:
    """Whether a slice is in a multi-frame file, or in a part of a concatenation."""
    return one.frames > 1 or bool(one.facts.concatenation)


def volumes_in_files(slices: Sequence[Slice]) -> Iterator[Stack | LeftOutSlices]:
    """The volumes of a series in multi-frame files, and slices that are left out, with the reason.

    Volumes at one place that do not differ in contrast are the volumes of one 4-D series, ordered by time.
    """
    found = []
    for frames in _by_volume(slices):
        reason = _refusal(frames)
        if reason:
            yield frames, reason
        else:
            found.append(frames)
    yield from _series(found)


def _by_volume(slices: Sequence[Slice]) -> list[list[Slice]]:
    volumes: dict[str | Path, list[Slice]] = {}
    for one in slices:
        volumes.setdefault(one.facts.concatenation or one.path, []).append(one)
    return list(volumes.values())


def _refusal(frames: list[Slice]) -> str | None:
    """Why frames are not one volume."""
    files = {one.path: one.facts for one in frames}
    there = {facts.part for facts in files.values()}
    wanted = max(facts.parts for facts in files.values()) or max(there)
    if there - {0} and len(there) < wanted:
        return f"missing files: {len(there)} of the {wanted} files of one volume"
    if repeats(frames):
        place = "one file" if len(files) == 1 else f"{len(files)} files"
        return f"several volumes in {place}: {len(frames)} frames"
    differing = (name for part in stacks(frames) for name, _ in part.key if name not in PLACE)
    return next((f"{MIXED}: {name} differs" for name in differing), None)


def _series(volumes: list[list[Slice]]) -> list[Stack]:
    """The volumes as stacks, numbered if they differ only in time or diffusion direction."""
    if not volumes:
        return []
    volumes = sorted(volumes, key=_in_time)
    keys: list[list[tuple[str, str]]] = [[("place", str(number))] for number in _places(volumes)]
    for i, key in enumerate(STACK_KEYS):
        texts = [" ".join(sorted({one.stack[i] for one in frames})) for frames in volumes]
        first = alike_texts(texts, key.share)
        for pairs, text in zip(keys, texts, strict=True):
            pairs.append((key.name, first[text]))
    return numbered([Stack(frames, tuple(pairs)) for frames, pairs in zip(volumes, keys, strict=True)])


def _in_time(frames: list[Slice]) -> tuple[object, ...]:
    """The sort key of volumes: times, then numbers and names."""
    first = frames[0]
    times = (
        min(in_order(one.stack[i]) for one in frames)
        for i, key in enumerate(STACK_KEYS)
        if key.repeated and key.name != "gradient"
    )
    return (*times, first.number, first.path)


def _places(volumes: list[list[Slice]]) -> list[int]:
    """For each volume the index of one at the same place."""
    rows = []
    for frames in volumes:
        facts, ends = frames[0].facts, [one.position or (0.0, 0.0, 0.0) for one in frames]
        size = [facts.rows, facts.columns, len(frames), *(facts.pixel_spacing or (0.0, 0.0))]
        turned = np.array(facts.orientation or [0.0] * 6) / _TURNED
        rows.append([*np.array(size) / ALIKE, *turned, *np.array([min(ends), max(ends)]).ravel() / _MOVED])
    return leaders(np.nan_to_num(np.array(rows)), 1.0)
