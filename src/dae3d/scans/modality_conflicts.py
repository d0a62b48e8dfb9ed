"""Whether two modality labels conflict: another machine, another contrast, or possibly the same."""

from collections.abc import Iterable
from typing import Literal

from dae3d.scans.modality import LIST_NAMES

Conflict = Literal["machine", "contrast"]

# Labels without a contrast, which may be any of their machine.
_GENERAL = {"mr"}
_MACHINES = {
    **dict.fromkeys({*LIST_NAMES.values(), "stir"} - {"ct", "pet"}, "mr"),
    **dict.fromkeys(("ct", "ct-phantom", "ct-raw", "cbct", "cbct-raw"), "ct"),
    **dict.fromkeys(("pet", "spect"), "pet"),
    "us": "us",
}


def machine(label: str) -> str | None:
    """The kind of scanner of a label: "mr", "ct", "pet" or "us"; None for other labels."""
    return _MACHINES.get(label)


def conflict(label: str, other: str) -> Conflict | None:
    """Why two labels cannot be of the same images; None if they can, or a label is not known."""
    machines = {machine(label), machine(other)}
    if label == other or None in machines:
        return None
    if len(machines) > 1:
        return "machine"
    return None if {label, other} & _GENERAL else "contrast"


def strange(label: str, known: Iterable[str]) -> bool:
    """Whether a label conflicts with all known labels."""
    return all(label != one and (machine(label) is None or conflict(label, one)) for one in known)
