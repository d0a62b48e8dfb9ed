"""Crops that travel as they are stored are, once scaled where they arrive, those that the store scales."""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dae3d.scans.manifest import Scan
from dae3d.scans.readers import Volume
from dae3d.store.index import INDEX, IndexHeader, write_index
from dae3d.store.scan import PARTIAL, SCANS, Preparation, StoredScan, write_scan
from dae3d.store.source import Stamp
from dae3d.store.statistics import measure
from dae3d.store.store import Store
from dae3d.training.batch import NumberedCrop, pack
from dae3d.training.data import CropLoaders, training_data
from dae3d.training.pretrain_settings import PretrainSettings

ROI = 20
RULES = ["window:-900:1100", "zscore", "zscore:foreground", "percentiles:0.5:99.5", "suv:7"]
PREPARATION = Preparation(spacing=None, crop_foreground=False)
# Type, modality, slope, intercept, lowest voxel; the padded ones have a corner of -2000 and -30000.
KINDS = [
    ("int16", "ct", 1.0, 0.0, -1000),
    ("int16", "ct", 1.0, -1024.0, 0),
    ("int16", "ct", 0.25, 3.5, -3000),
    ("int16", "ct", 1.0, 0.5, -1000),
    ("int16", "ct", 1.0, 0.0, -2000),
    ("int16", "t1", 1.0, 0.0, -30000),
    ("int16", "t1", -2.0, 10.0, 0),
    ("int8", "t1", 1.0, 0.0, -100),
    ("uint8", "t2", 1.0, 0.0, 0),
    ("uint16", "ct", 1.0, 0.0, 0),
    ("int32", "t1", 1.0, 0.0, 0),
    ("float32", "pet", 1.0, 0.0, 0),
    ("float32", "t1", 1.0, 0.0, -30000),
]


def write(store: Path, number: int, kind: tuple) -> StoredScan:
    dtype, modality, slope, intercept, lowest = kind
    random = np.random.default_rng(number)
    array = random.integers(0, 100 if "8" in dtype else 1500, (33, 25, 18)).astype(dtype)
    array[:, :9] = 0
    if lowest:
        array[:12] = lowest
    volume = Volume(array, np.eye(4), slope, intercept)
    scan = StoredScan(
        file=f"{number}.b2nd",
        source=Scan(
            path=Path(f"{number}.nii"),
            modality=modality,
            subject=str(number),
            dataset="d",
            split="train",
            shape=array.shape,
            spacing=(1, 1, 1),
            dtype=dtype,
            orientation="RAS",
        ),
        source_stamp=Stamp(bytes=0, mtime_ns=0),
        preparation=PREPARATION,
        shape=array.shape,
        spacing=(1, 1, 1),
        affine=np.eye(4).tolist(),
        dtype=dtype,
        slope=slope,
        intercept=intercept,
        statistics=measure(volume, modality),
    )
    return write_scan(store, array, scan)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("kinds")
    for name in (SCANS, PARTIAL):
        (folder / name).mkdir()
    scans = [write(folder, number, kind) for number, kind in enumerate(KINDS)]
    write_index(folder / INDEX, IndexHeader(preparation=PREPARATION, scans=len(scans)), scans)
    return Store(folder)


def test_padded_kinds_have_padding(store):
    padded = [kind[:2] for kind, scan in zip(KINDS, store.scans, strict=True) if scan.statistics.padding]
    assert padded == [("int16", "ct"), ("int16", "t1"), ("float32", "t1")]


@settings(max_examples=150)
@given(
    crops=st.lists(
        st.tuples(st.integers(0, len(KINDS) - 1), st.tuples(*[st.integers(-25, 40)] * 3)),
        min_size=1,
        max_size=5,
    ),
    rule=st.sampled_from([None, *RULES]),
)
def test_a_batch_is_what_the_store_scales(store, crops, rule):
    """Law: whatever types, rules and places a batch mixes, not a bit differs."""
    rules = rule and dict.fromkeys(("ct", "t1", "t2", "pet"), rule)
    size = (ROI,) * 3
    numbered = [
        NumberedCrop(store.read_unscaled(scan, start, size, rules), scan, place)
        for place, (scan, start) in enumerate(crops)
    ]
    batch = pack(numbered).unpack((ROI,) * 3)
    expected = np.stack([store.read_padded(scan, start, size, rules) for scan, start in crops])[:, None]
    assert batch["image"].dtype == torch.float32
    np.testing.assert_array_equal(batch["image"].numpy(), expected)
    assert batch["modality"].tolist() == [scan for scan, _ in crops]
    assert batch["sample"].tolist() == list(range(len(crops)))


@pytest.mark.parametrize(("number", "bytes_a_voxel"), [(0, 2), (1, 2), (2, 4), (3, 4), (8, 1), (11, 4)])
def test_what_can_be_scaled_elsewhere_travels_as_it_is_stored(store, number, bytes_a_voxel):
    crop = NumberedCrop(store.read_unscaled(number, (0, 0, 0), (16, 16, 16)), 0, 0)
    assert pack([crop]).voxels.nbytes == bytes_a_voxel * 16**3


class Collected(lightning.LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[Any] = []

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        self.batches.append(batch)
        return self.weight * batch["image"].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_trainer_gets_scaled_crops_whatever_the_workers(tiny_store, tmp_path, workers):
    given = PretrainSettings(data=tiny_store, out=tmp_path, roi=32, batch_size=4, workers=workers)
    data = training_data(given, 1)
    module = Collected()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=20,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(module, CropLoaders(data, given))
    numbers = [batch["sample"].tolist() for batch in module.batches]
    assert numbers == np.arange(80).reshape(20, 4).tolist()
    for batch in module.batches:
        for image, sample, modality in each_of(batch):
            crop = data.stream[sample]
            expected = data.store.read_padded(crop.scan, crop.start, (32, 32, 32))
            np.testing.assert_array_equal(image[0], expected)
            assert modality == crop.modality


def each_of(batch: dict[str, torch.Tensor]) -> Any:
    return zip(batch["image"].numpy(), batch["sample"].tolist(), batch["modality"].tolist(), strict=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_not_a_bit_differs_either(store):
    for rule in (None, *RULES):
        rules = rule and dict.fromkeys(("ct", "t1", "t2", "pet"), rule)
        crops = [
            NumberedCrop(store.read_unscaled(n, (-3, 2, 1), (ROI,) * 3, rules), 0, n)
            for n in range(len(KINDS))
        ]
        batch = pack(crops)
        there = batch.pin_memory().to(torch.device("cuda")).unpack((ROI,) * 3)
        assert torch.equal(there["image"].cpu(), batch.unpack((ROI,) * 3)["image"])
