"""The labelled cases of a fine-tuning run: training and validation cases, and their loaders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dae3d.errors import Dae3dError
from dae3d.models.provenance import entry, kept
from dae3d.scans.task import TaskCase, read_task, say_contradictions
from dae3d.store.cases import CaseStore, prepare_cases
from dae3d.store.recipe import CaseRecipe
from dae3d.training.augment import Augmentation
from dae3d.training.batch import Packed, Sample
from dae3d.training.case_sampling import CaseStream
from dae3d.training.data import endless_loader, slots_of
from dae3d.training.finetune_settings import FinetuneSettings
from dae3d.training.labelled_batch import labelled_slot_bytes, pack_labelled
from dae3d.training.sampling import philox

_SUBSET = 6


@dataclass(frozen=True)
class LabelledData:
    """The cases of one run; `training` and `validation` are numbers of cases in the store."""

    recipe: CaseRecipe
    store: CaseStore
    stream: CaseStream
    training: list[int]
    validation: list[int]

    def scans_of(self, sample: int, global_batch: int) -> list[str]:
        """The cases in the global batch of a given sample."""
        first = sample // global_batch * global_batch
        numbers = {self.stream[i].case for i in range(first, first + global_batch)}
        return sorted(self.store.cases[number].name for number in numbers)

    def spacing(self) -> list[float]:
        """Median voxel size of the training cases in mm (right, anterior, superior)."""
        affines = np.array([self.store.cases[number].affine for number in self.training])
        found: list[float] = np.median(np.linalg.norm(affines[:, :3, :3], axis=1), 0).tolist()
        return found

    def trained_on(self, earlier: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Fingerprints of the cases' images for the weights, after those of the `earlier` training."""
        training, validation = (
            [kept(digest) for number in numbers for digest in self.store.cases[number].image_digests]
            for numbers in (self.training, self.validation)
        )
        return entry("segmentation", training, validation, self.recipe.class_names, earlier)

    def about(self, task: Path) -> dict[str, Any]:
        """Description of the cases for `run.json`."""
        names = {
            "training": [self.store.cases[number].name for number in self.training],
            "validation": [self.store.cases[number].name for number in self.validation],
        }
        row = {
            "modality": "+".join(self.recipe.modalities),
            "dataset": task.stem,
            "train": len(self.training),
            "val": len(self.validation),
            "voxels": sum(
                case.shape[0] * case.shape[1] * case.shape[2]
                for case in (self.store.cases[n] for n in (*self.training, *self.validation))
            ),
        }
        return {"data": {"store": str(self.store.path.absolute()), "rows": [row]}, "cases": names}


def labelled_data(
    settings: FinetuneSettings,
    check: Callable[[CaseRecipe], None] | None = None,
    validation_cases: int | None = None,
) -> LabelledData:
    """Read the list, choose the cases, and prepare those that are not in the store yet.

    `check` may refuse the channels and classes of the list before any case is prepared. `validation_cases` is
    the maximum number to validate on, drawn by the seed; None: that of the settings.

    Raises:
        Dae3dError: if the list, or a case, cannot be used.
    """
    task = read_task(settings.data, modality=settings.modality)
    training, validation = (task.split(side, settings.fold) for side in ("training", "validation"))
    chosen = subset(training, settings)
    most = settings.val_cases if validation_cases is None else validation_cases
    if most is not None and most < len(validation):
        validation = tuple(drawn_cases(validation, settings.seed, most))
    say_contradictions(task, [*chosen, *validation])
    recipe = CaseRecipe(
        modalities=task.modalities,
        labels=task.labels,
        spacing=settings.spacing,
        crop_foreground=settings.crop_foreground,
        intensity=settings.intensity,
        roi=settings.roi,
        ignore=task.ignore,
    )
    unknown = sorted(set(recipe.intensity) - set(recipe.modalities))
    if unknown:
        raise Dae3dError(
            f"intensity: {', '.join(unknown)}: {settings.data} has no such channel; "
            f"it has {', '.join(recipe.modalities)}"
        )
    if check is not None:
        check(recipe)
    folder = settings.store or settings.out / "store"
    store = prepare_cases([*chosen, *validation], recipe, folder, settings.prepare_workers)
    sides = {
        side: [store.number(case.name) for case in cases]
        for side, cases in (("training", chosen), ("validation", validation))
    }
    for side, cases in sides.items():
        if not any(sum(store.cases[number].voxels[1:]) for number in cases):
            raise Dae3dError(f"{settings.data}: none of the {side} cases has a labelled voxel")
    stream = CaseStream(store, sides["training"], settings, [case.weight for case in chosen])
    return LabelledData(recipe, store, stream, **sides)


def subset(cases: Sequence[TaskCase], settings: FinetuneSettings) -> Sequence[TaskCase]:
    """The training cases to use: the first ones in an order drawn by the seed.

    A larger subset thus contains the smaller ones. The cases keep the order of the list, so that using all of
    them is the same run as the default.

    Raises:
        Dae3dError: if there are fewer than requested.
    """
    if settings.label_fraction is None and settings.train_cases is None:
        return cases
    count = settings.train_cases or max(1, round(len(cases) * (settings.label_fraction or 1)))
    if count > len(cases):
        raise Dae3dError(f"train_cases: {settings.data} has {len(cases)} training cases, not {count}")
    return drawn_cases(cases, settings.seed, count)


def drawn_cases(cases: Sequence[TaskCase], seed: int, count: int) -> list[TaskCase]:
    """The first `count` cases in an order drawn by the seed, in the order of the list."""
    order = philox(seed, _SUBSET, 0).permutation(len(cases))
    return [cases[place] for place in sorted(order[:count])]


class LabelledCrops(Dataset[Sample]):
    """Augmented crops by sample number: image (C, D, H, W) float32, label (1, D, H, W) uint8 classes."""

    def __init__(self, data: LabelledData, settings: FinetuneSettings) -> None:
        self.data, self.settings = data, settings
        self.augment = Augmentation(settings)

    def __getitem__(self, sample: int) -> Sample:
        crop = self.data.stream[sample]
        store, size = self.data.store, self.settings.roi
        rules = self.data.recipe.intensity
        image = torch.from_numpy(store.image(crop.case, crop.start, size, rules))
        label = torch.from_numpy(store.label(crop.case, crop.start, size))[None]
        image, label = self.augment(image, label, crop.seed)
        return {"image": image, "label": label, "sample": torch.tensor(sample)}


class CaseLoaders(lightning.LightningDataModule):
    """Loaders of a run: endless training crops from the trainer's step on, and whole validation cases."""

    def __init__(self, data: LabelledData, settings: FinetuneSettings) -> None:
        super().__init__()
        self.data, self.settings = data, settings

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of this rank's crops."""
        given, channels = self.settings, len(self.data.recipe.modalities)
        slots = slots_of(given, self.trainer, labelled_slot_bytes(given.crops, channels, given.roi))
        crops = LabelledCrops(self.data, given)
        return endless_loader(crops, given, self.trainer, partial(pack_labelled, slots=slots))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Unpack a batch of crops; validation passes case numbers."""
        return batch.unpack(self.settings.roi) if isinstance(batch, Packed) else batch

    def val_dataloader(self) -> DataLoader[int]:
        """Indices of this rank's cases in `data.validation`; -1 pads ranks with one case less."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        places: list[int] = list(range(rank, len(self.data.validation), world))
        missing = -(-len(self.data.validation) // world) - len(places)
        numbers: Any = places + [-1] * missing
        return DataLoader(numbers, batch_size=None)
