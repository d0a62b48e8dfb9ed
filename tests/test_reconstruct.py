"""Whole scans, disrupted and repaired: written where they came from, measured as they are written."""

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import aff2axcodes
from scipy.ndimage import correlate1d

import dae3d
from conftest import smooth_volume
from dae3d.commands.reconstruct import repair_scan
from dae3d.disrupt import DisruptionSettings, sample_keys
from dae3d.errors import Dae3dError
from dae3d.inference.given_images import modality_of
from dae3d.models.network import RepairNetwork, Segmenter
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import save_weights
from dae3d.training.pretrain_settings import PretrainSettings
from repaired import NAMES, Recorder, voxels_of, written
from scan_files import write_nifti

pytestmark = pytest.mark.slow


def affine_of(order, spacing, tilt=0.0):
    """Axes in the directions of `order`, such as "LPS", voxels of `spacing` mm, turned by `tilt` radians."""
    directions = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    axes = np.zeros((3, 3))
    for column, letter in enumerate(order):
        axes[directions[letter], column] = 1 if letter in "RAS" else -1
    turned = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]]) @ axes
    affine = np.eye(4)
    affine[:3, :3] = turned * np.array(spacing)
    affine[:3, 3] = (-40.5, 12.25, 7)
    return affine


def ct_scan(path, shape=(40, 36, 34), affine=None, seed=11):
    """HU beyond both ends of the window."""
    voxels = np.round(smooth_volume(seed, shape) * 2600 - 1300).astype(np.int16)
    return write_nifti(path, voxels, np.eye(4) if affine is None else affine)


def mr_scan(path, shape=(34, 40, 36), affine=None, seed=12):
    """With a background of exact zeros."""
    voxels = np.round(smooth_volume(seed, shape) * 500 + 1).astype(np.int16)
    voxels[:6] = 0
    return write_nifti(path, voxels, np.eye(4) if affine is None else affine)


def ras(image):
    return voxels_of(nibabel.as_closest_canonical(image))


def normalised(path, label):
    voxels = voxels_of(nibabel.load(path))
    if label == "ct":
        return np.clip((voxels + 1000) / 2000, 0, 1)
    inside = voxels != 0
    scaled = (voxels - voxels[inside].mean()) / voxels[inside].std()
    return np.where(inside, scaled, 0)


@pytest.fixture(scope="module")
def done(tiny_run, tmp_path_factory):
    """Two scans in axes of their own, one of them oblique, under all disruptions."""
    folder = tmp_path_factory.mktemp("reconstruct")
    scans = [
        ct_scan(folder / "sub-1_ct.nii.gz", affine=affine_of("PSL", (0.8, 0.9, 2.5), tilt=0.3)),
        mr_scan(folder / "sub-2_T1w.nii", affine=affine_of("LPS", (1, 1, 1.2))),
    ]
    given = {"weights": tiny_run, "disruption": "all", "device": "cpu"}
    rows = dae3d.reconstruct(scans=scans, out=folder / "out", **given)
    return scans, folder / "out", rows


def test_the_scans_are_in_the_axes_they_are_said_to_be(done):
    scans, _, _ = done
    assert ["".join(aff2axcodes(nibabel.load(path).affine)) for path in scans] == ["PSL", "LPS"]


def test_every_file_is_written_with_the_scans_own_affine_and_shape(done):
    scans, out, _ = done
    for path, name in zip(scans, ("sub-1_ct", "sub-2_T1w"), strict=True):
        scan = nibabel.load(path)
        for image in written(out / name).values():
            np.testing.assert_allclose(image.affine, scan.affine, atol=1e-5)
            assert image.shape == scan.shape
            assert image.get_data_dtype() == np.float32
        assert (out / name / "triptych.png").read_bytes().startswith(b"\x89PNG")


def test_clean_is_the_scan_normalised_voxel_for_voxel(done):
    scans, out, _ = done
    for path, name, label in zip(scans, ("sub-1_ct", "sub-2_T1w"), ("ct", "t1"), strict=True):
        clean = voxels_of(written(out / name)["clean"])
        np.testing.assert_allclose(clean, normalised(path, label), atol=1e-5)


def test_error_is_the_distance_from_clean(done):
    _, out, _ = done
    for name in ("sub-1_ct", "sub-2_T1w"):
        images = {key: voxels_of(image) for key, image in written(out / name).items()}
        np.testing.assert_allclose(images["error"], abs(images["repaired"] - images["clean"]), atol=1e-6)
        assert images["error"].max() > 0


def test_disrupted_has_noise_on_blocks_of_four(done):
    _, out, _ = done
    image = written(out / "sub-1_ct")["disrupted"]
    disrupted, clean = ras(image), ras(written(out / "sub-1_ct")["clean"])
    first = np.ix_(*(np.arange(n) // 4 * 4 for n in disrupted.shape))
    np.testing.assert_array_equal(disrupted, disrupted[first])
    noise = (disrupted - clean[first])[::4, ::4, ::4]
    # 810 draws of variance 0.1: six deviations of mean and variance.
    assert abs(noise.mean()) < 6 * np.sqrt(0.1 / noise.size)
    assert abs(noise.var() - 0.1) < 6 * 0.1 * np.sqrt(2 / noise.size)


def quality(image, clean):
    """L1, PSNR and SSIM (Gaussian window of 11^3, sigma 1.5, range of the clean image), in float64."""
    span = clean.max() - clean.min()
    error = image - clean
    psnr = 10 * np.log10(span**2 / np.mean(error**2))
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights /= weights.sum()

    def mean(volume):
        for axis in range(3):
            volume = correlate1d(volume, weights, axis)
        return volume[5:-5, 5:-5, 5:-5]

    x, y = image - clean.min(), clean - clean.min()
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2, mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    ssim = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return abs(error).mean(), psnr, ssim.mean()


def test_metrics_are_those_of_the_files(done):
    scans, out, rows = done
    with (out / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in row.items()} for row in rows] == table
    assert [(row["scan"], row["modality"], row["image"]) for row in table] == [
        (str(path), label, image)
        for path, label in zip(scans, ("ct", "t1"), strict=True)
        for image in ("disrupted", "repaired")
    ]
    for row in table:
        images = written(out / Path(row["scan"]).name.split(".")[0])
        expected = quality(voxels_of(images[row["image"]]), voxels_of(images["clean"]))
        for name, value in zip(("l1", "psnr", "ssim"), expected, strict=True):
            assert float(row[name]) == pytest.approx(value, abs=1e-4), (name, row)


def test_the_same_seed_gives_the_same_files_and_another_does_not(done, tiny_run, tmp_path):
    scans, out, _ = done
    given = {"scans": scans[:1], "weights": tiny_run, "disruption": "all", "device": "cpu"}
    for seed in (0, 1):
        dae3d.reconstruct(out=tmp_path / str(seed), seed=seed, **given)
    for name in NAMES:
        first, again, other = (
            voxels_of(written(folder / "sub-1_ct")[name]) for folder in (out, tmp_path / "0", tmp_path / "1")
        )
        np.testing.assert_array_equal(first, again)
        assert np.array_equal(first, other) == (name == "clean")


# Disruptions of whole scans


def nearest(volume, factor):
    return volume[np.ix_(*(np.arange(n) // factor * factor for n in volume.shape))]


def test_superres_is_nearest_sampling_of_the_scan_in_ras(tiny_run, tmp_path):
    scan = ct_scan(tmp_path / "a_ct.nii.gz", affine=affine_of("LIP", (1, 2, 1)))
    dae3d.reconstruct(
        scans=[scan], weights=tiny_run, out=tmp_path, modality="ct", disruption="superres", device="cpu"
    )
    images = written(tmp_path / "a_ct")
    np.testing.assert_array_equal(ras(images["disrupted"]), nearest(ras(images["clean"]), 4))


def weights_of(tiny_settings, tmp_path, **changes):
    """A network that has not learned, with settings of its own."""
    settings = PretrainSettings(data="s", out=tmp_path / "none", **(tiny_settings | changes))
    torch.manual_seed(0)
    network = RepairNetwork(settings.architecture())
    path = tmp_path / "w.safetensors"
    info = {"settings": settings.model_dump(mode="json")}
    save_weights(path, network.state_dict(), settings.architecture(), info)
    return path


def test_a_factor_that_does_not_divide_32_keeps_its_blocks(tiny_settings, tmp_path):
    weights = weights_of(tiny_settings, tmp_path, roi=96, downsample_factor=3, disruption="superres")
    scan = ct_scan(tmp_path / "a_ct.nii.gz", shape=(35, 98, 30))
    dae3d.reconstruct(scans=[scan], weights=weights, out=tmp_path, modality="ct", device="cpu")
    images = written(tmp_path / "a_ct")
    np.testing.assert_array_equal(voxels_of(images["disrupted"]), nearest(voxels_of(images["clean"]), 3))


def test_mae_masks_whole_blocks(tiny_settings, tmp_path):
    weights = weights_of(tiny_settings, tmp_path, roi=96, disruption="mae", block_size=12)
    scan = ct_scan(tmp_path / "a_ct.nii.gz", shape=(48, 60, 72))
    dae3d.reconstruct(scans=[scan], weights=weights, out=tmp_path, modality="ct", device="cpu")
    images = written(tmp_path / "a_ct")
    clean, disrupted = voxels_of(images["clean"]), voxels_of(images["disrupted"])
    blocks = (disrupted != clean).reshape(4, 12, 5, 12, 6, 12).any(axis=(1, 3, 5))
    masked = blocks.repeat(12, 0).repeat(12, 1).repeat(12, 2)
    np.testing.assert_array_equal(disrupted, np.where(masked, 0, clean))
    assert 0.4 < blocks.mean() < 0.8  # 60 % of the blocks of the padded scan


@pytest.mark.parametrize(("disruption", "overlap"), [("local_mask", 0.5), ("mae", 0.3), ("denoise", 0.0)])
def test_every_disruption_runs_with_any_overlap(disruption, overlap, tiny_run, tmp_path):
    scan = mr_scan(tmp_path / "sub-1_T1w.nii.gz", shape=(50, 20, 33))
    rows = dae3d.reconstruct(
        scans=[scan], weights=tiny_run, out=tmp_path, disruption=disruption, overlap=overlap, device="cpu"
    )
    images = written(tmp_path / "sub-1_T1w")
    untouched = np.array_equal(voxels_of(images["clean"]), voxels_of(images["disrupted"]))
    assert untouched == (disruption == "local_mask")
    assert np.isfinite(voxels_of(images["repaired"])).all()
    assert [row["modality"] for row in rows] == ["t1", "t1"]


@pytest.mark.parametrize("roi", [(32, 32, 32), (64, 32, 96)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.3, 0.5, 0.77])
def test_tokens_of_a_window_are_masked_where_all_their_voxels_are(overlap, roi):
    recorder = Recorder()
    image = torch.rand(1, 1, 50, 20, 70) + 1
    keys = sample_keys(0, torch.tensor([0]))
    repair = repair_scan(recorder, image, "mae", DisruptionSettings(), keys, roi, overlap)
    torch.testing.assert_close(repair.repaired, repair.disrupted)
    for window, _, tokens in recorder.seen:
        assert window.shape[2:] == roi
        hidden = torch.nn.functional.avg_pool3d((window == 0).float(), 2)  # share of a token's voxels
        assert set(hidden.unique().tolist()) <= {0.0, 1.0}
        assert hidden[tokens].all()


@pytest.mark.parametrize("disruption", ["local_mask", "denoise"])
def test_every_window_masks_channels_of_its_own(disruption):
    recorder = Recorder()
    keys = sample_keys(0, torch.tensor([0]))
    image = torch.rand(1, 1, 64, 64, 32)
    repair_scan(recorder, image, disruption, DisruptionSettings(), keys, (32, 32, 32), 0.5)
    assert len(recorder.seen) == 9
    keeps = [keep for _, keep, _ in recorder.seen]
    if disruption == "denoise":
        assert keeps == [None] * 9
    else:
        assert [int((keep == 0).sum()) for keep in keeps] == [28] * 9
        assert len({tuple(keep.flatten().tolist()) for keep in keeps}) == 9


# Names, modalities, errors


def test_scans_of_the_same_name_do_not_overwrite_each_other(tiny_run, tmp_path):
    # The third has the name that the second of two would be given.
    paths = [tmp_path / "x" / "a.nii.gz", tmp_path / "y" / "a.nii", tmp_path / "z" / "a-2.nii"]
    scans = [ct_scan(path, shape=(32, 32, 32), seed=i) for i, path in enumerate(paths)]
    dae3d.reconstruct(scans=scans, weights=tiny_run, out=tmp_path / "out", modality="ct", device="cpu")
    folders = sorted(path.parent for path in (tmp_path / "out").rglob("clean.nii.gz"))
    assert [folder.name for folder in folders] == ["a-1", "a-2", "a-3"]
    cleans = [voxels_of(nibabel.load(folder / "clean.nii.gz")) for folder in folders]
    for scan, clean in zip((scans[0], scans[2], scans[1]), cleans, strict=True):
        np.testing.assert_allclose(clean, normalised(scan, "ct"), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rules", "modality", "label"),
    [
        ("data/sub-1_FLAIR.nii.gz", [], None, "flair"),
        ("data/x.nii.gz", [], "t2", "t2"),
        ("data/sub-1_FLAIR.nii.gz", [], "t2", "t2"),
        ("data/sub-1_FLAIR.nii.gz", ["*FLAIR*=ct"], "t2", "ct"),
        ("data/x.nii.gz", ["*.mha=t1", "x*=T1ce", "*=t2"], None, "t1ce"),
        ("dataset1/x.nii.gz", ["*t1*=t1"], "ct", "ct"),  # "dataset1" is not a modality
        ("dataset1/x.nii.gz", ["dataset1/*=t1"], "ct", "t1"),
    ],
)
def test_the_modality_is_that_of_a_rule_the_option_or_the_bids_name(name, rules, modality, label):
    assert modality_of(Path("/scans", name), rules, modality) == label


def test_a_modality_that_nothing_tells_is_an_error(tiny_run, tmp_path):
    scan = ct_scan(tmp_path / "patient_T1.nii.gz", shape=(32, 32, 32))
    with pytest.raises(Dae3dError, match="unknown modality; set --modality") as error:
        dae3d.reconstruct(scans=[scan], weights=tiny_run, out=tmp_path / "out", device="cpu")
    assert str(scan) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_is_left_out_and_the_rest_goes_on(tiny_run, tmp_path, caplog):
    broken = tmp_path / "broken_ct.nii.gz"
    broken.write_bytes(ct_scan(tmp_path / "whole.nii.gz").read_bytes()[:5000])
    constant = write_nifti(tmp_path / "constant.nii", np.full((32, 32, 32), 7, np.int16))
    nan = write_nifti(tmp_path / "nan.nii", np.full((32, 32, 32), np.nan, np.float32))
    good = ct_scan(tmp_path / "good.nii.gz", shape=(32, 32, 32))
    scans = [broken, constant, tmp_path / "missing.nii", good, nan]
    rows = dae3d.reconstruct(scans=scans, weights=tiny_run, out=tmp_path / "out", modality="ct", device="cpu")
    assert {row["scan"] for row in rows} == {str(good)}
    assert [folder.name for folder in (tmp_path / "out").iterdir() if folder.is_dir()] == ["good"]
    left_out = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(left_out) == 4
    for path, message, reason in zip(
        [broken, constant, tmp_path / "missing.nii", nan],
        left_out,
        ["unreadable", "constant", "unreadable", "not finite"],
        strict=True,
    ):
        assert message.startswith(f"{path}: left out: {reason}")


def test_nothing_that_can_be_read_is_an_error(tiny_run, tmp_path):
    with pytest.raises(Dae3dError, match="none of the scans could be used"):
        dae3d.reconstruct(
            scans=[tmp_path / "a.nii"], weights=tiny_run, out=tmp_path / "out", modality="ct", device="cpu"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "tpu"}, "device: .*'tpu'"),
        ({"device": "cuda:99"}, "device: .*'cuda:99'"),
        ({"roi": 48}, "roi: .*multiples of 32.*48"),
        ({"overlap": 1}, "overlap: "),
        ({"scans": []}, "scans: "),
        ({"axes": "reference"}, "roi: with reference axes all sides must be 8, not 32 x 32 x 32"),
        ({"weights": "nowhere"}, "nowhere: no such file or run folder"),
    ],
)
def test_bad_settings_are_named(given, said, tiny_run, tmp_path):
    settings = {"scans": [tmp_path / "a.nii"], "weights": tiny_run, "out": tmp_path / "out", "device": "cpu"}
    with pytest.raises(Dae3dError, match=said):
        dae3d.reconstruct(**(settings | given))


def test_weights_of_a_network_that_does_not_repair_are_refused(tmp_path):
    architecture = SwinArchitecture(embed_dim=4, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=2)
    weights = tmp_path / "w.safetensors"
    save_weights(weights, Segmenter(architecture).state_dict(), architecture, {"task": "segmentation"})
    with pytest.raises(Dae3dError, match=r"w.safetensors: a network for segmentation; reconstruct needs"):
        dae3d.reconstruct(scans=[tmp_path / "a.nii"], weights=weights, out=tmp_path / "out", device="cpu")
