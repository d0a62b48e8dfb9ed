"""The network of a plan, for crops of a given shape."""

import math
from collections.abc import Sequence
from typing import Any

from dae3d.models.architecture import Size
from dae3d.models.backbones import BACKBONES, FIRST
from dae3d.planning.comments import Line
from dae3d.planning.size import Accelerator
from dae3d.store.boxes import Triple

_BLOCK = 8  # voxels: pre-training masks blocks of 4 and 8 voxels only if these divide the sides


class PlannedNetwork:
    """The settings of a network for crops of any shape.

    Args:
        backbone: name; None: the first in the table.
        size: None: small for a CPU.
        device: of the run.
        spacing: voxel size in mm.
    """

    def __init__(
        self, backbone: str | None, size: Size | None, device: Accelerator, spacing: Sequence[float]
    ) -> None:
        self.kind = BACKBONES[backbone or FIRST]
        self.spacing = spacing
        self.size: Size = size or ("small" if device == "cpu" else "standard")
        self.why_size = "" if size else ", because the run is on a CPU" if device == "cpu" else ""

    def multiples(self, roi: Triple) -> Triple:
        """Of which the sides of such a crop are for pre-training."""
        x, y, z = (math.lcm(side, _BLOCK) for side in self.kind.multiple_for(roi, self.spacing))
        return x, y, z

    def sizes(self, roi: Triple) -> dict[str, Any]:
        """The settings for crops with these sides."""
        return {line.name: line.value for line in self.lines(roi)}

    def lines(self, roi: Triple) -> list[Line]:
        """The settings for crops with these sides, and why."""
        what = f"{self.kind.title}; the {self.size} size{self.why_size}."
        planned = self.kind.planned(self.size, roi, self.spacing)
        return [Line("backbone", self.kind.backbone, what), *(Line(*each) for each in planned)]
