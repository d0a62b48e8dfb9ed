"""Scan and crop of each pre-training sample: a pure function of settings, seed and sample number.

Sample `i` is at place `i % G` of global batch `i // G`, where a global batch has the G samples of all devices
together. Nothing here has state, so a run sees the same samples if it is resumed at any step, with other
loader workers, or with another split of the global batch over devices.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from dae3d.errors import Dae3dError
from dae3d.objectives.dense import PAIR_STEP
from dae3d.store.boxes import Triple
from dae3d.store.store import StoredScan

_BATCH, _SAMPLE, _VALIDATION = 1, 2, 3

# Disruptions of validation crops take sample numbers from the top of the 32-bit range.
LAST_SAMPLE = 2**32 - 1


@dataclass(frozen=True)
class Crop:
    """A crop: index of the scan in the store, index of its modality, first voxel on each axis."""

    scan: int
    modality: int
    start: Triple


class SampleStream:
    """An endless stream of training crops in which every global batch mixes the modalities.

    With 4 or more samples per batch, modalities are drawn, and two samples of each; every modality is in each
    batch that can hold two samples of all.

    Args:
        scans: of the store.
        training: numbers of the scans to draw from, by modality.
        roi: sides of the crops in voxels.
        global_batch: samples in a batch of all devices.
        seed: of the run.
        region: "volume" or "foreground".
        weights: share of each modality; None: the square root of its number of scans.
        shuffle: draw the modalities of each batch in random order, so that any two can meet; in the order of
            their names some never do, if a batch cannot hold all.
        pairs: samples 2k and 2k + 1 are overlapping crops of one scan: `near_start`.
    """

    def __init__(
        self,
        scans: Sequence[StoredScan],
        training: dict[str, list[int]],
        roi: Triple,
        global_batch: int,
        seed: int,
        region: str,
        weights: dict[str, float] | None = None,
        shuffle: bool = True,
        pairs: bool = False,
    ) -> None:
        self.scans = scans
        self.roi = roi
        self.global_batch = global_batch
        self.seed = seed
        self.region = region
        self.shuffle, self.pairs = shuffle, pairs
        self.modalities = sorted(training)
        self.by_modality = [np.array(training[name]) for name in self.modalities]
        # The contrastive loss needs two samples of a modality: from 4 samples on, modalities come in pairs.
        self.each = 2 if global_batch >= 4 or pairs else 1
        self.draws = -(-global_batch // self.each)
        self.quotas = batch_quotas(self._shares(weights), self.draws)
        self._modalities_of = functools.lru_cache(maxsize=16)(self._modalities_of_batch)

    def __getitem__(self, sample: int) -> Crop:
        if self.pairs and sample % 2:
            first = self[sample - 1]
            random = philox(self.seed, _SAMPLE, sample)
            return dataclasses.replace(
                first, start=near_start(self.scans[first.scan], first.start, self.roi, random)
            )
        batch, place = divmod(sample, self.global_batch)
        modality = int(self._modalities_of(batch)[place])
        random = philox(self.seed, _SAMPLE, sample)
        candidates = self.by_modality[modality]
        scan = int(candidates[random.integers(len(candidates))])
        return Crop(scan, modality, random_start(self.scans[scan], self.roi, self.region, random))

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_modalities_of"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._modalities_of = functools.lru_cache(maxsize=16)(self._modalities_of_batch)

    def _shares(self, weights: dict[str, float] | None) -> np.ndarray:
        if weights is None:
            return np.sqrt([len(scans) for scans in self.by_modality])
        unknown = sorted(set(weights) - set(self.modalities))
        absent = sorted(set(self.modalities) - set(weights))
        if unknown or absent or min(weights.values()) <= 0:
            raise Dae3dError(
                f"modality_weights: needs one weight above 0 for each of {', '.join(self.modalities)}"
            )
        return np.array([weights[name] for name in self.modalities])

    def _modalities_of_batch(self, batch: int) -> np.ndarray:
        """Systematic sampling: each modality occurs floor or ceil of its quota times, at random places."""
        random = philox(self.seed, _BATCH, batch)
        order = np.arange(len(self.quotas))
        if self.shuffle:
            random.shuffle(order)
        points = np.arange(self.draws) + random.random()
        drawn = order[np.searchsorted(np.cumsum(self.quotas[order])[:-1], points, side="right")]
        several = np.repeat(random.permutation(drawn), self.each)[: self.global_batch]
        return several if self.pairs else random.permutation(several)


def batch_quotas(shares: np.ndarray, draws: int) -> np.ndarray:
    """Average number of the `draws` for each modality; at least one if there are enough for all."""
    shares = shares / shares.sum()
    quotas = draws * shares
    if draws < len(shares):
        return quotas
    raised = np.zeros(len(shares), dtype=bool)
    while (quotas < 1 - 1e-9).any():
        raised |= quotas < 1
        rest = draws - raised.sum()
        quotas = np.where(raised, 1.0, rest * shares / max(shares[~raised].sum(), 1e-12))
    return quotas


def random_start(scan: StoredScan, roi: Triple, region: str, random: np.random.Generator) -> Triple:
    """First voxel of a random crop: anywhere in the scan, or filled by or containing the foreground.

    Along an axis where the scan is smaller than the crop it is centred in it, so a start can be negative.
    """
    low, high = (0, 0, 0), scan.shape
    if region == "foreground":
        low, high = scan.statistics.foreground
    start = []
    for side, size, first, end in zip(scan.shape, roi, low, high, strict=True):
        if side <= size:
            start.append((side - size) // 2)
        else:
            least, most = sorted((first, end - size))
            least, most = max(least, 0), min(most, side - size)
            start.append(int(random.integers(least, max(most, least) + 1)))
    return start[0], start[1], start[2]


def near_start(scan: StoredScan, start: Triple, roi: Triple, random: np.random.Generator) -> Triple:
    """First voxel of a crop that overlaps the one at `start` by at least 5/8 of its side along each axis.

    The shift is a multiple of 4 voxels, so that the tokens of both crops are on one grid. The crop extends
    beyond the scan by at most 3/8 of its side.
    """
    moved = []
    for side, first, size, step in zip(scan.shape, start, roi, PAIR_STEP, strict=True):
        most = 3 * size // 8 // step
        places = first + step * np.arange(-most, most + 1)
        margin = step * most
        there = places[(places >= min(first, -margin)) & (places <= max(first, side - size + margin))]
        moved.append(int(random.choice(there)))
    return moved[0], moved[1], moved[2]


def validation_crops(
    scans: Sequence[StoredScan], candidates: Sequence[Sequence[int]], roi: Triple, count: int
) -> list[Crop]:
    """`count` fixed crops of each modality, around the foreground of its `candidates` (numbers of scans).

    They depend only on the scans, so that runs are comparable.
    """
    crops = []
    for modality, numbers in enumerate(candidates):
        for place in range(count):
            random = philox(modality, _VALIDATION, place)
            scan = numbers[place % len(numbers)]
            crops.append(Crop(scan, modality, random_start(scans[scan], roi, "foreground", random)))
    return crops


class BatchSampler(Sampler[list[int]]):
    """Endless batches of sample numbers for one rank, starting at batch `first`.

    Batch n of rank r is the r-th part of global batch n.
    """

    def __init__(self, first: int, batch_size: int, rank: int, world_size: int) -> None:
        self.first, self.batch_size, self.rank, self.world_size = first, batch_size, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.first
        while True:
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield list(range(start, start + self.batch_size))
            batch += 1


def philox(seed: int, stream: int, number: int) -> np.random.Generator:
    """A generator for one draw, keyed by the seed, the kind of draw, and its number."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, number]))
