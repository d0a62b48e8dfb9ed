"""Which scans weights were trained on, to detect that they are tested on the same scans.

A scan is identified by fingerprints: hexadecimal digests of its files' content, or of its voxels. Names are
not kept, not even as digests, because anyone who knows a patient's name could look it up in a shared file.
Only someone who has the scan itself can check whether it was used.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dae3d.models.network import Task, WeightsInfo

Side = Literal["training", "validation"]

# The first 64 bits of each digest are kept, and at most this many digests, the smallest ones: 11 MB of text.
_DIGITS, _MOST = 16, 1 << 20


@dataclass(frozen=True)
class Stage:
    """One training run that weights went through.

    Attributes:
        task: of the training.
        classes: class names of a segmentation network, the background first; empty if not known.
        training: `kept` of the fingerprints of the training scans.
        validation: of the scans by which the best weights were chosen.
        known: whether the file records these scans; files of other programs do not.
    """

    task: Task
    classes: tuple[str, ...] = ()
    training: frozenset[int] = frozenset()
    validation: frozenset[int] = frozenset()
    known: bool = True

    def side_of(self, fingerprints: Iterable[str]) -> Side | None:
        """The split that a scan with any of these fingerprints was in; training takes precedence."""
        wanted = {kept(fingerprint) for fingerprint in fingerprints}
        if wanted & self.training:
            return "training"
        return "validation" if wanted & self.validation else None


@dataclass(frozen=True)
class Seen:
    """A case that weights were trained on or chosen by: in the training for a task, in one split."""

    case: str
    task: Task
    side: Side


def trained_on(info: WeightsInfo) -> list[Stage]:
    """The training runs that weights went through, the first one first.

    Args:
        info: metadata of the weights, as `load(...).info` and `read_weights(...).info`.

    Returns:
        At least one stage; the last is the training that wrote the file.
    """
    if "trained_on" not in info:
        return [Stage(info.get("task", "pretrain"), class_names(info), known=False)]
    return [
        Stage(
            stage["task"],
            tuple(stage["classes"]),
            _unpacked(stage["training"]),
            _unpacked(stage["validation"]),
            stage["known"],
        )
        for stage in info["trained_on"]
    ]


def seen(info: WeightsInfo, cases: Mapping[str, Iterable[str]]) -> list[Seen]:
    """Which cases the weights were trained on, or chosen by.

    Args:
        info: as for `trained_on`.
        cases: fingerprints of each case's images, by case name; an image may have several.

    Returns:
        One entry for each stage and each case in it, by stage.
    """
    found = []
    for stage in trained_on(info):
        for name, fingerprints in cases.items():
            side = stage.side_of(fingerprints)
            if side is not None:
                found.append(Seen(name, stage.task, side))
    return found


def class_names(info: WeightsInfo) -> tuple[str, ...]:
    """Class names of a segmentation network, the background first; empty if not known."""
    labels = info.get("recipe", {}).get("labels", {})
    return tuple(labels[value] for value in sorted(labels, key=int))


def entry(
    task: Task,
    training: Iterable[int],
    validation: Iterable[int],
    classes: Sequence[str] = (),
    earlier: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """The `trained_on` entry of a header, in plain JSON.

    Args:
        task: of the training.
        training: `kept` of the fingerprints of the training scans.
        validation: of the scans by which the best weights are chosen.
        classes: class names, the background first.
        earlier: the entry of the weights that training starts from, as returned by `entry_of`.
    """
    stage = {
        "task": task,
        "classes": list(classes),
        "training": _packed(training),
        "validation": _packed(validation),
        "known": True,
    }
    return [*map(dict, earlier), stage]


def entry_of(info: WeightsInfo) -> list[dict[str, Any]]:
    """The entry of a header, or one of unknown scans if it has none."""
    if "trained_on" in info:
        return list(info["trained_on"])
    unknown = entry(info.get("task", "pretrain"), (), (), class_names(info))
    return [{**unknown[0], "known": False}]


def continued(before: list[dict[str, Any]] | None, now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entry of a run resumed from a checkpoint with the entry `before`.

    Other scans make it a new stage.
    """
    if before is None:
        return now
    return before if before[-1] == now[-1] else [*before, now[-1]]


def kept(fingerprint: str) -> int:
    """The part of a fingerprint (a hexadecimal digest) that is kept: its first 64 bits."""
    return int(fingerprint[:_DIGITS], 16)


def _packed(fingerprints: Iterable[int]) -> str:
    return base64.b64encode(np.array(sorted(set(fingerprints))[:_MOST], "<u8").tobytes()).decode()


def _unpacked(text: str) -> frozenset[int]:
    return frozenset(np.frombuffer(base64.b64decode(text), "<u8").tolist())
