import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import nibabel
import numpy as np
import pytest
import torch

# A busy machine is not a failure.
hypothesis.settings.register_profile("dae3d", deadline=None)
hypothesis.settings.load_profile("dae3d")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans beside the checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data")
    return folder


def smooth_volume(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Blobs of 8 voxels, float32 in [0, 1]."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.random((1, 1, *(-(-side // 8) for side in shape)), np.float32))
    return torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0, 0].numpy()


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> Path:
    """A store of 3 CT-like and 5 T1-like scans of 40^3 voxels and less, one of each held out."""
    import dae3d

    folder = tmp_path_factory.mktemp("tiny")
    for i in range(8):
        side = 40 - 2 * i
        volume = smooth_volume(i, (side, 40, 36))
        voxels = np.round(volume * 2000 - 1000) if i < 3 else np.round(volume * 500 + 1)
        label = "ct" if i < 3 else "T1w"
        image = nibabel.Nifti1Image(voxels.astype(np.int16), np.eye(4))
        image.to_filename(folder / f"sub-{i:02d}_{label}.nii.gz")
    dae3d.index(folders=[folder], out=folder / "manifest.json", val_fraction=0.2)
    dae3d.prepare(manifest=folder / "manifest.json", out=folder / "store", workers=1)
    return folder / "store"


TINY = {
    "embed_dim": 4,
    "heads": (1, 1, 2, 2),
    "depths": (1, 1, 1, 1),
    "window": 2,
    "roi": 32,
    "batch_size": 4,
    "warmup_steps": 2,
    "lr": 1e-3,
    "val_every": 5,
    "val_crops": 2,
    "save_every": 4,
    "log_every": 1,
    "workers": 0,
    "accelerator": "cpu",
}


@pytest.fixture(scope="session")
def tiny_settings() -> dict:
    """A network that makes a step in a few hundredths of a second."""
    return dict(TINY)


@pytest.fixture(scope="session")
def tiny_run(tiny_store, tmp_path_factory) -> Path:
    """A run of 14 uninterrupted steps."""
    import dae3d

    return dae3d.pretrain(data=tiny_store, out=tmp_path_factory.mktemp("run") / "whole", max_steps=14, **TINY)


def labelled_case(seed: int, shape: tuple[int, int, int], lesion: bool) -> tuple[np.ndarray, np.ndarray]:
    """A T1-like int16 image, and its label: 0, an organ of 1 and, in it, a lesion of 4, each brighter."""
    random = np.random.default_rng(seed)
    middle = [side / 2 + random.uniform(-4, 4) for side in shape]
    distance = np.linalg.norm(np.stack(np.indices(shape), -1) - middle, axis=-1)
    label = np.where(distance < 9, 1, 0).astype(np.uint8)
    if lesion:
        label[distance < 4.5] = 4
    image = 100 * smooth_volume(seed, shape) + 250 * (label > 0) + 250 * (label == 4) + 1
    return np.round(image).astype(np.int16), label


def write_task(folder: Path, name: str, **splits: list[dict]) -> Path:
    """A list of labelled cases as the Decathlon has them."""
    path = folder / f"{name}.json"
    labels = {"0": "background", "1": "organ", "4": "lesion"}
    path.write_text(json.dumps({"name": name, "modality": {"0": "T1w"}, "labels": labels, **splits}))
    return path


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory) -> Path:
    """A list of 5 cases to train on and 3 to validate on, of about 36^3 voxels; two of them lack a class."""
    folder = tmp_path_factory.mktemp("task")
    entries = []
    for i in range(8):
        image, label = labelled_case(i, (40 - i, 37 - i, 25 + i), lesion=i not in (3, 6))
        entry = {"image": f"sub-{i}_T1w.nii.gz", "label": f"sub-{i}_seg.nii.gz"}
        nibabel.Nifti1Image(image, np.eye(4)).to_filename(folder / entry["image"])
        nibabel.Nifti1Image(label, np.eye(4)).to_filename(folder / entry["label"])
        entries.append(entry)
    return write_task(folder, "tiny", training=entries[:5], validation=entries[5:])


@pytest.fixture(scope="session")
def tiny_finetune(tiny_task, tmp_path_factory) -> dict:
    """Settings with which fine-tuning on the tiny task makes a step in a few hundredths of a second."""
    settings = {name: value for name, value in TINY.items() if name != "val_crops"}
    settings |= {"max_steps": 8, "batch_size": 2, "lr": 3e-3, "val_every": 4, "save_every": 3}
    return settings | {"data": tiny_task, "store": tmp_path_factory.mktemp("cases") / "store"}


@pytest.fixture(scope="session")
def finetuned(tiny_run, tiny_finetune, tmp_path_factory) -> Path:
    """A fine-tuning run of 8 uninterrupted steps from pre-trained weights."""
    import dae3d

    return dae3d.finetune(init=tiny_run, out=tmp_path_factory.mktemp("finetuned") / "whole", **tiny_finetune)


@pytest.fixture
def in_this_process() -> Iterator[None]:
    """What worker processes do is done in this one, where a test can change it."""

    def work_through(items: Iterable[Any], run: Callable[[Any], Any], *_: Any) -> Iterator[Any]:
        yield from map(run, items)

    with pytest.MonkeyPatch.context() as patch:
        for user in ("commands.prepare", "store.cases", "commands.store_check", "reporting.data_check"):
            patch.setattr(f"dae3d.{user}.work_through", work_through)
        yield
