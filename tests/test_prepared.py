"""Whole scans reach a pre-trained network as the crops of its store did."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes

import dae3d
from conftest import smooth_volume
from dae3d.commands import embed as module
from dae3d.errors import Dae3dError
from dae3d.models.loading import load
from dae3d.store.store import Store
from scan_files import phantom, write_nifti

# Axes to the left, posterior and superior, turned a little; 1 x 1.2 x 2.5 mm.
TURN = np.array([[0.98, -0.199, 0], [0.199, 0.98, 0], [0, 0, 1]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN @ np.diag([-1.0, -1.2, 2.5])
AFFINE[:3, 3] = 30, 40, -20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head in noise, padded outside a round field of view, and a CT of the same shape."""
    folder = tmp_path_factory.mktemp("scans")
    shape = (64, 60, 24)
    places = np.stack(np.indices(shape), -1) - np.array(shape) / 2
    noise = np.random.default_rng(0).gamma(2, 10, shape)
    head = np.linalg.norm(places / (18, 16, 7), axis=-1) < 1
    mr = np.where(head, 200 + 300 * smooth_volume(0, shape), noise)
    mr[np.linalg.norm(places[..., :2], axis=-1) > 30] = -32768
    write_nifti(folder / "sub-1_T1w.nii.gz", mr.round().astype(np.int16), AFFINE)
    write_nifti(folder / "sub-2_ct.nii.gz", phantom(shape), AFFINE)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tiny_settings: dict[str, Any]) -> Path:
    """A run of two steps on scans of 1.5 mm, cut to the foreground."""
    dae3d.index(folders=[folder], out=folder / "manifest.jsonl", val_fraction=0)
    dae3d.prepare(
        manifest=folder / "manifest.jsonl",
        out=folder / "store",
        spacing=(1.5, 1.5, 1.5),
        crop_foreground=True,
        workers=1,
        report=False,
    )
    return dae3d.pretrain(data=folder / "store", out=folder / "run", **tiny_settings | {"max_steps": 2})


def stored(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A whole scan as crops are taken out of it, and its affine."""
    store = Store(folder / "store")
    number = next(n for n, scan in enumerate(store.scans) if scan.path.name.startswith(name))
    scan = store.scans[number]
    return store.read_padded(number, (0, 0, 0), scan.shape), np.array(scan.affine)


def test_the_weights_say_how_scans_were_prepared(run: Path) -> None:
    info: Any = load(run, show=False).info
    assert info["preparation"] == {"spacing": [1.5, 1.5, 1.5], "crop_foreground": True}


def test_reconstruct_sees_what_training_saw(run: Path, folder: Path, tmp_path: Path) -> None:
    scans = [folder / "sub-1_T1w.nii.gz", folder / "sub-2_ct.nii.gz"]
    dae3d.reconstruct(scans=scans, weights=run, out=tmp_path, device="cpu")
    for name in ("sub-1_T1w", "sub-2_ct"):
        image, affine = stored(folder, name)
        assert image.shape != (64, 60, 24)
        for kind in ("clean", "disrupted", "repaired", "error"):
            written = nibabel.load(tmp_path / name / f"{kind}.nii.gz")
            assert aff2axcodes(written.affine) == ("L", "P", "S")
            upright = nibabel.as_closest_canonical(written)
            np.testing.assert_allclose(upright.affine, affine, atol=1e-4)
            assert upright.shape == image.shape
            if kind == "clean":
                np.testing.assert_array_equal(np.asarray(upright.dataobj), image)


def test_embed_sees_what_training_saw(run: Path, folder: Path, tmp_path: Path, monkeypatch) -> None:
    seen: list[np.ndarray] = []
    whole = module.pooled_features

    def noted(encoder: Any, image: np.ndarray, *rest: Any) -> np.ndarray:
        seen.append(image)
        return whole(encoder, image, *rest)

    monkeypatch.setattr(module, "pooled_features", noted)
    dae3d.embed(scans=[str(folder / "sub-1_T1w.nii.gz")], weights=run, out=tmp_path / "e.npz", device="cpu")
    np.testing.assert_array_equal(seen[0][0], stored(folder, "sub-1_T1w")[0])


def test_padding_outside_the_field_of_view_is_not_in_the_statistics(run: Path, folder: Path) -> None:
    scans = {scan.modality: scan for scan in Store(folder / "store").scans}
    statistics = scans["t1"].statistics
    assert statistics.padding == -32768
    assert statistics.percentile(0.5) >= 0
    assert 10 < statistics.mean < 500


@pytest.mark.parametrize("command", ["embed", "reconstruct"])
def test_a_ct_without_its_intercept_is_left_out(
    command: str, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = write_nifti(tmp_path / "lost_ct.nii.gz", phantom((40, 40, 20)) + np.int16(1024))
    out = tmp_path / ("e.npz" if command == "embed" else "out")
    with pytest.raises(Dae3dError, match="none of the scans could be used"):
        getattr(dae3d, command)(scans=[str(lost)], weights=run, out=out, modality="ct", device="cpu")
    assert f"{lost}: left out: not in HU: " in caplog.text
    assert "rescale intercept" in caplog.text
