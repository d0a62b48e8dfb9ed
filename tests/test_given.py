"""Scans as users name them: folders, DICOM series, 4-D files, channels in any order, other modalities."""

import json
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import dae3d
from conftest import smooth_volume
from dae3d.errors import Dae3dError
from dae3d.inference.given_cases import given_cases
from dae3d.inference.given_images import given_images
from dae3d.models.network import RepairNetwork, Segmenter
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import save_weights
from dae3d.scans.given import Image
from dae3d.scans.modality_conflicts import conflict, strange
from dae3d.scans.task import read_task
from dae3d.store.recipe import CaseRecipe
from dicom_files import evenly, write_series
from scan_files import write_nifti

pytestmark = pytest.mark.slow

SMALL = {"embed_dim": 4, "heads": (1, 1, 2, 2), "depths": (1, 1, 1, 1), "window": 2}
LABELS = {0: "background", 1: "organ"}


@pytest.fixture(autouse=True)
def own_salt(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def mr(path, seed=0, shape=(20, 18, 16)):
    return write_nifti(path, np.round(smooth_volume(seed, shape) * 400 + 1).astype(np.int16))


def ct(path, seed=0, shape=(20, 18, 16)):
    """Air of -1000 HU around a body."""
    voxels = np.full(shape, -1000, np.int16)
    voxels[4:-4, 4:-4, 4:-4] = np.round(smooth_volume(seed, shape)[4:-4, 4:-4, 4:-4] * 300 - 50)
    return write_nifti(path, voxels)


def fine_tuned(folder, *modalities):
    """Weights of a segmentation network that was not trained."""
    recipe = CaseRecipe(modalities=modalities, labels=LABELS, roi=32)
    architecture = SwinArchitecture(**SMALL, in_channels=len(modalities), out_channels=2)
    torch.manual_seed(1)
    network = Segmenter(architecture)
    torch.nn.init.normal_(network.decoder.head.conv.conv.weight, std=1.0)
    info = {"task": "segmentation", "recipe": recipe.model_dump(mode="json")}
    save_weights(folder / "w.safetensors", network.state_dict(), architecture, info)
    return folder / "w.safetensors"


def pre_trained(folder, *modalities):
    torch.manual_seed(1)
    network = RepairNetwork(SwinArchitecture(**SMALL))
    info = {"task": "pretrain", "modalities": list(modalities)}
    save_weights(folder / "p.safetensors", network.state_dict(), network.architecture, info)
    return folder / "p.safetensors"


def names(cases):
    return [[image.path.name for image in case.images] for case in cases]


def voxels_of(path):
    return np.asarray(nibabel.load(path).dataobj)


# Folders


def test_a_folder_stands_for_the_scans_in_it(tmp_path, caplog):
    folder = tmp_path / "scans"
    for name in ("a.nii.gz", "deep/b.nii", "sub-1_T1w.nii.gz", "p2_t1.nii.gz"):
        mr(folder / name)
    for name in ("sub-1_FLAIR.nii.gz", "p2_t2.nii.gz", "a_seg.nii.gz", "sub-1_dseg.nii.gz", "labels.nii"):
        mr(folder / name)
    write_nifti(folder / "run.nii.gz", np.ones((9, 9, 9, 4), np.int16))
    (folder / "broken.nii.gz").write_bytes(b"no scan")
    (folder / "notes.txt").write_text("no scan either")
    with caplog.at_level("INFO", "dae3d"):
        cases = given_cases([str(folder)], ["t1"])
    assert names(cases) == [["a.nii.gz"], ["p2_t1.nii.gz"], ["sub-1_T1w.nii.gz"], ["b.nii"]]
    assert f"scans in {folder}: 4" in caplog.text
    assert "label map by its name, 3 (such as" in caplog.text
    assert "flair by its BIDS name, 1 (such as" in caplog.text
    assert "t2 by its name, 1 (such as" in caplog.text
    assert "4-D: shape 9x9x9x4 (--volume N takes one volume, counted from 0), 1 (such as" in caplog.text
    assert "unreadable" in caplog.text
    everything = given_cases([str(folder)], ["t1"], labels=["t1"], volume=2)
    assert [case.images[0].volume for case in everything if case.images[0].path.name == "run.nii.gz"] == [2]
    assert len(everything) == 7


def test_a_comma_in_the_name_of_a_folder(tmp_path):
    mr(tmp_path / "Doe, Jane" / "a.nii")
    assert names(given_cases([str(tmp_path / "Doe, Jane")], ["t1"])) == [["a.nii"]]


def test_a_folder_without_scans_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Dae3dError, match="empty: no usable scan: no scan files"):
        given_cases([str(tmp_path / "empty")], ["t1"])
    mr(tmp_path / "t2" / "sub-1_T2w.nii.gz")
    with pytest.raises(Dae3dError, match="no usable scan; left out: t2 by its BIDS name, 1 "):
        given_cases([str(tmp_path / "t2")], ["t1"])


def test_what_predict_wrote_is_no_scan_the_next_time(tmp_path):
    weights = fine_tuned(tmp_path, "t1")
    mr(tmp_path / "scans" / "a.nii.gz")
    given = {"scans": [tmp_path / "scans"], "weights": [weights], "device": "cpu"}
    for out in ("one", "two"):
        for _ in range(2):
            (path,) = dae3d.predict(out=tmp_path / "scans" / out, probabilities=True, **given)
            assert path == tmp_path / "scans" / out / "a.nii.gz"


def test_channels_in_a_folder_are_put_together(tmp_path):
    folder = tmp_path / "scans"
    for name in (
        *("p1_flair.nii.gz", "p1_t1.nii.gz", "p1_t2.nii.gz", "p1_seg.nii.gz"),
        *("sub-7/ses-a/anat/sub-7_ses-a_T1w.nii.gz", "sub-7/ses-a/extra/sub-7_ses-a_acq-x_FLAIR.nii.gz"),
        *("p3/FLAIR.nii", "p3/T1.nii", "nn_0001.nii.gz", "nn_0000.nii.gz"),
    ):
        mr(folder / name)
    assert names(given_cases([str(folder)], ["t1", "flair"])) == [
        ["nn_0000.nii.gz", "nn_0001.nii.gz"],
        ["p1_t1.nii.gz", "p1_flair.nii.gz"],
        ["T1.nii", "FLAIR.nii"],
        ["sub-7_ses-a_T1w.nii.gz", "sub-7_ses-a_acq-x_FLAIR.nii.gz"],
    ]


def test_channels_that_cannot_be_put_together_are_named(tmp_path):
    mr(tmp_path / "scans" / "p1_t1.nii.gz")
    mr(tmp_path / "scans" / "sub-2_T1w.nii.gz")
    mr(tmp_path / "scans" / "sub-2_acq-b_T1w.nii.gz")
    mr(tmp_path / "scans" / "sub-2_FLAIR.nii.gz")
    with pytest.raises(Dae3dError) as error:
        given_cases([str(tmp_path / "scans")], ["t1", "flair"])
    text = str(error.value)
    assert "cannot be grouped to scans of 2 channels in this order: t1, flair" in text
    assert "p1_t1.nii.gz: no flair image of the same scan" in text
    assert "sub-2_T1w.nii.gz and " in text
    assert "sub-2_acq-b_T1w.nii.gz: both t1, of the same scan" in text
    mr(tmp_path / "others" / "a.nii.gz")
    with pytest.raises(Dae3dError, match="no image has any of these modalities"):
        given_cases([str(tmp_path / "others")], ["t1", "flair"])


# DICOM


def dicom(folder, modality="MR", count=20, **tags):
    return write_series(
        folder,
        evenly(count),
        modality,
        pixels=lambda n: np.random.default_rng(n).integers(0, 900, (20, 20)).astype(np.uint16),
        Rows=20,
        Columns=20,
        **tags,
    )


def test_a_folder_of_dicom_slices_is_predicted_in_its_own_grid(tmp_path):
    """As the same voxels in a NIfTI file are."""
    files = dicom(tmp_path / "visit" / "IM", SeriesDescription="t1 se")
    weights = fine_tuned(tmp_path, "t1")
    given = {"weights": [weights], "device": "cpu"}
    (path,) = dae3d.predict(scans=[tmp_path / "visit"], out=tmp_path / "out", **given)
    assert path == tmp_path / "out" / "IM.nii.gz"
    (case,) = given_cases([str(tmp_path / "visit")], ["t1"])
    assert case.files == files
    volume = case.images[0].read()
    scan = write_nifti(tmp_path / "same.nii.gz", volume.array, volume.affine)
    (same,) = dae3d.predict(scans=[scan], out=tmp_path / "out", **given)
    np.testing.assert_allclose(nibabel.load(path).affine, nibabel.load(same).affine, atol=1e-4)
    assert np.array_equal(voxels_of(path), voxels_of(same))
    assert len(np.unique(voxels_of(path))) == 2
    made = path.stat().st_mtime_ns
    dae3d.predict(scans=[tmp_path / "visit"], out=tmp_path / "out", **given)
    assert path.stat().st_mtime_ns == made


def test_series_of_other_modalities_in_the_same_folder_are_left_out(tmp_path, caplog):
    dicom(tmp_path / "IM", name="a{:03d}", SeriesDescription="t1 se")
    dicom(tmp_path / "IM", "CT", name="b{:03d}")
    with caplog.at_level("WARNING", "dae3d"):
        (case,) = given_cases([str(tmp_path / "IM")], ["t1"])
    assert case.images[0].files[0].name == "a000"
    assert "ct by its DICOM header, 20 (such as" in caplog.text


def test_two_series_in_one_folder_get_names_of_their_own(tmp_path):
    for letter in "ab":
        dicom(tmp_path / "IM", name=letter + "{:03d}", SeriesDescription="t1 se")
    cases = given_cases([str(tmp_path / "IM")], ["t1"])
    assert len({case.name for case in cases}) == 2
    assert all(case.name.startswith("IM_") for case in cases)


def test_series_of_one_study_are_the_channels_of_a_scan(tmp_path):
    study = {"StudyInstanceUID": "1.2.3"}
    dicom(tmp_path / "2", SeriesDescription="t2 tse", RepetitionTime=5000, EchoTime=100, **study)
    dicom(tmp_path / "1", SeriesDescription="t1 se", **study)
    (case,) = given_cases([str(tmp_path)], ["t1", "t2"])
    assert [image.path.name for image in case.images] == ["1", "2"]
    by_folder = given_cases([f"{tmp_path / '2'},{tmp_path / '1'}"], ["t1", "t2"])
    assert [image.path.name for image in by_folder[0].images] == ["1", "2"]


def test_a_ct_series_is_refused_by_weights_of_mr(tmp_path):
    dicom(tmp_path / "IM", "CT")
    folder = str(tmp_path / "IM")
    with pytest.raises(Dae3dError, match="left out: ct by its DICOM header, 20 "):
        given_cases([folder], ["t1"])
    with pytest.raises(Dae3dError, match="IM: ct by its DICOM header, but t1 is expected"):
        given_cases([f"{folder},{mr(tmp_path / 'flair.nii.gz')}"], ["t1", "flair"])
    assert len(given_cases([folder], ["t1"], labels=["t1"])) == 1


# 4-D files


def test_a_volume_of_a_4d_file(tmp_path):
    weights = fine_tuned(tmp_path, "t1")
    volumes = np.stack([np.round(smooth_volume(n, (20, 18, 16)) * 400 + 1) for n in range(3)], -1)
    scan = write_nifti(tmp_path / "time.nii.gz", volumes.astype(np.int16))
    given = {"weights": [weights], "device": "cpu"}
    with pytest.raises(Dae3dError, match=r"time: .*4-D: 3 volumes; --volume N takes one, counted from 0"):
        dae3d.predict(scans=[scan], out=tmp_path / "out", **given)
    with pytest.raises(Dae3dError, match="no volume 3: it has 3, counted from 0"):
        dae3d.predict(scans=[scan], out=tmp_path / "out3", volume=3, **given)
    (path,) = dae3d.predict(scans=[scan], out=tmp_path / "out1", volume=1, **given)
    single = mr(tmp_path / "single.nii.gz", 1)
    (same,) = dae3d.predict(scans=[single], out=tmp_path / "out", **given)
    assert np.array_equal(voxels_of(path), voxels_of(same))
    with pytest.raises(Dae3dError, match=r"made with other weights or settings.*volume: 1 there, 2 here"):
        dae3d.predict(scans=[scan], out=tmp_path / "out1", volume=2, **given)


# Channels in another order


@pytest.mark.parametrize("ending", ["{}_t1.nii.gz,{}_flair.nii.gz", "sub-{}_T1w.nii,sub-{}_FLAIR.nii"])
def test_channels_are_put_into_the_order_of_the_weights(tmp_path, caplog, ending):
    first, second = (str(mr(tmp_path / name)) for name in ending.replace("{}", "1").split(","))
    with caplog.at_level("WARNING", "dae3d"):
        (case,) = given_cases([f"{second},{first}"], ["t1", "flair"])
        assert [str(image.path) for image in case.images] == [first, second]
        assert (
            "flair, t1 by headers and names; reordered to the order of the weights, t1, flair" in caplog.text
        )
        caplog.clear()
        (straight,) = given_cases([f"{first},{second}"], ["t1", "flair"])
        assert straight.images == case.images
        assert not caplog.text
    (said,) = given_cases([f"{second},{first}"], ["t1", "flair"], labels=["t1", "flair"])
    assert [str(image.path) for image in said.images] == [second, first]
    (said,) = given_cases([f"{first},{second}"], ["t1", "flair"], labels=["flair", "t1"])
    assert [str(image.path) for image in said.images] == [second, first]


def test_a_channel_that_is_told_to_be_another_is_said(tmp_path, caplog):
    scans = ",".join(str(mr(tmp_path / name)) for name in ("p_flair.nii.gz", "unnamed.nii.gz"))
    with caplog.at_level("WARNING", "dae3d"):
        given_cases([scans], ["t1", "flair"])
    assert "p_flair.nii.gz: flair by its name, but t1 is expected" in caplog.text
    with pytest.raises(
        Dae3dError, match="3 files, but the weights expect 2 channels in this order: t1, flair"
    ):
        given_cases([scans + ",x.nii"], ["t1", "flair"])
    with pytest.raises(
        Dae3dError, match="modality: t1, t2: the weights expect 2 channels in this order: t1, fl"
    ):
        given_cases([scans], ["t1", "flair"], labels=["t1", "t2"])


def a_list(folder, modality, *images):
    folder.mkdir(exist_ok=True)
    path = folder / "task.json"
    path.write_text(json.dumps({"modality": modality, "labels": LABELS, "test": [{"image": list(images)}]}))
    return path


def test_a_list_of_channels_in_another_order(tmp_path, caplog):
    path = a_list(tmp_path, {"0": "FLAIR", "1": "T1w"}, "a.nii.gz", "b.nii.gz")
    with caplog.at_level("WARNING", "dae3d"):
        (case,) = read_task(path, order=["t1", "flair"]).test
    assert [image.name for image in case.images] == ["b.nii.gz", "a.nii.gz"]
    assert case.name == "a"  # as it is called whatever the order
    assert "its channels are flair, t1; taken in the order of the weights, t1, flair" in caplog.text
    (given,) = read_task(path, ["t1", "flair"], order=["t1", "flair"]).test
    assert [image.name for image in given.images] == ["a.nii.gz", "b.nii.gz"]


def test_a_list_of_ct_is_refused_by_weights_of_mr(tmp_path):
    weights = fine_tuned(tmp_path, "t1")
    mr(tmp_path / "a.nii.gz")
    data = a_list(tmp_path, "CT", "a.nii.gz")
    given = {"data": data, "weights": [weights], "device": "cpu"}
    with pytest.raises(
        Dae3dError, match=r"`modality` is ct, but the weights take t1; .*predict --modality t1"
    ):
        dae3d.predict(out=tmp_path / "out", **given)
    (path,) = dae3d.predict(out=tmp_path / "out", modality=["t1"], **given)
    assert path.is_file()


# Modalities


@pytest.mark.parametrize(
    ("label", "other", "what"),
    [
        ("t1", "t1", None),
        ("t1", "flair", "contrast"),
        ("t1", "t1ce", "contrast"),
        ("mr", "t1", None),
        ("ct", "t1", "machine"),
        ("mr", "pet", "machine"),
        ("ct", "cbct", "contrast"),
        ("banana", "ct", None),
    ],
)
def test_labels_that_conflict(label, other, what):
    assert conflict(label, other) == conflict(other, label) == what


def test_labels_that_weights_never_saw():
    assert strange("banana", ["ct", "t1"])
    assert strange("t2", ["ct", "t1"])
    assert not strange("t1", ["ct", "mr"])
    assert not strange("banana", ["banana"])


def test_values_like_those_of_a_ct_are_said_and_predicted(tmp_path, caplog):
    weights = fine_tuned(tmp_path, "t1")
    scans = [ct(tmp_path / "one.nii.gz"), mr(tmp_path / "two.nii.gz")]
    with caplog.at_level("WARNING", "dae3d"):
        dae3d.predict(scans=scans, weights=[weights], out=tmp_path / "out", device="cpu")
    said = [record.getMessage() for record in caplog.records if "used as" in record.getMessage()]
    assert len(said) == 1
    assert "one.nii.gz: used as t1, but its values, -1000 to " in said[0]


def test_values_unlike_those_of_a_ct_are_said(tmp_path, caplog):
    weights = fine_tuned(tmp_path, "ct")
    scans = [ct(tmp_path / "one.nii.gz"), mr(tmp_path / "two.nii.gz")]
    with caplog.at_level("WARNING", "dae3d"):
        dae3d.predict(scans=scans, weights=[weights], out=tmp_path / "out", device="cpu")
    said = [record.getMessage() for record in caplog.records if "used as" in record.getMessage()]
    assert len(said) == 1
    assert "two.nii.gz: used as ct, but no voxel is below 0" in said[0]


def test_a_name_that_says_another_machine(tmp_path, caplog):
    """A BIDS name is refused, any other name said."""
    mr(tmp_path / "patient_ct.nii.gz")
    with caplog.at_level("WARNING", "dae3d"):
        given_cases([str(tmp_path / "patient_ct.nii.gz")], ["t1"])
    assert "patient_ct.nii.gz: ct by its name, but t1 is expected" in caplog.text
    bids = mr(tmp_path / "sub-1_ct.nii.gz")
    with pytest.raises(Dae3dError, match=r"ct by its BIDS name, .*\nTo use them anyway, set --modality t1"):
        given_cases([str(bids)], ["t1"])
    assert len(given_cases([str(bids)], ["t1"], labels=["t1"])) == 1


def test_reconstruct_refuses_what_its_weights_never_saw(tmp_path):
    weights = pre_trained(tmp_path, "ct", "t1")
    scan = mr(tmp_path / "sub-1_T2w.nii.gz")
    given = {"scans": [scan], "weights": weights, "out": tmp_path / "out", "device": "cpu"}
    with pytest.raises(Dae3dError, match=r"trained on ct, t1, but not on banana \(.*sub-1_T2w"):
        dae3d.reconstruct(modality="banana", **given)
    with pytest.raises(
        Dae3dError, match=r"but not on t2 .*; to treat the scans as one of those, set --modality"
    ):
        dae3d.reconstruct(**given)
    assert not (tmp_path / "out").exists()


def test_embed_says_what_its_weights_never_saw(tmp_path, caplog):
    weights = pre_trained(tmp_path, "ct", "t1")
    mr(tmp_path / "scans" / "sub-1_T2w.nii.gz")
    mr(tmp_path / "scans" / "sub-1_T1w.nii.gz")
    mr(tmp_path / "scans" / "other.nii.gz")
    given = {"weights": weights, "out": tmp_path / "e.npz", "device": "cpu", "roi": 32}
    with caplog.at_level("WARNING", "dae3d"):
        found = dae3d.embed(scans=[tmp_path / "scans"], **given)
    assert found.modalities == ["t1", "t2"]
    assert "trained on ct, t1, but not on t2 (" in caplog.text
    assert "of unknown modality (set --modality LABEL or --rule 'GLOB=LABEL'), 1 " in caplog.text


def test_a_modality_that_contradicts_the_name_is_said(tmp_path, caplog):
    scan = mr(tmp_path / "sub-1_T2w.nii.gz")
    with caplog.at_level("WARNING", "dae3d"):
        (item,) = given_images([scan], [], "ct", None)
    assert item == (str(scan), Image.of(scan), "ct")
    assert "used as ct, but t2 by its BIDS name" in caplog.text


def test_a_dicom_header_tells_the_modality(tmp_path):
    dicom(tmp_path / "IM", SeriesDescription="t1 se")
    (item,) = given_images([tmp_path / "IM"], [], None, None)
    assert (item.name, item.modality) == (str(tmp_path / "IM"), "t1")


def test_fine_tuning_from_weights_of_another_modality_is_said(tiny_run, tiny_finetune, tmp_path, caplog):
    task = json.loads(Path(tiny_finetune["data"]).read_text()) | {"modality": {"0": "FLAIR"}}
    for entry in (*task["training"], *task["validation"]):
        for key in ("image", "label"):
            entry[key] = str(Path(tiny_finetune["data"]).parent / entry[key])
    (tmp_path / "task.json").write_text(json.dumps(task))
    fields = tiny_finetune | {"data": tmp_path / "task.json", "max_steps": 1, "warmup_steps": 0}
    with caplog.at_level(logging.WARNING, "dae3d"):
        dae3d.finetune(**(fields | {"init": tiny_run, "out": tmp_path / "run"}))
    assert "trained on ct, t1, but not on flair; fine-tuning starts from it anyway" in caplog.text


def test_a_list_whose_files_are_called_otherwise_is_said(tmp_path, caplog):
    """Channels in another order in one entry; while names that say no more than the list are no news."""
    images = [[f"{name}_t1.nii.gz", f"{name}_flair.nii.gz"] for name in "ab"] + [
        ["c.nii.gz", "sub-1_T1w.nii"]
    ]
    images[1].reverse()
    for name in {name for pair in images for name in pair}:
        mr(tmp_path / name)
    content = {
        "modality": {"0": "T1w", "1": "FLAIR"},
        "labels": LABELS,
        "test": [{"image": i} for i in images],
    }
    (tmp_path / "task.json").write_text(json.dumps(content))
    weights = fine_tuned(tmp_path, "t1", "flair")
    given = {"data": tmp_path / "task.json", "weights": [weights], "device": "cpu"}
    with caplog.at_level("WARNING", "dae3d"):
        dae3d.predict(out=tmp_path / "out", **given)
    (said,) = [record.getMessage() for record in caplog.records if "is expected" in record.getMessage()]
    assert [line.rpartition("/")[2] for line in said.splitlines()] == [
        "b_flair.nii.gz: flair by its name, but t1 is expected",
        "b_t1.nii.gz: t1 by its name, but flair is expected",
        "sub-1_T1w.nii: t1 by its BIDS name, but flair is expected",
    ]


def test_a_file_is_what_its_content_says(tmp_path):
    """As it is where it is read: an Analyze pair by its .img, and a name without a suffix."""
    (case,) = given_cases([str(mr(tmp_path / "scan.nii"))], ["t1"])
    voxels = case.images[0].read().array
    (tmp_path / "scan").write_bytes((tmp_path / "scan.nii").read_bytes())
    nibabel.AnalyzeImage(voxels, np.eye(4)).to_filename(tmp_path / "pair.img")
    for name in ("scan", "pair.img"):
        (case,) = given_cases([str(tmp_path / name)], ["t1"])
        assert np.array_equal(np.sort(case.images[0].read().array, None), np.sort(voxels, None))
