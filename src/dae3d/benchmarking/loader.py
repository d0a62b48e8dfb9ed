"""Crops a second on one core: out of a store, and as MONAI's data sets load them."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dae3d.memory import peak_memory
from dae3d.store.boxes import Triple
from dae3d.store.store import Store


def crops_from_store(store: str, roi: int, crops: int) -> dict[str, float]:
    """Read random crops, scaled for the network, from anywhere in anything in a store."""
    opened = Store(store)
    random = np.random.default_rng(0)

    def crop(_: int) -> object:
        number = int(random.integers(len(opened.scans)))
        start = [int(random.integers(max(1, side - roi + 1))) for side in opened.scans[number].shape]
        box: Triple = (start[0], start[1], start[2])
        return opened.read_padded(number, box, (roi, roi, roi))

    return _measured(crop, crops)


def crops_by_monai(kind: str, files: list[str], folder: str, roi: int, crops: int) -> dict[str, float]:
    """Load crops by MONAI's `Dataset`, `PersistentDataset` or `CacheDataset`, with usual transforms for CT.

    What the last two keep is made before, and not counted.
    """
    from monai.data.dataset import CacheDataset, Dataset, PersistentDataset
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
            SpatialPadd("image", (roi, roi, roi)),
            RandSpatialCropd("image", (roi, roi, roi), random_size=False),
        ]
    )
    entries: list[Any] = [{"image": file} for file in files]
    dataset: Any
    if kind == "PersistentDataset":
        dataset = PersistentDataset(entries, transforms, cache_dir=Path(folder))
    elif kind == "CacheDataset":
        dataset = CacheDataset(entries, transforms, num_workers=1, progress=False)
    else:
        dataset = Dataset(entries, transforms)
    for number in range(len(entries)):
        dataset[number]
    random = np.random.default_rng(0)
    return _measured(lambda _: dataset[int(random.integers(len(entries)))], crops)


def _measured(crop: Callable[[int], object], crops: int) -> dict[str, float]:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    crop(0)
    start, worked = time.perf_counter(), time.process_time()
    for number in range(crops):
        crop(number)
    return {
        "crops_per_second": crops / (time.perf_counter() - start),
        "cpu_seconds": (time.process_time() - worked) / crops,
        "peak_bytes": peak_memory(),
    }
