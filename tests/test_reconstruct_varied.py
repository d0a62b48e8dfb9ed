"""Whole scans under drawn disruptions, and by networks trained with settings of before."""

import nibabel
import numpy as np
import pytest
import torch

import dae3d
from conftest import smooth_volume
from dae3d.commands.reconstruct import _trained_with, repair_scan
from dae3d.disrupt import DisruptionSettings, sample_keys
from dae3d.models.loading import load
from dae3d.models.network import RepairNetwork
from dae3d.models.weights import save_weights
from dae3d.training.pretrain_settings import PretrainSettings
from repaired import Recorder, voxels_of, written
from scan_files import write_nifti

pytestmark = pytest.mark.slow


def weights_of(tiny_settings, tmp_path, left_out=(), **changes):
    """A network that has not learned, with settings of its own, some of them not recorded."""
    settings = PretrainSettings(data="s", out=tmp_path / "none", **(tiny_settings | changes))
    torch.manual_seed(0)
    network = RepairNetwork(settings.architecture())
    recorded = {n: v for n, v in settings.model_dump(mode="json").items() if n not in left_out}
    path = tmp_path / "w.safetensors"
    save_weights(path, network.state_dict(), settings.architecture(), {"settings": recorded})
    return path


def bright_scan(path):
    """T1-like, with a few voxels of a z-score of about 20."""
    voxels = np.round(smooth_volume(3, (40, 36, 34)) * 100 + 100)
    voxels[10:12, 10:12, 10:12] = 1500
    return write_nifti(path, voxels.astype(np.int16), np.eye(4))


def test_whole_scans_of_any_shape_are_disrupted_in_every_way():
    strengths = DisruptionSettings(block_size=16, downsample_factor=4, noise_variance=0.4)
    image = torch.from_numpy(smooth_volume(5, (50, 20, 70)))[None, None] + 1
    noisy = masked = untouched = 0
    for number in range(24):
        recorder = Recorder()
        repair = repair_scan(
            recorder, image, "varied", strengths, sample_keys(0, torch.tensor([number])), (32, 32, 32), 0.25
        )
        assert repair.disrupted.shape == repair.repaired.shape == image.shape
        torch.testing.assert_close(repair.repaired, repair.disrupted)
        hidden = repair.disrupted == 0
        blocks = hidden[..., :48, :20, :68].unfold(2, 4, 4).unfold(3, 4, 4).unfold(4, 4, 4).flatten(5)
        assert torch.equal(blocks.all(-1), blocks.any(-1))
        masked += bool(hidden.any())
        seen = ~hidden
        untouched += torch.equal(repair.disrupted[seen], image[seen])
        noisy += float((repair.disrupted - image)[seen].std()) > 0.05
        for window, _, tokens in recorder.seen:
            share = torch.nn.functional.avg_pool3d((window == 0).float(), 2)
            assert share[tokens].all()
    assert min(noisy, masked) > 8
    assert masked < 24
    assert untouched < 12


@pytest.mark.parametrize(("block_size", "factor", "roi"), [(12, 3, 96), (48, 6, 96), (96, 96, 96)])
def test_strengths_that_are_no_powers_of_two_fit_any_scan(block_size, factor, roi):
    strengths = DisruptionSettings(block_size=block_size, downsample_factor=factor)
    image = torch.rand(1, 1, 50, 20, 70) + 1
    for number in range(4):
        keys = sample_keys(0, torch.tensor([number]))
        repair = repair_scan(Recorder(), image, "varied", strengths, keys, (roi,) * 3, 0.5)
        assert repair.disrupted.shape == image.shape


def test_a_network_that_repairs_from_half_resolution_repairs_whole_scans(tiny_settings, tmp_path):
    weights = weights_of(tiny_settings, tmp_path, disruption="varied", repair_from="half")
    scan = bright_scan(tmp_path / "sub-1_T1w.nii.gz")
    rows = dae3d.reconstruct(scans=[scan], weights=weights, out=tmp_path / "out", device="cpu")
    assert all(np.isfinite(row["l1"]) for row in rows)
    images = {name: voxels_of(image) for name, image in written(tmp_path / "out" / "sub-1_T1w").items()}
    np.testing.assert_allclose(images["error"], abs(images["repaired"] - images["clean"]), atol=1e-6)
    for row in rows:
        error = abs(images[row["image"]] - images["clean"])
        assert row["l1"] == pytest.approx(error.mean(), abs=1e-5)


@pytest.mark.parametrize("limit", [5.0, None])
def test_intensities_are_clipped_as_in_training(limit, tiny_settings, tmp_path):
    weights = weights_of(tiny_settings, tmp_path, clip_intensity=limit)
    scan = bright_scan(tmp_path / "sub-1_T1w.nii.gz")
    dae3d.reconstruct(scans=[scan], weights=weights, out=tmp_path / "out", device="cpu")
    voxels = np.asarray(nibabel.load(scan).dataobj, np.float64)
    scaled = (voxels - voxels.mean()) / voxels.std()
    assert scaled.max() > 10
    expected = scaled if limit is None else scaled.clip(-limit, limit)
    np.testing.assert_allclose(
        voxels_of(written(tmp_path / "out" / "sub-1_T1w")["clean"]), expected, atol=1e-4
    )


def test_settings_recorded_before_a_field_was_there_mean_what_was_then(tiny_settings, tmp_path):
    before = tiny_settings | PretrainSettings.earlier | {"disruption": "all"}
    weights = weights_of(before, tmp_path, left_out=PretrainSettings.earlier)
    trained = _trained_with(load(weights))
    found = {name: getattr(trained, name) for name in PretrainSettings.earlier}
    assert found == PretrainSettings.earlier
    assert trained.disruption == "all"


def test_weights_that_say_nothing_are_repaired_as_published(tiny_settings, tmp_path):
    settings = PretrainSettings(data="s", out="r", **(tiny_settings | PretrainSettings.earlier))
    path = tmp_path / "w.safetensors"
    save_weights(path, RepairNetwork(settings.architecture()).state_dict(), settings.architecture(), {})
    trained = _trained_with(load(path))
    assert (trained.disruption, trained.clip_intensity, trained.roi) == ("all", None, (96, 96, 96))
    assert trained.embed_dim == tiny_settings["embed_dim"]


def test_seeds_are_repeated_and_differ(tiny_settings, tmp_path):
    weights = weights_of(tiny_settings, tmp_path, disruption="varied")
    scan = bright_scan(tmp_path / "sub-1_T1w.nii.gz")
    outs = [tmp_path / name for name in ("one", "again", "other")]
    for out, seed in zip(outs, (3, 3, 4), strict=True):
        dae3d.reconstruct(scans=[scan], weights=weights, out=out, seed=seed, device="cpu")
    one, again, other = (voxels_of(written(out / "sub-1_T1w")["disrupted"]) for out in outs)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
