"""Feature maps that the decoder does without, drawn for each sample."""

from collections.abc import Sequence

from torch import Tensor

from dae3d.disrupt.random import uniform

_STREAM = 8
_LEVELS = 3  # tokens, first and second stage


def drop_skips(hidden: Sequence[Tensor], keys: Tensor, chance: float) -> list[Tensor]:
    """Feature maps with some of the finest set to zero, so that a repair cannot do without the stages below.

    Args:
        hidden: the five maps (B, C, D, H, W), the finest first.
        keys: (B,) int64, the key of each sample's random numbers.
        chance: of the first map; half of it for the second, a quarter for the third.
    """
    if chance == 0:
        return list(hidden)
    drawn = uniform(keys, _LEVELS, _STREAM)
    kept = [
        level * (drawn[:, number] >= chance / 2**number).to(level.dtype)[:, None, None, None, None]
        for number, level in enumerate(hidden[:_LEVELS])
    ]
    return [*kept, *hidden[_LEVELS:]]
