"""The data set of crops from the store, and its loaders."""

import hashlib
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import lightning
import numpy as np
from torch.utils.data import DataLoader, Dataset

from dae3d.cores import usable_cores
from dae3d.errors import Dae3dError
from dae3d.models.provenance import entry, kept
from dae3d.store.boxes import Triple
from dae3d.store.index import Outline
from dae3d.store.store import Store, StoredScan
from dae3d.training.batch import NumberedCrop, Packed, Sample, pack, slot_bytes
from dae3d.training.left_out import held_out_cases, scans_of_cases
from dae3d.training.loader_process import Loader, check_shared_memory, start_loader_process
from dae3d.training.pretrain_settings import PretrainSettings
from dae3d.training.run_settings import RunSettings
from dae3d.training.sampling import (
    LAST_SAMPLE,
    BatchSampler,
    Crop,
    SampleStream,
    validation_crops,
)
from dae3d.training.slots import Slots

# Batches that a loader process prefetches, and those that may be in transfer to the device.
_PREFETCHED, _IN_TRANSFER = 4, 2


class CropDataset(Dataset[NumberedCrop]):
    """Crops by number, in the stored type if smaller; fixed ones have sample numbers down from `last`."""

    def __init__(
        self,
        store: Store,
        crops: SampleStream | Sequence[Crop],
        roi: Triple,
        last: int | None = None,
        intensity: Mapping[str, str] | None = None,
    ) -> None:
        self.store, self.crops, self.roi, self.last, self.intensity = store, crops, roi, last, intensity

    def __getitem__(self, index: int) -> NumberedCrop:
        crop = self.crops[index]
        voxels = self.store.read_unscaled(crop.scan, crop.start, self.roi, self.intensity)
        sample = index if self.last is None else self.last - index
        return NumberedCrop(voxels, crop.modality, sample, crop.start)

    def __len__(self) -> int:
        """Number of fixed crops; a stream is endless."""
        assert not isinstance(self.crops, SampleStream)
        return len(self.crops)


@dataclass(frozen=True)
class TrainingData:
    """A store as used by one run: its stream of crops, its fixed validation crops, its scans."""

    store: Store
    stream: SampleStream
    validation: list[Crop]
    scans: "Scans"

    @property
    def modalities(self) -> list[str]:
        """Labels, in the order of the modality numbers."""
        return self.stream.modalities

    @property
    def batches_per_epoch(self) -> int:
        """Global batches needed to draw as many crops as there are training scans."""
        return -(-sum(map(len, self.scans.training.values())) // self.stream.global_batch)

    def scans_of(self, sample: int) -> list[str]:
        """The files in the global batch of a given sample."""
        size = self.stream.global_batch
        first = sample // size * size
        crops = (self.stream[i] for i in range(first, first + size))
        return sorted({str(self.store.scans[crop.scan].path) for crop in crops})

    def about(self) -> dict[str, Any]:
        """For `run.json`: numbers of scans by modality and data set, and the validation crops."""
        return {
            "data": {
                "store": str(self.store.path.absolute()),
                "rows": self.scans.rows(),
                "left_out": len(self.scans.left_out),
                "scans_digest": self.scans.digest(),
            },
            "validation": self._validation(),
        }

    def trained_on(self, earlier: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
        """Fingerprints for the weights, of the training scans and those of the validation crops.

        They follow those of the `earlier` training.
        """
        validation = (fingerprints(self.store.scans[crop.scan]) for crop in self.validation)
        return entry("pretrain", self.scans.fingerprints, chain.from_iterable(validation), earlier=earlier)

    def _validation(self) -> dict[str, Any]:
        described: dict[str, Any] = {}
        for number, name in enumerate(self.modalities):
            crops = [crop for crop in self.validation if crop.modality == number]
            scans = [self.store.scans[crop.scan] for crop in crops]
            places = [f"{scan.path.name} {crop.start}" for scan, crop in zip(scans, crops, strict=True)]
            described[name] = {
                "crops": len(scans),
                "split": scans[0].split,
                "scans": sorted({scan.path.name for scan in scans}),
                "crops_digest": hashlib.blake2b("\n".join(places).encode(), digest_size=8).hexdigest(),
            }
        return described


class Scans:
    """The scans of a run by modality, as numbers in the store: for training, held out, and left out."""

    def __init__(self) -> None:
        self.training: dict[str, list[int]] = {}
        self.held_out: dict[str, list[int]] = {}
        self.left_out: frozenset[int] = frozenset()
        # Of the training scans, for the weights.
        self.fingerprints = array("Q")
        self._spacings = array("f")  # of the training scans, three each
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        self._digest = hashlib.blake2b(digest_size=8)

    def add(self, number: int, scan: Outline) -> None:
        """Add a scan."""
        modality, dataset, split = scan.source.modality, scan.source.dataset, scan.source.split
        (self.training if split == "train" else self.held_out).setdefault(modality, []).append(number)
        if split == "train":
            self.fingerprints.extend(fingerprints(scan))
            self._spacings.extend(scan.spacing)
        row = self._rows.setdefault(
            (modality, dataset), {"modality": modality, "dataset": dataset, "train": 0, "val": 0, "voxels": 0}
        )
        row[split] += 1
        self._digest.update(f"{split} {modality} {dataset} {os.path.basename(scan.source.path)}\n".encode())
        row["voxels"] += scan.shape[0] * scan.shape[1] * scan.shape[2]

    def rows(self) -> list[dict[str, Any]]:
        """Numbers of scans and voxels for each modality and data set."""
        return [self._rows[key] for key in sorted(self._rows)]

    def spacing(self) -> list[float]:
        """Median voxel size of the training scans in mm (right, anterior, superior)."""
        spacings = np.frombuffer(self._spacings, np.float32).astype(float)
        found: list[float] = np.median(spacings.reshape(-1, 3), 0).round(3).tolist()
        return found

    def digest(self) -> str:
        """A digest of the scans and their order, independent of where the files and the store are."""
        return self._digest.hexdigest()


def fingerprints(scan: Outline | StoredScan) -> list[int]:
    """Fingerprints of a scan for the weights: of its files' content, and of its voxels without the header."""
    return [kept(digest) for digest in (scan.source.digest, scan.voxel_digest) if digest]


def training_data(settings: PretrainSettings, world_size: int) -> TrainingData:
    """Open the store and choose the scans for training and validation.

    Raises:
        Dae3dError: if the store has no training scan, or a requested data set or modality is not in it.
    """
    store = Store(settings.data)
    scans = _choose(store, settings)
    stream = SampleStream(
        store.scans,
        scans.training,
        settings.roi,
        settings.crops * world_size,
        settings.seed,
        settings.crop_region,
        settings.modality_weights,
        settings.shuffle_modalities,
        settings.pairs,
    )
    # A modality without validation scans uses its training scans.
    candidates = [scans.held_out.get(name, scans.training[name]) for name in stream.modalities]
    crops = validation_crops(store.scans, candidates, settings.roi, settings.val_crops)
    return TrainingData(store, stream, crops, scans)


def _choose(store: Store, settings: PretrainSettings) -> Scans:
    """Choose scans in a single pass over the index, which may be long."""
    scans, modalities, datasets = Scans(), set(), set()
    if settings.leave_out is not None:
        scans.left_out = frozenset(scans_of_cases(store.scans.outlines, held_out_cases(settings.leave_out)))
    for number, scan in enumerate(store.scans.outlines):
        modalities.add(scan.source.modality)
        datasets.add(scan.source.dataset)
        chosen = settings.datasets is None or scan.source.dataset in settings.datasets
        if chosen and number not in scans.left_out:
            scans.add(number, scan)
    for name in settings.datasets or []:
        if name not in datasets:
            raise Dae3dError(
                f"datasets: {settings.data} has no {name!r}; it has {', '.join(sorted(datasets))}"
            )
    unknown = ", ".join(sorted(set(settings.intensity) - modalities))
    if unknown:
        known = ", ".join(sorted(modalities))
        raise Dae3dError(f"intensity: {settings.data} has no {unknown}; it has {known}")
    if not scans.training:
        if scans.left_out:
            raise Dae3dError(f"leave_out: no training scans remain; all are of cases in {settings.leave_out}")
        raise Dae3dError(f"{settings.data}: no training scans; prepare some with split train")
    return scans


class CropLoaders(lightning.LightningDataModule):
    """Loaders of a run. Training continues from the trainer's step, so that a resumed run repeats nothing."""

    def __init__(self, data: TrainingData, settings: PretrainSettings) -> None:
        super().__init__()
        self.data, self.settings = data, settings

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless batches of this rank's crops."""
        crops, given = self._crops(self.data.stream), self.settings
        slots = slots_of(given, self.trainer, slot_bytes(given.crops, given.roi))
        return endless_loader(crops, given, self.trainer, partial(pack, slots=slots))

    def val_dataloader(self) -> DataLoader[Any]:
        """All fixed crops on every rank: there are few, and no rank has to wait or gets other results."""
        crops = self._crops(self.data.validation, LAST_SAMPLE)
        return DataLoader(crops, batch_size=self.settings.crops, shuffle=False, collate_fn=pack)

    def on_after_batch_transfer(self, batch: Packed, dataloader_idx: int) -> Sample:
        """Unpack and scale the batch on the device."""
        return batch.unpack(self.settings.roi)

    def _crops(self, crops: SampleStream | Sequence[Crop], last: int | None = None) -> CropDataset:
        return CropDataset(self.data.store, crops, self.settings.roi, last, self.settings.intensity)


def slots_of(settings: RunSettings, trainer: Any, size: int) -> Slots:
    """Shared memory for batches of `size` bytes that loader processes prefetch.

    Raises:
        Dae3dError: if there is not enough for these processes.
    """
    workers = loader_processes(settings, trainer)
    check_shared_memory(workers)
    return Slots(workers, _PREFETCHED + _IN_TRANSFER, size)


def endless_loader(
    crops: Dataset[Any], settings: RunSettings, trainer: Any, collate: Callable[[Any], Any]
) -> DataLoader[Any]:
    """An endless loader of this rank's batches, from the trainer's step on."""
    workers = loader_processes(settings, trainer)
    first = trainer.global_step * settings.accumulate
    return Loader(
        crops,
        batch_sampler=BatchSampler(first, settings.crops, trainer.global_rank, trainer.world_size),
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        prefetch_factor=_PREFETCHED if workers else None,
        pin_memory=not _on_cpu(trainer),
        worker_init_fn=start_loader_process,
    )


def loader_processes(settings: RunSettings, trainer: Any) -> int:
    """Number of loader processes per device; 0: the training process loads crops itself."""
    if settings.workers is not None:
        return settings.workers
    return 1 if _on_cpu(trainer) else max(1, min(8, usable_cores() // trainer.num_devices))


def _on_cpu(trainer: Any) -> bool:
    return bool(trainer.strategy.root_device.type == "cpu")
