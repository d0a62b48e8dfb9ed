"""The network of a plan, for crops of a given shape."""

from collections.abc import Sequence
from typing import Any

from dae3d.models.backbones import FIRST
from dae3d.models.resenc.topology import topology
from dae3d.models.swin_unetr import sides_without_edges
from dae3d.planning.comments import Line
from dae3d.planning.crops import Multiples, fixed_multiples, resenc_multiples
from dae3d.planning.size import Accelerator
from dae3d.settings import read_config
from dae3d.store.boxes import Triple

RESENC = "resenc"
SMALL = "small-cpu"  # the shipped config whose sizes and rates a small network has
_BLOCK = 8  # voxels: pre-training masks blocks of 4 and 8 voxels only if these divide the sides
_WINDOWS = (6, 8, 7, 5, 4)  # tokens; the default first


class PlannedNetwork:
    """The settings of a network for crops of any shape.

    Args:
        backbone: name; None: the first in the table.
        size: "small" or "standard"; None: small for a CPU.
        device: of the run.
        spacing: voxel size in mm.
    """

    def __init__(
        self, backbone: str | None, size: str | None, device: Accelerator, spacing: Sequence[float]
    ) -> None:
        self.backbone, self.spacing = backbone or FIRST, spacing
        self.size = size or ("small" if device == "cpu" else "standard")
        self.why_size = "" if size else ", because the run is on a CPU" if device == "cpu" else ""

    @property
    def multiples(self) -> Multiples:
        """Of which the sides of crops for pre-training are."""
        if self.backbone == RESENC:
            return resenc_multiples(self.spacing, _BLOCK)
        return fixed_multiples((32, 32, 32))

    def sizes(self, roi: Triple) -> dict[str, Any]:
        """The settings for crops with these sides."""
        return {line.name: line.value for line in self.lines(roi)}

    def lines(self, roi: Triple) -> list[Line]:
        """The settings for crops with these sides, and why."""
        return self._resenc(roi) if self.backbone == RESENC else self._swin(roi)

    def _resenc(self, roi: Triple) -> list[Line]:
        planned = topology(roi, self.spacing)
        strides, kernels = ([list(each) for each in lists] for lists in planned)
        uneven = any(len(set(stride)) > 1 for stride in strides)
        why = "axes with voxels twice as long as the shortest are halved later, " if uneven else ""
        return [
            Line("backbone", RESENC, "nnU-Net's residual encoder U-Net."),
            Line("size", self.size, f"Channels and blocks of a {self.size} network{self.why_size}."),
            Line(
                "stage_strides",
                strides,
                f"By nnU-Net's rule from roi and voxel size: {why}down to 4 voxels.",
            ),
            Line(
                "stage_kernels",
                kernels,
                "Kernels are 1 along an axis until its voxels are less than twice as long as the shortest.",
            ),
        ]

    def _swin(self, roi: Triple) -> list[Line]:
        lines = [Line("backbone", self.backbone, "Swin UNETR, as published.")]
        if self.size == "small":
            small = read_config(SMALL, "pretrain")
            lines.append(Line("embed_dim", small["embed_dim"], f"As in {SMALL}{self.why_size}."))
            return [*lines, Line("heads", small["heads"]), Line("window", small["window"])]
        whole = (w for w in _WINDOWS if not any(side % sides_without_edges(w) for side in roi))
        window = next(whole, _WINDOWS[0])
        fits = not any(side % sides_without_edges(window) for side in roi)
        why = "Divides the grids of all stages" if fits else "No size divides the grids of all stages"
        return [
            *lines,
            Line("embed_dim", 48, "The published size."),
            Line("heads", [3, 6, 12, 24]),
            Line("window", window, f"{why}: roi / 2, / 4, / 8 and / 16."),
        ]
