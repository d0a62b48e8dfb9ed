from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

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
    dae3d.index(folders=[folder], out=folder / "manifest.json", val_fraction=0.05)
    dae3d.prepare(manifest=folder / "manifest.json", out=folder / "store", workers=1)
    return folder / "store"


TINY = {
    "embed_dim": 4,
    "heads": (1, 1, 2, 2),
    "depths": (1, 1, 1, 1),
    "window": 2,
    "roi": 32,
    "batch_size": 3,
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
