"""The reconstruction loss: L1 between repaired and clean crops, possibly at several resolutions.

    loss = (L1 at full resolution + coarse_weight * sum of L1 at lower resolutions) / deviation(clean)

By default all voxels inside the scan contribute, masked ones with a higher weight. `reconstruction_loss`
"masked" restricts it to masked voxels, as in masked autoencoders (He et al., arXiv 2111.06377).
"""

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
    """Mean absolute error with the following options.

    Attributes:
        masked_only: average over masked voxels only.
        masked_weight: weight of masked voxels; other voxels have weight 1.
        on_padding: include the zero padding outside the scan.
        relative: divide by the standard deviation of the clean crop.
        coarse_weight: weight of each lower resolution; full resolution has weight 1.
    """

    masked_only: bool = False
    masked_weight: float = 1.0
    on_padding: bool = False
    relative: bool = True
    coarse_weight: float = 0.5

    def total(
        self, repaired: Sequence[Tensor], clean: Tensor, inside: Tensor | None, disrupted: Disrupted
    ) -> tuple[Tensor, Tensor]:
        """The loss summed over all resolutions, and the loss at full resolution.

        Args:
            repaired: outputs of the network, (B, C, D, H, W) first, then lower resolutions.
            clean: (B, C, D, H, W).
            inside: (B, 1, D, H, W) bool, true inside the scan; None if there is no padding.
            disrupted: the input of the network.

        Returns:
            Two tensors (B,) float32.
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
    """Settings of the reconstruction loss."""

    reconstruction_loss: Annotated[Literal["all", "masked"], OBJECTIVES_GROUP] = Field(
        "all", description="voxels in the mean absolute error: all, or masked ones only (mae only)"
    )
    masked_weight: Annotated[float, OBJECTIVES_GROUP] = Field(
        3.0, ge=0, description="weight of masked voxels in that mean; other voxels have weight 1"
    )
    coarse_weight: Annotated[float, OBJECTIVES_GROUP] = Field(
        0.5,
        ge=0,
        description="weight of the error at each lower resolution, with --repair-from pyramid or half",
    )
    relative_loss: Annotated[bool, OBJECTIVES_GROUP] = Field(
        True,
        description="divide the error of a crop by its standard deviation, so that CT (scaled to 0 to 1) and "
        "MR contribute equally",
    )
    loss_on_padding: Annotated[bool, OBJECTIVES_GROUP] = Field(
        False, description="include the zero padding around scans smaller than the crop"
    )

    def repair_loss(self) -> RepairLoss:
        """The loss with these settings."""
        return RepairLoss(
            masked_only=self.reconstruction_loss == "masked",
            masked_weight=self.masked_weight,
            on_padding=self.loss_on_padding,
            relative=self.relative_loss,
            coarse_weight=self.coarse_weight,
        )
