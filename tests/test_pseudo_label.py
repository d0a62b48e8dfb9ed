"""Pseudo-labels: what is predicted, how sure it is, what is kept, and the list to train on."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest
import torch

import dae3d
from conftest import labelled_case
from dae3d.errors import Dae3dError
from dae3d.inference.pseudo_labels import PseudoLabel, Rules, Sureness, label_scan, sureness
from run_rows import rows

pytestmark = pytest.mark.slow

ALL = {"min_probability": 0, "min_agreement": 0, "volume_factor": 1000}  # keeps whatever has a voxel


# One scan


def chances(values: np.ndarray, slopes: list[float]) -> np.ndarray:
    """Softmax over classes of slope times intensity, in float64."""
    logits = np.exp(np.stack([slope * values for slope in slopes]))
    return logits / logits.sum(0)


def test_a_label_is_the_mean_of_the_networks_by_definition():
    random = np.random.default_rng(0)
    values = random.normal(size=(20, 9, 13)).astype(np.float32)
    slopes = [[0.0, 2.0, -1.0], [0.1, -0.5, 1.5]]

    def network(own):
        return lambda windows: torch.cat([slope * windows for slope in own], 1)

    found = label_scan(
        [network(own) for own in slopes],
        torch.from_numpy(values)[None],
        (8, 8, 8),
        0.5,
        2,
        torch.device("cpu"),
    )
    members = [chances(values.astype(np.float64), own) for own in slopes]
    mean = np.mean(members, 0)
    np.testing.assert_array_equal(found.classes, mean.argmax(0))
    np.testing.assert_allclose(found.probability, mean.max(0), atol=1e-3)
    one, other = (member.argmax(0) for member in members)
    dice = [
        2 * ((one == value) & (other == value)).sum() / ((one == value).sum() + (other == value).sum())
        for value in (1, 2)
    ]
    assert found.agreement == pytest.approx(np.mean(dice))


def test_one_network_agrees_with_nobody():
    image = torch.zeros(1, 9, 9, 9)
    found = label_scan([lambda w: torch.cat([w, w - 1], 1)], image, (8, 8, 8), 0, 1, torch.device("cpu"))
    assert found.agreement is None
    assert not found.classes.any()


def test_figures_by_hand():
    classes = np.array([[[0, 1, 1, 2]]], np.uint8)
    probability = np.array([[[0.75, 0.5, 1.0, 0.75]]], np.float16)
    found = sureness(PseudoLabel(classes, probability, 0.9), probability < 0.6, 0.5, ["background", "a", "b"])
    assert found.model_dump() == {
        "probability": 0.75,  # of 0.5, 1 and 0.75
        "agreement": 0.9,
        "ignored_percent": pytest.approx(100 / 3),
        "ml": {"a": 1.0, "b": 0.5},
    }
    nothing = sureness(PseudoLabel(classes * 0, probability, None), probability < 0, 0.5, ["background", "a"])
    assert (nothing.probability, nothing.ignored_percent, nothing.ml) == (None, None, {"a": 0.0})


RANGES = {"a": (2.0, 3.0), "b": (0.0, 1.0)}


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, []),
        ({"probability": 0.79}, ["probability 0.790, below 0.8"]),
        ({"probability": None}, ["nothing found"]),
        ({"agreement": 0.69}, ["agreement 0.690, below 0.7"]),
        ({"agreement": None}, []),
        ({"ml": {"a": 1.0, "b": 0.0}}, []),  # 2 / 2, and no b in one of the labelled cases
        ({"ml": {"a": 0.99, "b": 0.0}}, ["a 0.99 ml, in labelled cases 2 to 3"]),
        (
            {"ml": {"a": 6.1, "b": 2.1}},
            ["a 6.1 ml, in labelled cases 2 to 3", "b 2.1 ml, in labelled cases 0 to 1"],
        ),
    ],
)
def test_what_is_kept(changes, reasons):
    sure = {"probability": 0.9, "agreement": 0.8, "ignored_percent": 5.0, "ml": {"a": 2.5, "b": 0.5}}
    rules = Rules(min_probability=0.8, min_agreement=0.7, volume_factor=2)
    assert rules.reasons_against(Sureness(**sure | changes), RANGES) == reasons


# The command


@pytest.fixture
def unlabelled(tmp_path):
    """Three scans, one of them in LPS axes."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, axes in enumerate(([1, 1, 1], [-1, -1, 1], [1, 1, 1])):
        image, _ = labelled_case(20 + number, (38, 36, 30), lesion=True)
        nibabel.Nifti1Image(image, np.diag([*axes, 1.0])).to_filename(folder / f"new{number}_T1w.nii.gz")
    return folder


def table(out):
    with (out / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_list_to_train_on(finetuned, tiny_task, tiny_finetune, unlabelled, tmp_path):
    out = tmp_path / "out"
    # A copy of a labelled scan is not labelled again.
    shutil.copy(tiny_task.parent / "sub-1_T1w.nii.gz", unlabelled / "copy_T1w.nii.gz")
    given = {"scans": [str(unlabelled)], "weights": [finetuned], "task": tiny_task, "out": out, **ALL}
    made = dae3d.pseudo_label(**given, ignore_below=0.4)
    content = json.loads(made.read_text())
    assert content["labels"] == {"0": "background", "1": "organ", "4": "lesion", "5": "ignore"}
    task = json.loads(tiny_task.read_text())
    for side in ("training", "validation"):
        known = [str(tiny_task.parent / entry["image"]) for entry in task[side]]
        assert [entry["image"] for entry in content[side]][: len(known)] == known
    new = content["training"][5:]
    kept = [row["case"] for row in table(out) if row["kept"] == "1"]
    assert [entry["image"] for entry in new] == [str(unlabelled / f"{name}.nii.gz") for name in kept]
    assert all(entry.get("weight", 1) == 1 for entry in new)  # fewer than labelled cases
    assert not (out / "labels/copy_T1w.nii.gz").exists()
    # Sure voxels are those of `predict`; there is nothing to interpolate.
    for row in table(out):
        label = nibabel.load(out / f"labels/{row['case']}.nii.gz")
        image = nibabel.load(unlabelled / f"{row['case']}.nii.gz")
        np.testing.assert_array_equal(label.affine, image.affine)
        [predicted] = dae3d.predict(
            scans=[str(unlabelled / f"{row['case']}.nii.gz")],
            weights=[finetuned],
            out=tmp_path / "predicted",
            probabilities=True,
        )
        chance = nibabel.load(str(predicted).replace(".nii.gz", "_probabilities.nii.gz")).get_fdata()
        classes = np.asarray(nibabel.load(predicted).dataobj)
        found, unsure = np.asarray(label.dataobj), chance.max(-1) < 0.4
        clear = np.abs(chance.max(-1) - 0.4) > 1e-3  # probabilities have three digits
        np.testing.assert_array_equal(found[clear], np.where(unsure, 5, classes)[clear])
        if (classes > 0).any():
            assert float(row["probability"]) == pytest.approx(chance.max(-1)[classes > 0].mean(), abs=1e-3)
            assert float(row["organ_ml"]) == pytest.approx((classes == 1).sum() / 1000)
    # Trained on like any list.
    settings = tiny_finetune | {"data": made, "store": tmp_path / "cases", "max_steps": 1, "save_every": 1}
    run = dae3d.finetune(out=tmp_path / "run", **settings)
    assert (1, "train/loss") in rows(run)


def test_finished_scans_are_judged_again_without_being_labelled_again(
    finetuned, tiny_task, unlabelled, tmp_path, caplog
):
    out = tmp_path / "out"
    given = {"scans": [str(unlabelled)], "weights": [finetuned, finetuned], "task": tiny_task, "out": out}
    dae3d.pseudo_label(**given, **ALL)
    before = {path: path.stat().st_mtime_ns for path in (out / "labels").iterdir()}
    assert len(before) == 3
    made = dae3d.pseudo_label(**given, **ALL | {"min_probability": 1})
    assert "no scan is kept" in caplog.text
    assert len(json.loads(made.read_text())["training"]) == 5
    assert {path: path.stat().st_mtime_ns for path in (out / "labels").iterdir()} == before
    assert [row["kept"] for row in table(out)] == ["0", "0", "0"]
    assert all("probability" in row["reason"] or row["reason"] == "nothing found" for row in table(out))
    # Equal networks agree.
    assert {float(row["agreement"] or 1) for row in table(out)} == {1.0}
    with pytest.raises(Dae3dError, match="ignore_below"):
        dae3d.pseudo_label(**given, **ALL, ignore_below=0.9)


@pytest.mark.parametrize("kind", ["test cases of the list", "list without labels", "manifest"])
def test_where_unlabelled_scans_are_named(finetuned, tiny_task, unlabelled, tmp_path, kind):
    files = sorted(map(str, unlabelled.iterdir()))
    task = json.loads(tiny_task.read_text())
    for side in ("training", "validation"):
        for entry in task[side]:
            entry |= {key: str(tiny_task.parent / entry[key]) for key in ("image", "label")}
    given = {}
    if kind == "test cases of the list":
        task["test"] = files
    elif kind == "list without labels":
        given["data"] = tmp_path / "unlabelled.json"
        given["data"].write_text(json.dumps({"modality": "t1", "training": files[:2], "test": files[2:]}))
    else:
        given["data"] = tmp_path / "manifest.jsonl"
        dae3d.index(folders=[unlabelled], modality="t1", out=given["data"])
    path = tmp_path / "task.json"
    path.write_text(json.dumps(task))
    dae3d.pseudo_label(weights=[finetuned], task=path, out=tmp_path / "out", **given, **ALL)
    assert [row["case"] for row in table(tmp_path / "out")] == [f"new{number}_T1w" for number in range(3)]


def test_what_cannot_be_labelled(finetuned, tiny_task, unlabelled, tmp_path):
    given = {"weights": [finetuned], "task": tiny_task, "out": tmp_path / "out"}
    with pytest.raises(Dae3dError, match="no unlabelled scans: name files or folders"):
        dae3d.pseudo_label(**given)
    with pytest.raises(Dae3dError, match="no unlabelled scans"):
        dae3d.pseudo_label(**given, scans=[str(tiny_task.parent / "sub-0_T1w.nii.gz")])
    missing = tmp_path / "missing.json"
    missing.write_text(json.dumps({"modality": "t1", "test": ["nowhere.nii.gz"]}))
    with pytest.raises(Dae3dError, match=r"nowhere\.nii\.gz: cannot be read: No such file"):
        dae3d.pseudo_label(**given, data=missing)
    # A scan that cannot be read does not stop the others.
    flat = nibabel.Nifti1Image(np.ones((30, 30, 30), np.int16), np.eye(4))
    flat.to_filename(unlabelled / "flat_T1w.nii.gz")
    with pytest.raises(Dae3dError, match=r"1 of 4 scans cannot be labelled:\n  flat_T1w: .*constant"):
        dae3d.pseudo_label(**given, scans=[str(unlabelled)], **ALL)
    assert len(table(tmp_path / "out")) == 3
    other = json.loads(tiny_task.read_text())
    other["labels"] = {"0": "background", "1": "organ", "2": "lesion"}
    path = tiny_task.with_name("other.json")
    path.write_text(json.dumps(other))
    with pytest.raises(Dae3dError, match="but the weights were trained on 0 background, 1 organ, 4 lesion"):
        dae3d.pseudo_label(**given | {"task": path}, scans=[str(unlabelled)])


def test_a_file_that_is_not_ours_is_not_overwritten(finetuned, tiny_task, unlabelled, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "task.json").write_text('{"mine": 1}')
    with pytest.raises(Dae3dError, match=r"task\.json"):
        dae3d.pseudo_label(weights=[finetuned], task=tiny_task, out=out, scans=[str(unlabelled)], **ALL)
    assert (out / "task.json").read_text() == '{"mine": 1}'
    assert not (out / "labels").exists()
