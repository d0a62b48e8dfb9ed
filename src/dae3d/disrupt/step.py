"""What a disruption is: steps in turn, each with settings of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dae3d.disrupt.batch import Disrupted
from dae3d.settings import Group

DISRUPTION = Group("disruption")


@dataclass(frozen=True)
class Step:
    """One thing that is done to a batch.

    Attributes:
        run: the batch, and settings that have this step's, to the batch after it.
        sides: names of settings in voxels that divide the side of a crop.
        lowers_resolution: whether it takes away resolution, which smoothing then need not mend.
        masks_voxels: whether it sets `voxel_mask`: the network then needs its mask token.
        masks_channels: whether it sets `channel_keep`: drawn for each window of a whole scan, not once.
    """

    run: Callable[[Disrupted, Any], Disrupted]
    sides: tuple[str, ...] = field(default=(), kw_only=True)
    lowers_resolution: bool = field(default=False, kw_only=True)
    masks_voxels: bool = field(default=False, kw_only=True)
    masks_channels: bool = field(default=False, kw_only=True)

    def __call__(self, batch: Disrupted, settings: Any) -> Disrupted:
        """The batch after this step."""
        return self.run(batch, settings)


@dataclass(frozen=True)
class Disruption:
    """What is done to a clean crop before the network repairs it.

    Attributes:
        steps: in their order.
        damage: what is to be repaired, in words: "noise".
        help: for the command line.
    """

    steps: tuple[Step, ...]
    damage: str
    help: str

    @property
    def lowers_resolution(self) -> bool:
        """Whether resolution is lost."""
        return any(step.lowers_resolution for step in self.steps)

    @property
    def masks_voxels(self) -> bool:
        """Whether blocks of voxels are masked, and with them tokens."""
        return any(step.masks_voxels for step in self.steps)

    def check(self, settings: Any, roi: int) -> None:
        """Raise `ValueError` where crops of `roi` voxels a side do not fit the settings."""
        for step in self.steps:
            for name in step.sides:
                side = getattr(settings, name)
                # A token is two voxels wide.
                even = "be even and " if step.masks_voxels else ""
                if roi % side or (even and side % 2):
                    raise ValueError(f"{name}: must {even}divide roi {roi}, not {side}")
