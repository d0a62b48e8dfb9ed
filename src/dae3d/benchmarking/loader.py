"""Crops per second on one core: as in training, with data sets of MONAI, and as in nnU-Net."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from dae3d.benchmarking.nnunet import NnunetFiles
from dae3d.memory import peak_memory
from dae3d.store.boxes import Triple

_UNCOPIED = "CacheDataset, copy_cache=False"
MONAI_DATASETS = ("Dataset", "PersistentDataset", "CacheDataset", _UNCOPIED)


def crops_from_store(store: str, roi: Triple, crops: int) -> dict[str, float]:
    """Read training crops from a store, up to scaled tensors."""
    from dae3d.training.batch import pack
    from dae3d.training.data import CropDataset, training_data
    from dae3d.training.pretrain_settings import PretrainSettings

    settings = PretrainSettings(data=Path(store), out=Path(store), roi=roi)
    data = training_data(settings, 1)
    dataset = CropDataset(data.store, data.stream, settings.roi)
    return _measured(lambda number: pack([dataset[number]]).unpack(settings.roi), crops)


def crops_from_process(store: str, roi: Triple, crops: int) -> dict[str, float]:
    """Receive the same crops, not yet scaled, from a loader process on the same core."""
    _on_one_core()
    arriving = batches(store, roi, workers=1)
    # Fill the prefetch queue, which is also full at the end of the measurement.
    for _ in range(8):
        next(arriving)
    start, received = time.perf_counter(), 0
    while received < crops:
        received += len(next(arriving).parts)
    return {
        "crops_per_second": received / (time.perf_counter() - start),
        "peak_bytes": peak_memory(),
    }


def batches(store: str, roi: Triple, workers: int) -> Any:
    """Iterator over the batches that training gets from loader processes (its `_workers`)."""
    from dae3d.training.data import CropLoaders, training_data
    from dae3d.training.pretrain_settings import PretrainSettings

    settings = PretrainSettings(data=Path(store), out=Path(store), roi=roi, workers=workers)
    loaders: Any = CropLoaders(training_data(settings, 1), settings)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    loaders.trainer = SimpleNamespace(
        strategy=strategy, num_devices=1, global_step=0, global_rank=0, world_size=1
    )
    return iter(loaders.train_dataloader())


def crops_by_nnunet(folder: str, roi: Triple, crops: int) -> dict[str, float]:
    """Read random crops from preprocessed files as nnU-Net v2 does."""
    files = NnunetFiles(Path(folder))
    random = np.random.default_rng(0)
    return _measured(lambda _: files.crop(int(random.integers(len(files.paths))), roi, random), crops)


def crops_by_monai(kind: str, files: list[str], folder: str, roi: Triple, crops: int) -> dict[str, float]:
    """Load crops with one of `MONAI_DATASETS` and the published transforms for CT, in batches of one.

    Caches are filled before the measurement.
    """
    from monai.data.dataset import CacheDataset, Dataset, PersistentDataset
    from monai.data.utils import list_data_collate
    from monai.transforms.compose import Compose
    from monai.transforms.croppad.dictionary import RandSpatialCropd, SpatialPadd
    from monai.transforms.intensity.dictionary import ScaleIntensityRanged
    from monai.transforms.io.dictionary import LoadImaged
    from monai.transforms.spatial.dictionary import Orientationd

    transforms = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Orientationd("image", "RAS"),
            ScaleIntensityRanged("image", -1000, 1000, 0, 1, clip=True),
            SpatialPadd("image", roi),
            RandSpatialCropd("image", roi, random_size=False),
        ]
    )
    entries: list[Any] = [{"image": file} for file in files]
    dataset: Any
    if kind == "PersistentDataset":
        dataset = PersistentDataset(entries, transforms, cache_dir=Path(folder))
    elif kind in ("CacheDataset", _UNCOPIED):
        copy = kind != _UNCOPIED
        dataset = CacheDataset(entries, transforms, num_workers=1, progress=False, copy_cache=copy)
    else:
        dataset = Dataset(entries, transforms)
    for number in range(len(entries)):
        dataset[number]
    random = np.random.default_rng(0)
    return _measured(lambda _: list_data_collate([dataset[int(random.integers(len(entries)))]]), crops)


def _measured(crop: Callable[[int], object], crops: int) -> dict[str, float]:
    _on_one_core()
    crop(0)
    start, worked = time.perf_counter(), time.process_time()
    for number in range(crops):
        crop(number)
    return {
        "crops_per_second": crops / (time.perf_counter() - start),
        "cpu_seconds": (time.process_time() - worked) / crops,
        "peak_bytes": peak_memory(),
    }


def _on_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)  # as in loader processes
