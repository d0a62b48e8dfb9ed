"""Losses of pre-training: the error of the repair (`repair.py`), and what is added to it.

To add one, write it in a file of its own, with its settings, and give it a line in `OBJECTIVES`, under the
name that metrics call it; `ObjectiveSettings` inherits the settings.
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
        """Those that have a weight, by name."""
        return {name: each for name, each in OBJECTIVES.items() if each.weight(self)}

    @property
    def pairs(self) -> bool:
        """Whether crops come in pairs of one scan."""
        return any(each.pairs for each in self.objectives().values())


__all__ = ["OBJECTIVES", "Objective", "ObjectiveSettings", "PretrainStep"]
