"""The `labels` of a task's list: the values in label files and the names of their classes."""

from collections import Counter
from typing import Any

# Class indices are stored as uint8; this one is of voxels to ignore.
IGNORED = 255
MOST_CLASSES = 255
IGNORE = "ignore"  # the name of their value, as in nnU-Net

_EXAMPLE = '"labels": {"0": "background", "1": "spleen"}'


def parse_labels(labels: Any) -> dict[int, str]:
    """The names of the label values of classes, ascending, from any of the forms in lists.

    Raises:
        ValueError: if they are missing or wrong, or one is named "ignore".
    """
    named, ignore = parse_task_labels(labels)
    if ignore is not None:
        raise ValueError(f"has the name {IGNORE!r}, which is not a class")
    return named


def parse_task_labels(labels: Any) -> tuple[dict[int, str], int | None]:
    """The names of the label values of classes, ascending, and the value named "ignore" or None.

    Raises:
        ValueError: if they are missing or wrong.
    """
    if not labels:
        raise ValueError(f"is missing: name the values in the label files, such as {_EXAMPLE}")
    if isinstance(labels, list):
        labels = dict(enumerate(labels))
    if not isinstance(labels, dict):
        raise ValueError(f"must map values to names, such as {_EXAMPLE}")
    if not all(_is_value(key) for key in labels):
        labels = _reversed(labels)
    named = {int(value): name for value, name in labels.items()}
    if len(named) < len(labels):
        raise ValueError("has one value twice")
    for value, name in named.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"must give the value {value} a name, not {name!r}")
    ignored = [value for value, name in named.items() if name == IGNORE]
    if len(ignored) > 1 or 0 in ignored:
        raise ValueError(f"must give the name {IGNORE!r} to one value, which is not 0")
    named = {value: name for value, name in named.items() if value not in ignored}
    named.setdefault(0, "background")
    repeated = [name for name, count in Counter(named.values()).items() if count > 1]
    if repeated:
        raise ValueError(f"gives the name {repeated[0]!r} to several values")
    if len(named) < 2:
        raise ValueError(f"names only the background; write for example {_EXAMPLE}")
    if len(named) > MOST_CLASSES:
        raise ValueError(
            f"has {len(named)} classes, background included; at most {MOST_CLASSES} are supported"
        )
    return dict(sorted(named.items())), ignored[0] if ignored else None


def _is_value(key: Any) -> bool:
    return key >= 0 if isinstance(key, int) else isinstance(key, str) and key.isdecimal()


def _reversed(labels: dict[str, Any]) -> dict[Any, str]:
    for name, value in labels.items():
        if isinstance(value, list):
            raise ValueError(f"has the region {name!r} of several values; name each value once instead")
        if not _is_value(value):
            raise ValueError(f"has {name!r}: {value!r}, and neither is a whole number of 0 or more")
    reverse = {int(value): name for name, value in labels.items()}
    if len(reverse) < len(labels):
        raise ValueError("gives one value to several names")
    return reverse
