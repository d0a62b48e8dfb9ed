"""Crops from the store to the network: the dataset and the loaders."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dae3d.errors import Dae3dError
from dae3d.store.store import Store
from dae3d.training.run_settings import RunSettings
from dae3d.training.sampling import (
    LAST_SAMPLE,
    BatchSampler,
    Crop,
    SampleStream,
    validation_crops,
)
from dae3d.training.settings import PretrainSettings

Sample = dict[str, torch.Tensor]


class CropDataset(Dataset[Sample]):
    """Crops by number: normalised image (1, D, H, W) float32, modality and sample number as int64 scalars."""

    def __init__(
        self,
        store: Store,
        crops: SampleStream | Sequence[Crop],
        roi: int,
        last: int | None = None,
        intensity: Mapping[str, str] | None = None,
    ) -> None:
        self.store, self.crops, self.roi, self.last, self.intensity = store, crops, roi, last, intensity

    def __getitem__(self, index: int) -> Sample:
        crop = self.crops[index]
        image = self.store.read_padded(crop.scan, crop.start, (self.roi,) * 3, self.intensity)
        sample = index if self.last is None else self.last - index
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image))[None],
            "modality": torch.tensor(crop.modality),
            "sample": torch.tensor(sample),
        }

    def __len__(self) -> int:
        """Number of crops; of fixed ones only, a stream has no end."""
        assert not isinstance(self.crops, SampleStream)
        return len(self.crops)


@dataclass(frozen=True)
class TrainingData:
    """A store as one run sees it: its stream of crops, its fixed validation crops, its scans by modality."""

    store: Store
    stream: SampleStream
    validation: list[Crop]
    training: dict[str, list[int]]
    held_out: dict[str, list[int]]

    @property
    def modalities(self) -> list[str]:
        """Labels, in the order of the modality numbers."""
        return self.stream.modalities

    @property
    def batches_per_epoch(self) -> int:
        """Global batches in which as many crops are drawn as there are training scans."""
        return -(-sum(map(len, self.training.values())) // self.stream.global_batch)

    def scans_of(self, sample: int) -> list[str]:
        """The files in the global batch that a sample is of."""
        size = self.stream.global_batch
        first = sample // size * size
        crops = (self.stream[i] for i in range(first, first + size))
        return sorted({str(self.store.scans[crop.scan].path) for crop in crops})

    def about(self) -> dict[str, Any]:
        """For `run.json`: the scans by modality and data set, and the validation crops."""
        return {
            "data": {"store": str(self.store.path), "rows": self._rows()},
            "validation": self._validation(),
        }

    def _rows(self) -> list[dict[str, Any]]:
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for numbers in (*self.training.values(), *self.held_out.values()):
            for scan in (self.store.scans[number] for number in numbers):
                row = rows.setdefault(
                    (scan.modality, scan.dataset),
                    {"modality": scan.modality, "dataset": scan.dataset, "train": 0, "val": 0, "voxels": 0},
                )
                row[scan.split] += 1
                row["voxels"] += scan.shape[0] * scan.shape[1] * scan.shape[2]
        return [rows[key] for key in sorted(rows)]

    def _validation(self) -> dict[str, Any]:
        described: dict[str, Any] = {}
        for number, name in enumerate(self.modalities):
            scans = [self.store.scans[crop.scan] for crop in self.validation if crop.modality == number]
            described[name] = {
                "crops": len(scans),
                "split": scans[0].split,
                "scans": sorted({scan.path.name for scan in scans}),
            }
        return described


def training_data(settings: PretrainSettings, world_size: int) -> TrainingData:
    """Open the store and choose what the run trains and validates on.

    Raises:
        Dae3dError: where the store has no training scan, or a named data set or modality is not in it.
    """
    store = Store(settings.data)
    labels = [(scan.modality, scan.dataset, scan.split) for scan in store.scans]
    present = {dataset for _, dataset, _ in labels}
    for name in settings.datasets or []:
        if name not in present:
            raise Dae3dError(
                f"datasets: {settings.data} has no {name!r}; it has {', '.join(sorted(present))}"
            )
    strangers = sorted(set(settings.intensity) - {modality for modality, _, _ in labels})
    if strangers:
        modalities = ", ".join(sorted({modality for modality, _, _ in labels}))
        raise Dae3dError(f"intensity: {settings.data} has no {', '.join(strangers)}; it has {modalities}")
    wanted = present if settings.datasets is None else set(settings.datasets)
    training: dict[str, list[int]] = {}
    held_out: dict[str, list[int]] = {}
    for number, (modality, dataset, split) in enumerate(labels):
        if dataset in wanted:
            (training if split == "train" else held_out).setdefault(modality, []).append(number)
    if not training:
        raise Dae3dError(f"{settings.data}: no training scans; prepare some with split train")
    stream = SampleStream(
        store.scans,
        training,
        settings.roi,
        settings.batch_size * world_size,
        settings.seed,
        settings.crop_region,
        settings.modality_weights,
    )
    # A modality without a validation scan lends its training scans.
    candidates = [held_out.get(name, training[name]) for name in stream.modalities]
    crops = validation_crops(store.scans, candidates, settings.roi, settings.val_crops)
    return TrainingData(store, stream, crops, training, held_out)


class CropLoaders(lightning.LightningDataModule):
    """Loaders of a run. Training goes on from the trainer's step, so that a resumed run repeats nothing."""

    def __init__(self, data: TrainingData, settings: PretrainSettings) -> None:
        super().__init__()
        self.data, self.settings = data, settings

    def train_dataloader(self) -> DataLoader[Sample]:
        """Endless batches of this rank's crops."""
        crops = self._crops(self.data.stream)
        return endless_loader(crops, self.settings, self.trainer)

    def val_dataloader(self) -> DataLoader[Sample]:
        """All fixed crops, on every rank alike: there are few, and so no rank waits or disagrees."""
        crops = self._crops(self.data.validation, LAST_SAMPLE)
        return DataLoader(crops, batch_size=self.settings.batch_size, shuffle=False)

    def _crops(self, crops: SampleStream | Sequence[Crop], last: int | None = None) -> CropDataset:
        return CropDataset(self.data.store, crops, self.settings.roi, last, self.settings.intensity)


def endless_loader(crops: Dataset[Sample], settings: RunSettings, trainer: Any) -> DataLoader[Sample]:
    """Batches of this rank's samples from the trainer's step on, without end."""
    on_cpu = trainer.strategy.root_device.type == "cpu"
    workers = settings.workers
    if workers is None:
        workers = 1 if on_cpu else max(1, min(8, (os.cpu_count() or 1) // trainer.num_devices))
    first = trainer.global_step * settings.accumulate
    return DataLoader(
        crops,
        batch_sampler=BatchSampler(first, settings.batch_size, trainer.global_rank, trainer.world_size),
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        pin_memory=not on_cpu,
    )
