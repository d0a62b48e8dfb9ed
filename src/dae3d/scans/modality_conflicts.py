"""How far apart two modality labels are: another machine, another contrast, or maybe the same."""

from collections.abc import Iterable
from typing import Literal

from dae3d.scans.modality import LIST_NAMES

Conflict = Literal["machine", "contrast"]

# Labels that say no contrast, and so may be any of their machine.
_GENERAL = {"mr"}
_MACHINES = {
    **dict.fromkeys({*LIST_NAMES.values(), "stir"} - {"ct", "pet"}, "mr"),
    **dict.fromkeys(("ct", "ct-phantom", "ct-raw", "cbct", "cbct-raw"), "ct"),
    **dict.fromkeys(("pet", "spect"), "pet"),
    "us": "us",
}


def machine(label: str) -> str | None:
    """The kind of machine whose images have a label: "mr", "ct", "pet" or "us"; None of other labels."""
    return _MACHINES.get(label)


def conflict(label: str, other: str) -> Conflict | None:
    """What keeps two labels from being of the same images; nothing, where a label is not known."""
    machines = {machine(label), machine(other)}
    if label == other or None in machines:
        return None
    if len(machines) > 1:
        return "machine"
    return None if {label, other} & _GENERAL else "contrast"


def strange(label: str, known: Iterable[str]) -> bool:
    """Whether no image of the labels that are known can be one of this label."""
    return all(label != one and (machine(label) is None or conflict(label, one)) for one in known)
