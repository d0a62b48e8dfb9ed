"""What an export writes and what it leaves out."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Exported:
    """Weights converted to another layout.

    Attributes:
        state: tensors by their names in the layout.
        left_out: our names of tensors that the layout does not have, with reasons.
        notes: other differences of the target network.
    """

    state: dict[str, Tensor]
    left_out: dict[str, str]
    notes: list[str] = field(default_factory=list)


def learned(network: Any) -> dict[str, Tensor]:
    """The tensors that were loaded from the file."""
    names = {*network.load_report.taken, *network.load_report.adapted}
    return {name: tensor for name, tensor in network.state_dict().items() if name in names}
