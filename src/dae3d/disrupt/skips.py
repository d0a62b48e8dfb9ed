"""Feature maps that the decoder does without, drawn for each sample."""

from collections.abc import Sequence

from torch import Tensor

from dae3d.disrupt.random import uniform

_STREAM = 8


def drop_skips(hidden: Sequence[Tensor], keys: Tensor, chance: float) -> list[Tensor]:
    """Feature maps with the finest set to zero, so that a repair cannot do without the stages below.

    A sample that does without one map does without all finer ones, too: what is left has to come from below.

    Args:
        hidden: the five maps (B, C, D, H, W), the finest first. The last one stays.
        keys: (B,) int64, the key of each sample's random numbers.
        chance: of the first map; half of it for the second, and so on.
    """
    if chance == 0:
        return list(hidden)
    drawn = uniform(keys, 1, _STREAM).view(-1, 1, 1, 1, 1)
    kept = [level * (drawn >= chance / 2**number).to(level.dtype) for number, level in enumerate(hidden[:-1])]
    return [*kept, hidden[-1]]
