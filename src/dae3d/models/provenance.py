"""What weights were trained on, so that it is noticed when they are tested on the very same scans.

A scan is known by fingerprints: hexadecimal digests of its files' content, or of its voxels. Names are not
kept, not even as digests: who knows a patient's name could look it up in a file that is given away. Only who
has the scan itself can tell whether it was there.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dae3d.models.network import Task, WeightsInfo

Side = Literal["training", "validation"]

# Entry of a header.

# Of every digest the first 64 bits are kept, and of more scans than this the smallest ones: 11 MB of text.
_DIGITS, _MOST = 16, 1 << 20


@dataclass(frozen=True)
class Stage:
    """One training that weights went through.

    Attributes:
        task: what was trained.
        classes: names of the classes, the background first, of a segmentation network; none where not known.
        training: `kept` of the fingerprints of the scans that were trained on.
        validation: of those by which the best weights were chosen.
        known: whether the file says which scans these were. Those of others do not.
    """

    task: Task
    classes: tuple[str, ...] = ()
    training: frozenset[int] = frozenset()
    validation: frozenset[int] = frozenset()
    known: bool = True

    def side_of(self, fingerprints: Iterable[str]) -> Side | None:
        """The side on which a scan of any of these fingerprints was; training goes before validation."""
        wanted = {kept(fingerprint) for fingerprint in fingerprints}
        if wanted & self.training:
            return "training"
        return "validation" if wanted & self.validation else None


@dataclass(frozen=True)
class Seen:
    """A case that weights have met: in the training for a task, on one side."""

    case: str
    task: Task
    side: Side


def trained_on(info: WeightsInfo) -> list[Stage]:
    """The trainings that weights went through, the first one first.

    Args:
        info: what a file of weights says of its training, as `load(...).info` and `read_weights(...).info`.

    Returns:
        At least one stage; the last is the training that the file comes from.
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
    """Which of some cases weights were trained on, or were chosen by.

    Args:
        info: as of `trained_on`.
        cases: fingerprints of each case's images, by its name: of one image there may be several.

    Returns:
        One entry for each case and each stage that has it, stages in their order.
    """
    found = []
    for stage in trained_on(info):
        for name, fingerprints in cases.items():
            side = stage.side_of(fingerprints)
            if side is not None:
                found.append(Seen(name, stage.task, side))
    return found


def class_names(info: WeightsInfo) -> tuple[str, ...]:
    """Names of the classes of a segmentation network, the background first; none where not known."""
    labels = info.get("recipe", {}).get("labels", {})
    return tuple(labels[value] for value in sorted(labels, key=int))


def entry(
    task: Task,
    training: Iterable[int],
    validation: Iterable[int],
    classes: Sequence[str] = (),
    earlier: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """What a header has as `trained_on`, in plain JSON.

    Args:
        task: what is trained.
        training: `kept` of the fingerprints of the scans that are trained on.
        validation: of those by which the best weights are chosen.
        classes: names of the classes, the background first.
        earlier: the entry of the weights that were begun with, as `entry_of` has it.
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
    """The entry of a header, also of one that has none."""
    if "trained_on" in info:
        return list(info["trained_on"])
    unknown = entry(info.get("task", "pretrain"), (), (), class_names(info))
    return [{**unknown[0], "known": False}]


def continued(before: list[dict[str, Any]] | None, now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entry of a run that goes on from a checkpoint with the entry `before`.

    With other scans it is a stage of its own.
    """
    if before is None:
        return now
    return before if before[-1] == now[-1] else [*before, now[-1]]


def kept(fingerprint: str) -> int:
    """What is kept of a fingerprint, a hexadecimal digest: its first 64 bits."""
    return int(fingerprint[:_DIGITS], 16)


def _packed(fingerprints: Iterable[int]) -> str:
    return base64.b64encode(np.array(sorted(set(fingerprints))[:_MOST], "<u8").tobytes()).decode()


def _unpacked(text: str) -> frozenset[int]:
    return frozenset(np.frombuffer(base64.b64decode(text), "<u8").tolist())
