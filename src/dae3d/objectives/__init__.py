"""Pre-training losses: the reconstruction error (`repair.py`) and auxiliary losses added to it.

    total = reconstruction + sum over OBJECTIVES of weight * loss

To add a loss, write it and its settings in a file of its own, add it to `OBJECTIVES` under the name that
metrics use, and let `ObjectiveSettings` inherit its settings.
"""

from dae3d.objectives.contrastive import CONTRASTIVE, ContrastiveSettings
from dae3d.objectives.dense import DENSE, DenseSettings
from dae3d.objectives.features import FEATURES, FeatureSettings
from dae3d.objectives.objective import Objective, PretrainStep
from dae3d.objectives.repair import RepairSettings

OBJECTIVES: dict[str, Objective] = {"contrastive": CONTRASTIVE, "dense": DENSE, "features": FEATURES}


class ObjectiveSettings(FeatureSettings, DenseSettings, ContrastiveSettings, RepairSettings):
    """The losses and their weights."""

    def objectives(self) -> dict[str, Objective]:
        """The auxiliary losses with a non-zero weight, by name."""
        return {name: each for name, each in OBJECTIVES.items() if each.weight(self)}

    @property
    def pairs(self) -> bool:
        """Whether a loss needs pairs of overlapping crops of the same scan."""
        return any(each.pairs for each in self.objectives().values())


__all__ = ["OBJECTIVES", "Objective", "ObjectiveSettings", "PretrainStep"]
