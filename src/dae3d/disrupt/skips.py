"""Random dropping of skip connections."""

from collections.abc import Sequence

from torch import Tensor

from dae3d.disrupt.random import uniform

_STREAM = 8


def drop_skips(hidden: Sequence[Tensor], keys: Tensor, chance: float) -> list[Tensor]:
    """Set the finest feature maps to zero at random, so that the decoder must use the deeper encoder stages.

    Where a map is dropped, all finer maps of the sample are dropped too.

    Args:
        hidden: the feature maps (B, C, D, H, W), finest first. The last one is never dropped.
        keys: (B,) int64, the key of each sample's random numbers.
        chance: probability to drop the first map; it halves with each following map.
    """
    if chance == 0:
        return list(hidden)
    drawn = uniform(keys, 1, _STREAM).view(-1, 1, 1, 1, 1)
    kept = [level * (drawn >= chance / 2**number).to(level.dtype) for number, level in enumerate(hidden[:-1])]
    return [*kept, hidden[-1]]
