"""What a repair is measured by: where, on which scale, at which resolutions."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dae3d.disrupt import Disrupted
from dae3d.objectives.reconstruction import deviation, reconstruction_loss


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
