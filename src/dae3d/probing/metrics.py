"""The metrics of a probe, as written to `check.json`; what was not measured is absent."""

import math
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


def _measured(values: Any) -> Any:
    """A dict without values that are not finite."""
    if not isinstance(values, dict):
        return values
    return {name: v for name, v in values.items() if not (isinstance(v, float) and not math.isfinite(v))}


def levels_among(names: Iterable[str]) -> list[str]:
    """The names of encoder levels ("level0", "level1", ...) among others, the finest first."""
    numbers = {int(match[1]) for name in names if (match := re.fullmatch(r"level(\d+)", name))}
    return [f"level{number}" for number in sorted(numbers)]


class ProbeMetrics(_Record):
    """Metrics of one network.

    Attributes:
        l1: L1 of the repaired crops that were used for swapping.
        share: increase of this L1 in percent when a level ("level0" is the finest), "all" levels or the
            "image" skip is replaced by that of a crop of another scan.
        rank: effective rank of the features of each level.
        channels, tokens: per level; the rank is at most the number of channels and less than the number of
            tokens.
        cosine: mean cosines of pooled features: "any", "within", "between", "scan", "subjects".
        nearest: share of crops whose nearest neighbour has the same modality; `chance` is the share expected
            by chance, `queries` the number of crops that count.
        crops: number of crops per modality.
        swapped: number of crops used for swapping.
        dice: Dice of the voxel probe by level, and of "all" levels.
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

    @property
    def levels(self) -> list[str]:
        """Names of the encoder's levels, the finest first."""
        return levels_among((*self.channels, *self.rank, *self.share, *self.dice))

    @field_validator("share", "rank", "cosine", "dice", mode="before")
    @classmethod
    def _numbers(cls, values: Any) -> Any:
        return _measured(values)

    @field_validator("l1", "nearest", "chance", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def rows(self) -> dict[str, float]:
        """The metrics as rows of `metrics.csv`."""
        found = {f"probe/share/{name}": value for name, value in self.share.items()}
        found |= {f"probe/rank/{name}": value for name, value in self.rank.items()}
        found |= {f"probe/cosine/{name}": value for name, value in self.cosine.items()}
        found |= {f"probe/dice/{name}": value for name, value in self.dice.items()}
        return found if self.nearest is None else found | {"probe/nearest": self.nearest}


class ProbeTask(_Record):
    """The cases on which the voxel probe was fitted and tested."""

    task: str
    classes: tuple[str, ...]
    fitted: tuple[str, ...]
    tested: int


class Check(_Record):
    """`check.json`. `random` is the Dice of the voxel probe for the same network with random weights."""

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
