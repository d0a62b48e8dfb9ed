"""The command `predict`: the right label, at the right place, in a file of the scan's own."""

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers.utils import sliding_window_inference

import dae3d
from dae3d.cli import main
from dae3d.commands import predict as module
from dae3d.errors import Dae3dError
from dae3d.inference import ensemble
from dae3d.models.network import RepairNetwork, Segmenter
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import save_weights
from dae3d.scans.readers import read_volume
from fine_tuned import LABELS, SMALL, ct_scan, fine_tuned, recipe_of
from oriented import ORDERS, affine_of
from scan_files import write_nifti

pytestmark = pytest.mark.slow


def voxels_of(path):
    return np.asarray(nibabel.load(path).dataobj)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return fine_tuned(tmp_path_factory.mktemp("weights") / "a.safetensors", seed=2)


class Above(torch.nn.Module):
    """The probability of class 1 crosses 1/2 where the normalised first channel crosses `level`."""

    def __init__(self, recipe, level, sharpness=4.0):
        super().__init__()
        self.level, self.sharpness = level, sharpness
        self.info = {"task": "segmentation", "recipe": recipe.model_dump(mode="json")}
        self.windows = 0

    def forward(self, windows):
        self.windows += len(windows)
        score = self.sharpness * (windows[:, :1] - self.level)
        return torch.cat([-score, score], dim=1) / 2


@pytest.fixture
def thresholding(monkeypatch, tmp_path):
    """Put a thresholding network in the place of the file's, whatever the file."""
    (tmp_path / "some.safetensors").write_bytes(b"")

    def use(level, sharpness=4.0, **fields):
        network = Above(recipe_of(labels={0: "background", 1: "bright"}, **fields), level, sharpness)
        network.weights = tmp_path / "some.safetensors"
        monkeypatch.setattr(ensemble, "load", lambda source: network)
        return network

    return use


# What is predicted ----------------------------------------------------------------------------------------


def test_labels_are_those_of_the_network_on_the_scan_as_it_was_trained(weights, tmp_path):
    """By MONAI's sliding windows over the scan in RAS axes, and HU from -1000 to 1000 as 0 to 1."""
    scan = ct_scan(tmp_path / "p.nii.gz", (40, 30, 20), affine_of("LPS", (1, 1, 2), 0.2))
    (path,) = dae3d.predict(scans=[scan], weights=[weights], out=tmp_path / "out", device="cpu")
    network = dae3d.load(weights, show=False)
    ras = nibabel.as_closest_canonical(nibabel.load(scan))
    image = torch.from_numpy((np.asarray(ras.dataobj, np.float32) + 1000) / 2000).clamp(0, 1)[None, None]
    with torch.inference_mode():
        logits = sliding_window_inference(image, 32, 1, network, 0.5, mode="gaussian")[0]
    classes = logits.argmax(dim=0).numpy()
    assert len(np.unique(classes)) == 3
    written = nibabel.load(path)
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(written.affine, nibabel.load(scan).affine)
    found = np.asarray(nibabel.as_closest_canonical(written).dataobj)
    clear = logits.topk(2, dim=0).values.diff(dim=0)[0].abs().numpy() > 1e-4
    assert clear.mean() > 0.99
    assert np.array_equal(found[clear], np.array([0, 2, 5])[classes][clear])


def test_several_channels_and_networks(tmp_path):
    """The mean of two networks' probabilities; channels in their order."""
    fields = {"modalities": ("ct", "cbct")}
    files = [fine_tuned(tmp_path / f"{seed}.safetensors", seed, **fields) for seed in (1, 2)]
    first, second = (ct_scan(tmp_path / f"{n}.nii.gz", (32, 32, 32), seed=n) for n in (3, 4))
    (path,) = dae3d.predict(scans=[(first, second)], weights=files, out=tmp_path / "out", device="cpu")
    image = torch.stack(
        [torch.from_numpy(voxels_of(file) / 2000.0 + 0.5).float() for file in (first, second)]
    )
    with torch.inference_mode():
        mean = sum(dae3d.load(file, show=False)(image[None]).softmax(dim=1) for file in files)[0] / 2
    assert path == tmp_path / "out" / "3.nii.gz"
    clear = mean.topk(2, dim=0).values.diff(dim=0)[0].abs().numpy() > 1e-4
    assert np.array_equal(voxels_of(path)[clear], np.array([0, 2, 5])[mean.argmax(dim=0).numpy()][clear])


def test_probabilities_are_written_in_the_scans_grid_and_agree_with_the_labels(weights, tmp_path):
    affine = affine_of("PIR", (1.1, 0.9, 2), 0.1)
    scan = ct_scan(tmp_path / "p.nii.gz", (36, 30, 20), affine)
    resampled = fine_tuned(tmp_path / "r.safetensors", spacing=(1.5, 1.5, 1.5))
    (path,) = dae3d.predict(
        scans=[scan], weights=[resampled], out=tmp_path / "out", probabilities=True, device="cpu"
    )
    written = nibabel.load(tmp_path / "out" / "p_probabilities.nii.gz")
    probabilities = np.asarray(written.dataobj)
    assert probabilities.shape == (36, 30, 20, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    assert np.array_equal(np.array([0, 2, 5])[probabilities.argmax(axis=-1)], voxels_of(path))
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "p.nii.gz",
        "p_probabilities.nii.gz",
        "predictions.jsonl",
        "weights.json",
    ]


def test_large_label_values_get_a_type_that_holds_them(tmp_path):
    file = fine_tuned(tmp_path / "w.safetensors", labels={0: "background", 17: "left", 2035: "insula"})
    scan = ct_scan(tmp_path / "p.nii.gz", (32, 32, 32))
    (path,) = dae3d.predict(scans=[scan], weights=[file], out=tmp_path / "out", device="cpu")
    assert nibabel.load(path).get_data_dtype() == np.int16
    assert set(np.unique(voxels_of(path))) <= {0, 17, 2035}


def test_mirroring_runs_the_network_on_eight_images(thresholding, tmp_path):
    scan = ct_scan(tmp_path / "p.nii.gz", (20, 20, 20))
    network = thresholding(0.5)
    (path,) = dae3d.predict(
        scans=[scan], weights=[Path("w")], out=tmp_path / "out", mirror=True, device="cpu"
    )
    assert network.windows == 8
    assert np.array_equal(voxels_of(path), voxels_of(scan) > 0)


# Where it is ----------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    order=ORDERS,
    tilt=st.floats(-0.5, 0.5),
    cropped=st.booleans(),
    kind=st.sampled_from([".nii", ".nii.gz", ".mgz", ".nrrd", ".mha"]),
)
def test_a_thresholded_scan_comes_back_in_its_own_grid(tmp_path_factory, order, tilt, cropped, kind):
    """Exactly, for nothing is resampled: a cube with a bar on one side, in any axes and format."""
    folder = tmp_path_factory.mktemp("own")
    voxels = np.full((22, 19, 25), -900, np.int16)
    voxels[8:14, 7:12, 9:15] = 500
    voxels[8:10, 7, 15:20] = 500
    affine = affine_of(order, (1.5, 2.5, 2.0), tilt)
    scan = write_scan(folder / f"scan{kind}", voxels, affine)
    with pytest.MonkeyPatch.context() as patch:
        (folder / "w").write_bytes(b"")
        network = Above(recipe_of(labels={0: "background", 1: "b"}, crop_foreground=cropped), 0.4)
        network.weights = folder / "w"
        patch.setattr(ensemble, "load", lambda source: network)
        (path,) = dae3d.predict(scans=[scan], weights=[Path("w")], out=folder / "out", device="cpu")
    assert np.array_equal(voxels_of(path), voxels > 0)
    np.testing.assert_allclose(nibabel.load(path).affine, affine, atol=1e-4)


def write_scan(path, voxels, affine):
    """A scan in any format, by the libraries of the formats themselves."""
    if path.suffix in (".nrrd", ".mha"):
        lps = np.diag([-1, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0))
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        sitk.WriteImage(image, str(path))
    else:
        kind = nibabel.MGHImage if path.suffix == ".mgz" else nibabel.Nifti1Image
        kind(voxels, affine.astype(np.float64)).to_filename(path)
    return path


@pytest.mark.parametrize("resample", ["probabilities", "labels"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.2, 1.7, 1.3)])
def test_an_oblique_ellipsoid_survives_resampling(thresholding, tmp_path, spacing, resample):
    """Drawn from its formula in mm, so that neither grid is favoured."""
    affine = affine_of("ASL", (1.3, 2.0, 0.9), 0.35)
    shape = (50, 34, 60)
    places = nibabel.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    middle = nibabel.affines.apply_affine(affine, np.array(shape) / 2)
    radius = np.linalg.norm((places - middle) / np.array([14, 20, 17]), axis=-1)
    scan = write_nifti(
        tmp_path / "p.nii.gz", np.clip(1000 * (1 - radius), -900, 900).astype(np.int16), affine
    )
    thresholding(0.5, spacing=spacing, crop_foreground=True)
    (path,) = dae3d.predict(
        scans=[scan], weights=[Path("w")], out=tmp_path / "out", resample=resample, device="cpu"
    )
    assert dice(voxels_of(path) == 1, radius < 1) > (0.99 if resample == "probabilities" else 0.95)


REAL = {
    # scan: spacing of the network's grid, mm
    "pretrain/niivue/register_T2w.nii.gz": (0.9, 0.9, 1.6),  # LAS oblique
    "pretrain/open_ms_long/patient20_study2_T1W.nii.gz": (1.0, 1.0, 2.0),  # LPS oblique, slices of 3 mm
    "awkward/orientation_AIL.nii.gz": (1.5, 1.4, 1.3),
    "awkward/nrrd_FLAIR.nrrd": (0.8, 1.0, 0.9),  # oblique
    "pretrain/elastix/3DCT_lung.mha": (1.5, 1.3, 2.0),
    "labelled/freesurfer_aseg/niivue_fs/norm.mgz": (1.2, 1.0, 1.0),  # LIA
    "awkward/mha_fmri.mha": None,
}


@pytest.mark.parametrize("name", REAL)
def test_a_thresholded_real_scan_lies_over_the_scan(name, shared_data, thresholding, tmp_path):
    """The same as thresholding in place, and better so than moved by one voxel along any axis."""
    voxels = read_volume(shared_data / name).intensities()
    low = voxels.min()
    threshold = (low + voxels[voxels > low].mean()) / 2
    window = f"window:{low}:{2 * threshold - low}"
    recipe = {"spacing": REAL[name], "crop_foreground": bool(REAL[name])}
    recipe |= {"modalities": ("t1",), "intensity": {"t1": window}}
    thresholding(0.5, roi=64, **recipe)
    (path,) = dae3d.predict(
        scans=[shared_data / name], weights=[Path("w")], out=tmp_path, overlap=0.1, device="cpu"
    )
    found, expected = voxels_of(path) == 1, voxels > threshold
    assert 0.02 < expected.mean() < 0.98
    in_place = dice(found, expected)
    assert in_place > (0.97 if REAL[name] else 0.9999)
    moved = [dice(np.roll(found, step, axis), expected) for axis in range(3) for step in (-1, 1)]
    assert max(moved) < in_place


# What is done, and what is not ----------------------------------------------------------------------------


def test_a_list_of_cases(weights, tmp_path):
    for number in range(4):
        ct_scan(tmp_path / "data" / f"case{number}" / "ct.nii.gz", (32, 32, 32), seed=number)
    entries = [{"image": f"case{n}/ct.nii.gz", "label": f"case{n}/ct.nii.gz", "fold": n} for n in range(3)]
    task = {"modality": "CT", "labels": LABELS, "training": entries, "test": ["case3/ct.nii.gz"]}
    (tmp_path / "data" / "task.json").write_text(json.dumps(task))
    given = {"data": tmp_path / "data" / "task.json", "weights": [weights], "device": "cpu"}
    assert dae3d.predict(out=tmp_path / "test", **given) == [tmp_path / "test" / "case3_ct.nii.gz"]
    held_out = dae3d.predict(out=tmp_path / "fold", fold=1, **given)
    assert held_out == [tmp_path / "fold" / "case1_ct.nii.gz"]
    with pytest.raises(Dae3dError, match="has folds; name the one"):
        dae3d.predict(out=tmp_path / "none", split="validation", **given)


def test_finished_scans_are_passed_over(thresholding, tmp_path):
    scans = [ct_scan(tmp_path / f"{n}.nii.gz", (20, 20, 20), seed=n) for n in (1, 2)]
    network = thresholding(0.5)
    given = {"weights": [Path("w")], "out": tmp_path / "out", "device": "cpu"}

    def windows(**fields):
        network.windows = 0
        paths = dae3d.predict(**({"scans": scans} | given | fields))
        assert all(path.is_file() for path in paths)
        return network.windows

    assert windows(scans=scans[:1]) == 1
    assert windows() == 1  # the other one
    assert windows() == 0
    (tmp_path / "out" / "1.nii.gz").unlink()
    assert windows() == 1
    ct_scan(scans[1], (20, 20, 20), seed=9)
    assert windows() == 1
    assert windows(window_batch=2) == 0


def test_a_folder_of_other_weights_or_settings_is_refused(thresholding, tmp_path):
    scan = ct_scan(tmp_path / "p.nii.gz", (20, 20, 20))
    network = thresholding(0.5)
    given = {"scans": [scan], "weights": [Path("w")], "out": tmp_path / "out", "device": "cpu"}
    dae3d.predict(**given)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(
        Dae3dError, match=r"out/predictions\.jsonl: made with other .*overlap: 0\.5 there, 0\.25 here"
    ):
        dae3d.predict(**given, overlap=0.25)
    network.weights.write_bytes(b"trained on")
    with pytest.raises(Dae3dError, match=r"settings \(weights\); name another --out"):
        dae3d.predict(**given)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_what_a_crash_left_of_a_scan_is_written_again(thresholding, tmp_path, monkeypatch):
    """Its probabilities were there already, and its labels were not."""
    scan = ct_scan(tmp_path / "p.nii.gz", (20, 20, 20))
    thresholding(0.5)
    given = {"scans": [scan], "weights": [Path("w")], "out": tmp_path / "out", "device": "cpu"}
    with monkeypatch.context() as patch:
        patch.setattr(module, "label_values", lambda recipe: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dae3d.predict(**given, probabilities=True)
    assert (tmp_path / "out" / "p_probabilities.nii.gz").is_file()
    (path,) = dae3d.predict(**given, probabilities=True)
    assert path.is_file()


def test_ctrl_c_loses_nothing_that_is_finished(thresholding, tmp_path):
    scans = [ct_scan(tmp_path / f"{n}.nii.gz", (20, 20, 20), seed=n) for n in (1, 2)]
    network = thresholding(0.5)
    given = {"scans": scans, "weights": [Path("w")], "out": tmp_path / "out", "device": "cpu"}

    def stop_in_the_second(windows):
        if network.windows == 1:
            raise KeyboardInterrupt
        return Above.forward(network, windows)

    network.forward = stop_in_the_second
    with pytest.raises(KeyboardInterrupt):
        dae3d.predict(**given, probabilities=True)
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "1.nii.gz",
        "1_probabilities.nii.gz",
        "predictions.jsonl",
        "weights.json",
    ]
    del network.forward
    dae3d.predict(**given, probabilities=True)
    assert network.windows == 2


def test_bad_scans_do_not_stop_the_good_ones(weights, tmp_path):
    good = ct_scan(tmp_path / "good.nii.gz", (20, 20, 20))
    flat = write_nifti(tmp_path / "flat.nii.gz", np.zeros((8, 8, 8), np.int16))
    (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
    with pytest.raises(Dae3dError, match="2 of 3 scans cannot be segmented") as error:
        dae3d.predict(
            scans=[tmp_path / "broken.nii.gz", flat, good],
            weights=[weights],
            out=tmp_path / "out",
            device="cpu",
        )
    assert f"{tmp_path / 'broken.nii.gz'}: unreadable" in str(error.value)
    assert f"{flat}: constant" in str(error.value)
    assert (tmp_path / "out" / "good.nii.gz").is_file()


def test_scans_of_one_name_get_names_of_their_own(thresholding, tmp_path):
    scans = [ct_scan(tmp_path / f"p{n}" / "ct.nii.gz", (20, 20, 20), seed=n) for n in (1, 2)]
    thresholding(0.5)
    paths = dae3d.predict(scans=scans, weights=[Path("w")], out=tmp_path / "out", device="cpu")
    assert [path.name for path in paths] == ["p1_ct.nii.gz", "p2_ct.nii.gz"]
    assert all(
        np.array_equal(voxels_of(path), voxels_of(scan) > 0) for path, scan in zip(paths, scans, strict=True)
    )


def test_a_comma_may_be_part_of_a_name(thresholding, tmp_path):
    scan = ct_scan(tmp_path / "a,b.nii.gz", (20, 20, 20))
    thresholding(0.5)
    (path,) = dae3d.predict(scans=[scan], weights=[Path("w")], out=tmp_path / "out", device="cpu")
    assert path.name == "a,b.nii.gz"


def test_a_scan_is_never_overwritten(weights, tmp_path):
    scan = ct_scan(tmp_path / "p.nii.gz")
    with pytest.raises(Dae3dError, match=r"would overwrite .*p\.nii\.gz"):
        dae3d.predict(scans=[scan], weights=[weights], out=tmp_path / "x" / "..", device="cpu")


def test_a_file_of_the_same_name_is_never_overwritten(thresholding, tmp_path):
    """A manual label; and another patient's scan, where a shell loop names them one by one."""
    scans = [ct_scan(tmp_path / f"p{n}" / "ct.nii.gz", (20, 20, 20), seed=n) for n in (1, 2)]
    thresholding(0.5)
    given = {"weights": [Path("w")], "device": "cpu"}
    label = tmp_path / "labelsTr" / "ct.nii.gz"
    label.parent.mkdir()
    label.write_bytes(b"drawn by hand")
    with pytest.raises(Dae3dError, match=r"labelsTr/ct\.nii\.gz exists.* choose another folder"):
        dae3d.predict(scans=scans[:1], out=label.parent, **given)
    assert [(path.name, path.read_bytes()) for path in label.parent.iterdir()] == [
        ("ct.nii.gz", b"drawn by hand")
    ]
    (first,) = dae3d.predict(scans=scans[:1], out=tmp_path / "out", **given)
    written = first.read_bytes()
    with pytest.raises(Dae3dError, match=r"made from .*p2/ct\.nii\.gz; .*all scans in one call"):
        dae3d.predict(scans=scans[1:], out=tmp_path / "out", **given)
    assert first.read_bytes() == written


@pytest.mark.parametrize("out", ["file", "file/deeper/still"])
def test_a_folder_that_cannot_be_made_is_named(weights, tmp_path, out):
    scan = ct_scan(tmp_path / "p.nii.gz", (20, 20, 20))
    (tmp_path / "file").write_text("in the way")
    message = f"{tmp_path / out}: cannot be created: {tmp_path / 'file'} is a file"
    with pytest.raises(Dae3dError, match=re.escape(message)):
        dae3d.predict(scans=[scan], weights=[weights], out=tmp_path / out, device="cpu")


def test_the_labels_of_a_list_must_be_those_of_the_weights(weights, tmp_path, caplog):
    scan = ct_scan(tmp_path / "p.nii.gz", (20, 20, 20))

    def predict_with(labels):
        path = tmp_path / "task.json"
        path.write_text(json.dumps({"modality": "CT", "labels": labels, "test": [str(scan)]}))
        return dae3d.predict(data=path, weights=[weights], out=tmp_path / "out", device="cpu")

    with pytest.raises(Dae3dError, match=r"1 oedema, 2 tumour, but .* 2 oedema, 5 tumour"):
        predict_with({0: "background", 1: "oedema", 2: "tumour"})
    assert not (tmp_path / "out").exists()
    with caplog.at_level("WARNING", "dae3d"):
        predict_with(LABELS)
        assert not caplog.text
        predict_with(LABELS | {5: "core"})
    assert "0 background, 2 oedema, 5 core, but those of the weights are 0 background" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give either scans or a list"),
        ({"scans": ["a.nii.gz"], "data": "task.json"}, "give either"),
        ({"scans": ["a.nii.gz"], "weights": []}, "weights"),
        ({"scans": ["a.nii.gz"], "overlap": 1.0}, "overlap"),
        (
            {"scans": ["a.nii.gz"], "probabilities": True, "resample": "labels"},
            "probabilities: requires resample",
        ),
        ({"scans": ["missing.nii.gz"]}, r"no such file or folder: missing\.nii\.gz"),
        ({"scans": ["missing.nii.gz"], "device": "cuda:99"}, "device"),
    ],
)
def test_what_cannot_be_is_said(fields, message, weights, tmp_path):
    with pytest.raises(Dae3dError, match=message):
        dae3d.predict(**({"weights": [weights], "out": tmp_path / "out", "device": "cpu"} | fields))


def test_channels_must_be_those_of_the_weights(weights, tmp_path):
    scan = ct_scan(tmp_path / "p.nii.gz")
    with pytest.raises(Dae3dError, match=r"p\.nii\.gz: 2 files, but the weights expect 1 channel \(ct\)"):
        dae3d.predict(scans=[f"{scan},{scan}"], weights=[weights], out=tmp_path / "out", device="cpu")


def test_networks_of_other_preparation_are_not_averaged(weights, tmp_path):
    other = fine_tuned(tmp_path / "b.safetensors", spacing=(1, 1, 2))
    with pytest.raises(Dae3dError, match=r"b\.safetensors and .*spacing is \(1\.0, 1\.0, 2\.0\), and None"):
        dae3d.predict(scans=["p.nii.gz"], weights=[weights, other], out=tmp_path / "out", device="cpu")


def test_pre_trained_weights_must_be_fine_tuned_first(tmp_path):
    architecture = SwinArchitecture(**SMALL)
    state = RepairNetwork(architecture).state_dict()
    save_weights(tmp_path / "pre.safetensors", state, architecture, {})
    with pytest.raises(Dae3dError, match=r"pre\.safetensors: not a segmentation network; .*finetune --init"):
        dae3d.predict(scans=["p.nii.gz"], weights=[tmp_path / "pre.safetensors"], out=tmp_path, device="cpu")


def test_weights_that_say_nothing_of_preparation_are_refused(tmp_path):
    architecture = SwinArchitecture(**SMALL, out_channels=3)
    state = Segmenter(architecture).state_dict()
    save_weights(tmp_path / "w.safetensors", state, architecture, {"task": "segmentation"})
    with pytest.raises(Dae3dError, match="does not record how scans are prepared"):
        dae3d.predict(scans=["p.nii.gz"], weights=[tmp_path / "w.safetensors"], out=tmp_path, device="cpu")


def test_from_the_command_line(weights, tmp_path):
    scan = ct_scan(tmp_path / "p.nii.gz", (32, 32, 32))
    out = tmp_path / "out"
    given = ["predict", "--weights", str(weights), "--device", "cpu", "--out"]
    assert main([*given, str(out), str(scan)]) == 0
    assert (out / "p.nii.gz").is_file()
    task = {"modality": "CT", "labels": LABELS, "test": [str(scan)]}
    (tmp_path / "task.json").write_text(json.dumps(task))
    assert main([*given, str(tmp_path / "two"), "--data", str(tmp_path / "task.json")]) == 0
    assert np.array_equal(voxels_of(tmp_path / "two" / "p.nii.gz"), voxels_of(out / "p.nii.gz"))
