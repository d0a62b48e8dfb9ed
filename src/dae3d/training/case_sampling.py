"""Case and crop of each fine-tuning sample: a pure function of settings, seed and sample number."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dae3d.store.boxes import Triple
from dae3d.store.cases import CaseStore
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.sampling import philox

_EPOCH, _SAMPLE = 4, 5


@dataclass(frozen=True)
class CaseCrop:
    """A crop of a case: number of the case, first voxel on each axis, seed of the augmentation."""

    case: int
    start: Triple
    seed: int


class CaseStream:
    """An endless stream of crops; every epoch has `crops_per_case` of each training case, in random order.

    Cases of other weights than 1 have so many times as many, rounded up or down at random. Crops are centred
    on a labelled voxel with probability `positive_share`, otherwise on background.

    Args:
        store: of the cases.
        training: numbers of the cases to draw from.
        settings: of the run.
        weights: of the cases, relative to each other; default: 1.
    """

    def __init__(
        self,
        store: CaseStore,
        training: list[int],
        settings: FinetuneSettings,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.store, self.training, self.settings = store, training, settings
        self.weights = tuple(weights or [1.0] * len(training))
        self.per_epoch = max(1, round(sum(self.weights) * settings.crops_per_case))

    def __getitem__(self, sample: int) -> CaseCrop:
        s = self.settings
        epoch, place = divmod(sample, self.per_epoch)
        case = self.training[_order(s.seed, epoch, self.per_epoch, self.weights)[place]]
        random = philox(s.seed, _SAMPLE, sample)
        centre = self._centre(case, random)
        shape = self.store.cases[case].shape
        return CaseCrop(case, _start(centre, shape, s.roi), int(random.integers(2**32)))

    def _centre(self, case: int, random: np.random.Generator) -> np.ndarray:
        """A random voxel of a random class."""
        positions = self.store.positions(case)
        counts = np.array(self.store.cases[case].voxels, float)
        counts[[len(where) == 0 for where in positions]] = 0
        labelled = counts[1:].sum() > 0
        if labelled and (random.random() < self.settings.positive_share or counts[0] == 0):
            weights = counts[1:] if self.settings.crop_balance == "voxels" else (counts[1:] > 0).astype(float)
            drawn = 1 + int(random.choice(len(weights), p=weights / weights.sum()))
        else:
            drawn = 0
        return positions[drawn][random.integers(len(positions[drawn]))]


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int, weights: tuple[float, ...]) -> np.ndarray:
    """The case of each of the `count` samples of an epoch, as an index of `weights`."""
    random = philox(seed, _EPOCH, epoch)
    shuffled = random.permutation(count)
    if set(weights) == {1.0}:
        return shuffled % len(weights)
    # Systematic sampling: each case gets its share of the epoch to within one sample.
    ends = np.cumsum(weights)
    points = (shuffled + random.random()) * (ends[-1] / count)
    return np.searchsorted(ends, points, side="right").clip(max=len(weights) - 1)


def _start(centre: np.ndarray, shape: Triple, roi: Triple) -> Triple:
    """First voxel of a crop around a voxel, moved inside the case; a smaller case is centred in it."""
    x, y, z = (
        min(max(int(middle) - size // 2, 0), side - size) if side > size else (side - size) // 2
        for middle, side, size in zip(centre, shape, roi, strict=True)
    )
    return x, y, z
