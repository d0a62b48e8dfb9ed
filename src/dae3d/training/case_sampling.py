"""Case and crop of each fine-tuning sample: a pure function of settings, seed and sample number."""

import functools
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

    Crops are centred on a labelled voxel with probability `positive_share`, otherwise on background.

    Args:
        store: of the cases.
        training: numbers of the cases to draw from.
        settings: of the run.
    """

    def __init__(self, store: CaseStore, training: list[int], settings: FinetuneSettings) -> None:
        self.store, self.training, self.settings = store, training, settings
        self.per_epoch = len(training) * settings.crops_per_case

    def __getitem__(self, sample: int) -> CaseCrop:
        s = self.settings
        epoch, place = divmod(sample, self.per_epoch)
        case = self.training[_order(s.seed, epoch, self.per_epoch)[place] % len(self.training)]
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
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return philox(seed, _EPOCH, epoch).permutation(count)


def _start(centre: np.ndarray, shape: Triple, roi: Triple) -> Triple:
    """First voxel of a crop around a voxel, moved inside the case; a smaller case is centred in it."""
    x, y, z = (
        min(max(int(middle) - size // 2, 0), side - size) if side > size else (side - size) // 2
        for middle, side, size in zip(centre, shape, roi, strict=True)
    )
    return x, y, z
