"""The crops for probing a run: its validation crops, and more for modalities with too few."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch

from dae3d.store.boxes import Triple
from dae3d.store.store import Store
from dae3d.training.batch import Sample, pack
from dae3d.training.data import CropDataset, TrainingData
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.sampling import LAST_SAMPLE, Crop, philox, random_start

CROPS = 8  # minimum per modality
TOGETHER = 8  # crops per group for swapping
SWAPPED = 24  # approximate number of crops used for swapping

_PROBE = 7


@dataclass(frozen=True)
class ProbeCrops:
    """Fixed crops with fixed disruptions, the validation crops first."""

    dataset: CropDataset
    crops: list[Crop]
    subjects: list[str]
    modalities: list[str]

    @property
    def counts(self) -> dict[str, int]:
        """Number of crops per modality."""
        numbers = [crop.modality for crop in self.crops]
        return {name: numbers.count(number) for number, name in enumerate(self.modalities)}

    def groups(self) -> list[list[int]]:
        """Indices of all crops in groups of about `TOGETHER`, with modalities mixed."""
        of_each = [
            [index for index, crop in enumerate(self.crops) if crop.modality == number]
            for number in range(len(self.modalities))
        ]
        mixed = [index for row in zip_longest(*of_each) for index in row if index is not None]
        return [part.tolist() for part in np.array_split(mixed, -(-len(mixed) // TOGETHER))]

    def read(self, indices: Sequence[int], together: int, device: torch.device) -> Iterator[Sample]:
        """Read crops by index, `together` at a time, onto the device."""
        for first in range(0, len(indices), together):
            batch = pack([self.dataset[index] for index in indices[first : first + together]])
            yield batch.to(device).unpack(self.dataset.roi)


def probe_crops(data: TrainingData, settings: PretrainSettings) -> ProbeCrops:
    """The crops for probing a run."""
    scans = data.store.scans
    crops = list(data.validation)
    for number, name in enumerate(data.modalities):
        there = [crop.scan for crop in crops if crop.modality == number]
        candidates = [*data.scans.held_out.get(name, []), *data.scans.training[name]]
        crops += _more_crops(data.store, there, candidates, number, settings.roi)
    dataset = CropDataset(data.store, crops, settings.roi, LAST_SAMPLE, settings.intensity)
    subjects = [scans[crop.scan].source.subject for crop in crops]
    return ProbeCrops(dataset, crops, subjects, data.modalities)


def _more_crops(
    store: Store, there: Sequence[int], candidates: Sequence[int], modality: int, roi: Triple
) -> list[Crop]:
    """Additional crops up to `CROPS`: two per scan if there are enough scans, held-out scans first."""
    count = {scan: there.count(scan) for scan in there}
    added = []
    for place in range(len(there), CROPS):
        single = [scan for scan, crops in count.items() if crops == 1]
        fresh = [scan for scan in candidates if scan not in count]
        least = min(count, key=count.__getitem__)
        scan = (single or fresh or [least])[0]
        count[scan] = count.get(scan, 0) + 1
        random = philox(modality, _PROBE, place)
        added.append(Crop(scan, modality, random_start(store.scans[scan], roi, "foreground", random)))
    return added
