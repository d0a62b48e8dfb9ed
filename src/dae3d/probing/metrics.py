"""What a probe found, as `check.json` has it. What was not measured is not there."""

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


def _measured(values: Any) -> Any:
    """A dict without what is not a number."""
    if not isinstance(values, dict):
        return values
    return {name: v for name, v in values.items() if not (isinstance(v, float) and not math.isfinite(v))}


class ProbeMetrics(_Record):
    """ProbeMetrics of one network.

    Attributes:
        l1: of the repairs of the crops that were swapped.
        share: how much larger it is, in percent, with a level ("level0" to "level4"), "all" or the decoder's
            "image" taken from another scan's crop.
        rank: effective rank of each level's features.
        channels, tokens: of each level; the rank is at most the one, and less than the other.
        cosine: mean cosines of pooled features: "any", "within", "between", "scan", "subjects".
        nearest: share of the crops whose nearest neighbour is of their modality; `chance` is the share that
            the numbers of crops give, `queries` how many crops count.
        crops: of each modality.
        swapped: how many of them were swapped.
        dice: of the voxel probe, by level and of "all".
    """

    l1: float | None = None
    share: dict[str, float] = {}
    rank: dict[str, float] = {}
    channels: dict[str, int] = {}
    tokens: dict[str, int] = {}
    cosine: dict[str, float] = {}
    nearest: float | None = None
    chance: float | None = None
    queries: int = 0
    crops: dict[str, int] = {}
    swapped: int = 0
    dice: dict[str, float] = {}

    @field_validator("share", "rank", "cosine", "dice", mode="before")
    @classmethod
    def _numbers(cls, values: Any) -> Any:
        return _measured(values)

    @field_validator("l1", "nearest", "chance", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def rows(self) -> dict[str, float]:
        """As metrics of a run."""
        found = {f"probe/share/{name}": value for name, value in self.share.items()}
        found |= {f"probe/rank/{name}": value for name, value in self.rank.items()}
        found |= {f"probe/cosine/{name}": value for name, value in self.cosine.items()}
        found |= {f"probe/dice/{name}": value for name, value in self.dice.items()}
        return found if self.nearest is None else found | {"probe/nearest": self.nearest}


class ProbeTask(_Record):
    """What the voxel probe was fitted and tested on."""

    task: str
    classes: tuple[str, ...]
    fitted: tuple[str, ...]
    tested: int


class Check(_Record):
    """`check.json`. `random` is the voxel probe's Dice of the same network with random weights."""

    dae3d: str | None = None
    weights: str | None = None
    step: int | None = None
    sound: bool = True
    verdict: tuple[str, ...] = ()
    figures: ProbeMetrics = ProbeMetrics()
    random: dict[str, float] = {}
    labelled: ProbeTask | None = None
    seconds: float | None = None
    settings: dict[str, Any] = {}
