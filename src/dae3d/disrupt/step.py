"""The interface of disruptions: a sequence of steps, each with its own settings."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dae3d.disrupt.batch import Disrupted
from dae3d.settings import Group
from dae3d.store.boxes import Triple, by_axis

DISRUPTION = Group("disruption")


@dataclass(frozen=True)
class Step:
    """One operation on a batch.

    Attributes:
        run: maps a batch and the settings to the batch after this step.
        sides: names of settings, in voxels, that must divide every side of a crop.
        maxima: whether these settings are maxima instead: sides are powers of two up to them that divide a
            crop's.
        lowers_resolution: whether it reduces the resolution; baselines then include interpolation.
        masks_voxels: whether it sets `voxel_mask`; the network then uses its mask token.
        masks_channels: whether it sets `channel_keep`; for a whole scan it is then drawn per window, not
            once.
    """

    run: Callable[[Disrupted, Any], Disrupted]
    sides: tuple[str, ...] = field(default=(), kw_only=True)
    maxima: bool = field(default=False, kw_only=True)
    lowers_resolution: bool = field(default=False, kw_only=True)
    masks_voxels: bool = field(default=False, kw_only=True)
    masks_channels: bool = field(default=False, kw_only=True)

    def __call__(self, batch: Disrupted, settings: Any) -> Disrupted:
        """Apply the step."""
        return self.run(batch, settings)


@dataclass(frozen=True)
class Disruption:
    """A sequence of steps applied to a clean crop.

    Attributes:
        steps: in order of application.
        damage: what is repaired, in words, such as "noise".
        help: description for the command line.
    """

    steps: tuple[Step, ...]
    damage: str
    help: str

    @property
    def lowers_resolution(self) -> bool:
        """Whether a step reduces the resolution."""
        return any(step.lowers_resolution for step in self.steps)

    @property
    def masks_voxels(self) -> bool:
        """Whether a step masks blocks of voxels and their tokens."""
        return any(step.masks_voxels for step in self.steps)

    def check(self, settings: Any, roi: Triple) -> None:
        """Raise `ValueError` if the settings do not fit crops with these sides in voxels."""
        for step in self.steps:
            if step.maxima:
                if step.masks_voxels and any(side % 2 for side in roi):
                    raise ValueError(
                        f"roi: sides must be even, not {by_axis(roi)}, because blocks of 2 voxels and more "
                        "are masked"
                    )
                continue
            for name in step.sides:
                side = getattr(settings, name)
                # Tokens are two voxels wide.
                even = "be even and " if step.masks_voxels else ""
                left = [str(length) for length in dict.fromkeys(roi) if length % side]
                if left or (even and side % 2):
                    which = f"; it does not divide {' and '.join(left)}" if left else ""
                    raise ValueError(
                        f"{name}: must {even}divide every side of roi {by_axis(roi)}, not {side}{which}"
                    )
