"""The channels of a task: the modality of each, and the order in which a network takes them."""

import logging
from collections.abc import Sequence
from pathlib import Path

from dae3d.errors import Dae3dError
from dae3d.scans.lists import modalities_of
from dae3d.scans.modality import label_in_list
from dae3d.scans.modality_conflicts import conflict
from dae3d.scans.task_list import TaskEntry, TaskList

_log = logging.getLogger(__name__)


def channels(
    path: Path, content: TaskList, modality: Sequence[str] | None, order: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int]]:
    """A label for each channel, and which of an entry's images is the first channel, the second, ...

    Args:
        path: the list.
        content: its content.
        modality: a label for each image, which overrides the list's own.
        order: as in `dae3d.scans.task.read_task`.

    Raises:
        Dae3dError: if modalities are missing, or an image is from another kind of scanner than the weights
            take.
    """
    told = order and _told_labels(path, content, modality)
    if order and told and sorted(told) == sorted(order):
        labels = tuple(order)
        return labels, _places(path, _modalities(path, content, modality), labels)
    _refuse_other_machines(path, told or (), order or ())
    labels = _modalities(path, content, order or modality)
    return labels, list(range(len(labels)))


def _modalities(path: Path, content: TaskList, given: Sequence[str] | None) -> tuple[str, ...]:
    """One modality label per channel, the same for all entries."""
    found: dict[tuple[str, ...], str] = {}
    for split, number, entry in content.entries():
        where = f"{path}: {split}[{number}] ({entry.images[0]})"
        texts: Sequence[str | None] = given or _told(where, content, entry)
        if len(texts) != len(entry.images):
            raise Dae3dError(f"{where}: {len(texts)} modalities for {len(entry.images)} images")
        try:
            labels = tuple(label_in_list(text) for text in texts if text)
        except ValueError as error:
            way_out = "" if given else "; or give --modality, one label per channel"
            raise Dae3dError(f"{where}: {error}{way_out}") from None
        if len(labels) < len(texts):
            raise Dae3dError(
                f'{where}: its modality is unknown; add to the list "modality": {{"0": "CT"}}, '
                "with one entry per channel, or give --modality"
            )
        found.setdefault(labels, where)
        if len(found) > 1:
            (first, _), (second, other) = found.items()
            raise Dae3dError(f"{other}: modalities {', '.join(second)}, but others have {', '.join(first)}")
    labels = next(iter(found))
    _warn_of_other_modalities(path, content, labels)
    return labels


def _told_labels(path: Path, content: TaskList, given: Sequence[str] | None) -> tuple[str, ...] | None:
    """The labels of a list's channels, by its first entry, or None if it does not give all of them."""
    _, _, entry = next(content.entries())
    try:
        return tuple(label_in_list(text or "") for text in given or _told(str(path), content, entry))
    except ValueError:
        return None


def _places(path: Path, told: tuple[str, ...], order: tuple[str, ...]) -> list[int]:
    """Which of a list's channels comes first, second, ... in `order`, which has the same labels."""
    if told == order or len(set(order)) < len(order):
        return list(range(len(order)))
    _log.warning(
        "%s: its channels are %s; taken in the order of the weights, %s",
        path,
        ", ".join(told),
        ", ".join(order),
    )
    return [told.index(label) for label in order]


def _refuse_other_machines(path: Path, told: Sequence[str], order: Sequence[str]) -> None:
    """Refuse a list of CT for weights of MR."""
    for label, wanted in zip(told, order, strict=False):
        if conflict(label, wanted) == "machine":
            raise Dae3dError(
                f"{path}: its `modality` is {', '.join(told)}, but the weights take {', '.join(order)}; "
                f"`dae3d predict --modality {' '.join(order)}` ignores the list's"
            )


def _warn_of_other_modalities(path: Path, content: TaskList, taken: tuple[str, ...]) -> None:
    """Warn that a list may have its channels in another order than assumed."""
    _, _, entry = next(content.entries())
    told = [text for text in _told(str(path), content, entry) if text]
    if len(told) == len(taken) and not _says(told, taken):
        _log.warning(
            "%s: its modalities are %s, but are treated as %s", path, ", ".join(told), ", ".join(taken)
        )


def _says(texts: Sequence[str], labels: tuple[str, ...]) -> bool:
    try:
        return tuple(map(label_in_list, texts)) == labels
    except ValueError:
        return False


def _told(where: str, content: TaskList, entry: TaskEntry) -> list[str | None]:
    if isinstance(content.modality, dict) and len(content.modality) > len(entry.images):
        raise Dae3dError(
            f"{where}: {len(entry.images)} image(s), but the list has {len(content.modality)} channels; "
            "each channel must be a separate file (split a 4-D file that holds several)"
        )
    try:
        return modalities_of(content, entry)
    except ValueError as error:
        raise Dae3dError(f"{where}: {error}") from None
