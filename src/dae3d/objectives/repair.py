"""What a repair is measured by: where, on which scale, at which resolutions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from dae3d.disrupt import Disrupted
from dae3d.objectives.objective import OBJECTIVES_GROUP
from dae3d.objectives.reconstruction import deviation, reconstruction_loss
from dae3d.settings import Settings


@dataclass(frozen=True)
class RepairLoss:
    """Mean absolute error, as these settings have it.

    Attributes:
        masked_only: over masked voxels alone.
        masked_weight: of masked voxels, where the others have 1.
        on_padding: also over voxels outside the scan, which are filled with zeros.
        relative: divided by the deviation of the clean crop.
        coarse_weight: of each repair at a lower resolution, where that at full resolution has 1.
    """

    masked_only: bool = False
    masked_weight: float = 1.0
    on_padding: bool = False
    relative: bool = True
    coarse_weight: float = 0.5

    def total(
        self, repaired: Sequence[Tensor], clean: Tensor, inside: Tensor | None, disrupted: Disrupted
    ) -> tuple[Tensor, Tensor]:
        """Of repairs at all resolutions, and of the one at full resolution alone.

        Args:
            repaired: (B, C, D, H, W), then the same at lower resolutions.
            clean: (B, C, D, H, W).
            inside: (B, 1, D, H, W) bool, where the crop lies inside the scan; None where everything does.
            disrupted: what the network got.

        Returns:
            Twice (B,) float32.
        """
        weight = self._weight(inside, disrupted)
        each = [reconstruction_loss(image, clean, weight) for image in repaired]
        if self.relative:
            scale = deviation(clean, None if self.on_padding else inside)
            each = [loss / scale for loss in each]
        finest, *coarse = each
        total = finest
        for loss in coarse:
            total = total + self.coarse_weight * loss
        return total, finest

    def _weight(self, inside: Tensor | None, disrupted: Disrupted) -> Tensor | None:
        weight = None if self.on_padding else inside
        mask = disrupted.voxel_mask
        if mask is None or not (self.masked_only or self.masked_weight != 1):
            return weight
        wanted = mask if self.masked_only else 1 + (self.masked_weight - 1) * mask.float()
        return wanted if weight is None else wanted * weight


class RepairSettings(Settings):
    """How repairs are measured."""

    reconstruction_loss: Annotated[Literal["all", "masked"], OBJECTIVES_GROUP] = Field(
        "all", description="mean absolute error over all voxels, or over masked ones (mae only)"
    )
    masked_weight: Annotated[float, OBJECTIVES_GROUP] = Field(
        3.0, ge=0, description="weight of masked voxels in that mean, where the others have 1"
    )
    coarse_weight: Annotated[float, OBJECTIVES_GROUP] = Field(
        0.5,
        ge=0,
        description="weight of the errors at each lower resolution, with --repair-from pyramid or half",
    )
    relative_loss: Annotated[bool, OBJECTIVES_GROUP] = Field(
        True,
        description="divide a crop's error by its deviation: CT, scaled to 0 to 1, then counts as much as MR",
    )
    loss_on_padding: Annotated[bool, OBJECTIVES_GROUP] = Field(
        False, description="count the zeros around a scan that is smaller than the crop"
    )

    def repair_loss(self) -> RepairLoss:
        """How repairs are measured."""
        return RepairLoss(
            masked_only=self.reconstruction_loss == "masked",
            masked_weight=self.masked_weight,
            on_padding=self.loss_on_padding,
            relative=self.relative_loss,
            coarse_weight=self.coarse_weight,
        )
