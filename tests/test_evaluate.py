"""The command `evaluate`: right figures of the right files, every bad file named, nothing measured twice."""

import csv
import json
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

import dae3d
from dae3d.cli import main
from dae3d.errors import Dae3dError, SettingsError
from dae3d.evaluation import pairs
from dae3d.evaluation.segmentation_metrics import METRICS, Masks, Metric
from dae3d.models.network import Segmenter
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import save_weights
from dae3d.reporting import evaluation
from dae3d.scans.readers import read_volume, scan_stem
from dae3d.store.recipe import CaseRecipe
from oriented import affine_of
from scan_files import write_nifti

pytestmark = pytest.mark.slow

LABELS = {"0": "background", "1": "edge", "4": "core"}
SPACING = (0.8, 0.8, 2.5)


def case_label(core: bool = True) -> np.ndarray:
    """A box of 12 x 10 x 10 voxels, in it a core of 4 x 4 x 4 of another class."""
    label = np.zeros((30, 28, 24), np.uint8)
    label[8:20, 8:18, 6:16] = 1
    if core:
        label[12:16, 11:15, 9:13] = 4
    return label


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a small evaluation."""
    monkeypatch.setattr(evaluation, "draw_case", lambda *_: np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Three validation cases of axes left, posterior, superior, one of them without a core."""
    affine = affine_of("LPS", SPACING)
    entries = []
    for name, core in (("anna", True), ("ben", True), ("carl", False)):
        label = case_label(core)
        image = np.where(label > 0, 300, 100) + np.arange(30, dtype=np.int16)[:, None, None]
        entry = {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}
        write_nifti(tmp_path / entry["image"], image.astype(np.int16), affine)
        write_nifti(tmp_path / entry["label"], label, affine)
        entries.append(entry)
    path = tmp_path / "task.json"
    path.write_text(
        json.dumps({"name": "Boxes", "modality": {"0": "T1w"}, "labels": LABELS, "validation": entries})
    )
    return path


def predictions_of(task: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    """Write what `change` makes of each label as its prediction."""
    folder = task.parent / "predictions"
    for label in sorted((task.parent / "labels").iterdir()):
        image = nibabel.load(label)
        changed = change(scan_stem(label), np.asarray(image.dataobj))
        write_nifti(folder / label.name, changed, image.affine)
    return folder


def shifted(name: str, label: np.ndarray) -> np.ndarray:
    """Right for anna; ben's is a voxel off along the first axis; carl's lacks the edge and has a core."""
    return {
        "anna": label,
        "ben": np.roll(label, 1, 0),
        "carl": np.where(label == 1, 4, label).astype(np.uint8),
    }[name]


@pytest.mark.usefixtures("no_pictures")
def test_figures_of_boxes(task: Path) -> None:
    folder = predictions_of(task, shifted)
    found = dae3d.evaluate(predictions=folder, data=task, regions={"all": "1,4"})
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    values = {(row["case"], row["class"], row["metric"]): float(row["value"]) for row in rows}
    voxel = math.prod(SPACING) / 1000
    assert values["anna", "edge", "dice"] == values["anna", "core", "nsd"] == 1
    # Shifted by a voxel, a box of 12 overlaps by 11; the core, which moves within, by 3 of 4.
    assert values["ben", "all", "dice"] == pytest.approx(11 / 12, abs=1e-6)
    assert values["ben", "core", "dice"] == pytest.approx(3 / 4, abs=1e-6)
    # All surfaces are within 0.8 mm, and so within the tolerance of 1 mm.
    assert values["ben", "all", "hd95_mm"] == pytest.approx(0.8, rel=1e-5)
    assert values["ben", "all", "nsd"] == values["ben", "core", "nsd"] == 1
    assert values["carl", "edge", "dice"] == 0
    assert values["carl", "edge", "hd95_mm"] == math.inf
    assert values["carl", "edge", "volume_error_percent"] == -100
    assert values["carl", "core", "volume_error_ml"] == pytest.approx(1200 * voxel)
    assert values["carl", "all", "dice"] == 1
    assert values["anna", "core", "reference_ml"] == pytest.approx(64 * voxel)
    # Class means over cases, and the mean of these, which does not know of regions.
    ben_edge = values["ben", "edge", "dice"]
    assert found["classes"]["edge"]["dice"]["mean"] == pytest.approx((1 + ben_edge + 0) / 3, abs=1e-6)
    assert found["classes"]["core"]["dice"]["mean"] == pytest.approx((1 + 0.75 + 0) / 3, abs=1e-6)
    assert (found["classes"]["edge"]["missed"], found["classes"]["core"]["spurious"]) == (1, 1)
    assert found["mean"]["dice"]["mean"] == pytest.approx((2 + ben_edge + 0.75) / 6, abs=1e-6)
    assert found["mean_of_regions"]["dice"]["mean"] == pytest.approx((1 + 11 / 12 + 1) / 3, abs=1e-6)
    assert json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail) == found


def test_voxels_that_the_reference_ignores_count_for_nothing(task: Path) -> None:
    content = json.loads(task.read_text())
    content["labels"]["9"] = "ignore"
    task.write_text(json.dumps(content))
    folder = predictions_of(task, shifted)
    # Along the two planes in which ben's prediction is off, his reference does not say what is there.
    image = nibabel.load(task.parent / "labels/ben.nii.gz")
    label = np.asarray(image.dataobj).copy()
    label[[8, 20], 8:18, 6:16] = 9
    label[[12, 16], 11:15, 9:13] = 9
    write_nifti(task.parent / "labels/ben.nii.gz", label, image.affine)
    dae3d.evaluate(data=task, predictions=folder, out=task.parent / "out")
    with (task.parent / "out/metrics.csv").open(newline="") as file:
        found = {(row["case"], row["class"], row["metric"]): row["value"] for row in csv.DictReader(file)}
    for name in ("edge", "core"):
        assert float(found["ben", name, "dice"]) == 1
        assert float(found["ben", name, "hd95_mm"]) == 0
    # A prediction has no such value.
    write_nifti(folder / "anna.nii.gz", label, image.affine)
    with pytest.raises(Dae3dError, match=r"anna\.nii\.gz: contains 9"):
        dae3d.evaluate(data=task, predictions=folder, out=task.parent / "out")


def test_the_page_stands_alone(task: Path, tmp_path: Path) -> None:
    folder = predictions_of(task, shifted)
    dae3d.evaluate(predictions=folder, data=task, out=tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"anna.nii.gz", "ben.nii.gz", "carl.nii.gz"}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"metrics.csv", "metrics.json", "report.html", "pictures"}
    page = (tmp_path / "out" / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{5})', page)
    # A perfect case has no picture of its errors.
    assert sources == ["data:"] * 5
    assert "http" not in page
    assert "Missed completely: edge in 1 of 3 (carl)" in page
    assert "Predicted, but not in the reference: core in 1 (carl)" in page
    order = [
        page.index(f"{rank} case: {name}")
        for rank, name in (("Worst", "carl"), ("Median", "ben"), ("Best", "anna"))
    ]
    assert order == sorted(order)


@pytest.mark.usefixtures("no_pictures")
def test_a_table_on_screen(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = predictions_of(task, shifted)
    words = ["evaluate", "--predictions", folder, "--data", task, "--regions", "all=1,4", "--tolerance", "2"]
    assert main([str(word) for word in words]) == 0
    shown = capsys.readouterr().out
    assert "NSD 2 mm" in shown
    assert re.search(r"core +0\.583", shown)
    assert "mean of" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "predictions, weights: give exactly one"),
        ({"predictions": "p", "weights": ["w"], "out": "o"}, "predictions, weights: give exactly one"),
        ({"weights": ["w"]}, "out: required with --weights"),
        ({"weights": ["w"], "out": "o", "modality": ["ct"]}, "modality: not allowed with --weights"),
        ({"predictions": "p", "regions": {"all": "1;4"}}, "regions: must be label values"),
        ({"predictions": "p", "tolerance": -1}, "tolerance: Input should be greater than or equal to 0"),
        ({"predictions": "p", "split": "val"}, "split: Input should be"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str, task: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        dae3d.evaluate(data=task, **fields)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"all": "1,2"}, "there is no class 2; there are: 1 edge, 4 core"),
        ({"all": "0,1"}, "there is no class 0"),
        ({"core": "1,4"}, "core is the name of a class already"),
    ],
)
def test_regions_are_made_of_classes(regions: dict[str, str], message: str, task: Path) -> None:
    with pytest.raises(Dae3dError, match=message):
        dae3d.evaluate(predictions=predictions_of(task, shifted), data=task, regions=regions)


def test_every_file_that_does_not_fit_is_named(task: Path) -> None:
    folder = predictions_of(task, shifted)
    (folder / "anna.nii.gz").unlink()
    write_nifti(folder / "ben.nii.gz", case_label()[:-1], affine_of("LPS", SPACING))
    write_nifti(folder / "carl.nii.gz", case_label()[::-1], affine_of("RPS", SPACING))
    with pytest.raises(Dae3dError) as error:
        dae3d.evaluate(predictions=folder, data=task)
    first, *lines = str(error.value).split("\n  ")
    assert first == "these cases cannot be evaluated:"
    assert lines[0] == f"anna: no prediction {folder / 'anna.nii.gz'}"
    label = task.parent / "labels" / "ben.nii.gz"
    assert lines[1].startswith(f"ben: prediction {folder / 'ben.nii.gz'} is not on the grid of label {label}")
    assert lines[1].endswith("its shape is 29x28x24, not 30x28x24")
    assert "carl: prediction" in lines[2]
    assert "its affine is [0.8 0 0 -41.5; 0 -0.8 0 12.25; 0 0 2.5 7], not [-0.8 0 0 -41.5;" in lines[2]


def test_an_image_unlike_its_label_is_named(task: Path) -> None:
    folder = predictions_of(task, shifted)
    image = task.parent / "images" / "ben.nii.gz"
    write_nifti(image, np.zeros((30, 28, 24), np.int16), affine_of("LPS", (0.8, 0.8, 3.0)))
    with pytest.raises(Dae3dError, match=rf"ben: image {image} is not on the grid of label .*voxels are up"):
        dae3d.evaluate(predictions=folder, data=task)


@pytest.mark.usefixtures("no_pictures")
def test_sheared_axes_are_warned_of(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    predictions_of(task, shifted)
    with caplog.at_level(logging.WARNING, "dae3d"):
        dae3d.evaluate(predictions=task.parent / "predictions", data=task)
        assert not caplog.text
        for folder in ("images", "labels", "predictions"):
            path = task.parent / folder / "ben.nii.gz"
            voxels = np.asarray(nibabel.load(path).dataobj)
            write_nifti(path, voxels, affine_of("LPS", SPACING, tilt=0.3, shear=0.1))
        dae3d.evaluate(predictions=task.parent / "predictions", data=task)
    assert "ben: the axes of label" in caplog.text


def test_a_case_without_a_label_cannot_be_compared(task: Path) -> None:
    folder = predictions_of(task, shifted)
    content = json.loads(task.read_text())
    content["test"] = [content["validation"].pop()["image"]]
    task.write_text(json.dumps(content))
    with pytest.raises(Dae3dError, match="carl: has no label to compare with"):
        dae3d.evaluate(predictions=folder, data=task, split="test")


@pytest.mark.usefixtures("no_pictures")
def test_folds(task: Path) -> None:
    folder = predictions_of(task, shifted)
    content = json.loads(task.read_text())
    content["training"] = [entry | {"fold": i} for i, entry in enumerate(content.pop("validation"))]
    task.write_text(json.dumps(content))
    found = dae3d.evaluate(predictions=folder, data=task, fold=1)
    assert list(found["cases"]) == ["ben"]
    assert found["split"] == "validation, fold 1"
    with pytest.raises(Dae3dError, match="has folds; name the one to hold out: 0, 1, 2"):
        dae3d.evaluate(predictions=folder, data=task)


@pytest.mark.usefixtures("no_pictures")
def test_what_was_measured_is_not_measured_again(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = predictions_of(task, shifted)
    affine = affine_of("LPS", SPACING)
    write_nifti(folder / "ben.nii.gz", np.where(case_label() == 4, 7, 0).astype(np.uint8), affine)
    write_nifti(folder / "carl.nii.gz", case_label() * np.float32(0.5), affine)
    with pytest.raises(Dae3dError) as error:
        dae3d.evaluate(predictions=folder, data=task)
    assert f"ben: {folder / 'ben.nii.gz'}: contains 7, which are not label values" in str(error.value)
    assert f"carl: {folder / 'carl.nii.gz'}: contains 0.5, 2, which are not whole numbers" in str(error.value)
    assert not (folder / "metrics.csv").exists()

    compared = []
    compare = pairs.compare

    def counting(*arguments: Any) -> Any:
        compared.append(arguments)
        return compare(*arguments)

    monkeypatch.setattr(pairs, "compare", counting)
    predictions_of(task, lambda name, label: shifted(name, label) if name != "anna" else label)
    # Written again, anna's prediction has another time of change than the one that was measured.
    dae3d.evaluate(predictions=folder, data=task)
    assert len(compared) == 3
    assert not (folder / "metrics.partial.jsonl").exists()


@pytest.mark.usefixtures("no_pictures")
def test_ctrl_c_keeps_what_is_measured(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = predictions_of(task, shifted)
    compare, compared = pairs.compare, []

    def interrupted(*arguments: Any) -> Any:
        compared.append(arguments)
        if len(compared) == 3:
            raise KeyboardInterrupt
        return compare(*arguments)

    monkeypatch.setattr(pairs, "compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dae3d.evaluate(predictions=folder, data=task, workers=1)
    found = dae3d.evaluate(predictions=folder, data=task, workers=1)
    assert len(compared) == 4
    whole = dae3d.evaluate(predictions=folder, data=task)
    assert found["cases"] == whole["cases"]
    assert found["mean"] == whole["mean"]


@pytest.mark.usefixtures("no_pictures")
def test_another_tolerance_is_another_measurement(task: Path, tmp_path: Path) -> None:
    folder = predictions_of(task, lambda name, label: np.roll(label, 1, 2))
    near, far = (
        dae3d.evaluate(predictions=folder, data=task, tolerance=t, out=tmp_path / "out") for t in (1, 2.5)
    )
    assert near["classes"]["edge"]["nsd"]["mean"] < 0.9
    assert far["classes"]["edge"]["nsd"]["mean"] == 1


@pytest.mark.usefixtures("no_pictures")
def test_classes_that_are_nowhere(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = json.loads(task.read_text())
    content["labels"]["9"] = "stone"
    task.write_text(json.dumps(content))
    folder = predictions_of(task, shifted)
    with caplog.at_level(logging.INFO, "dae3d"):
        found = dae3d.evaluate(predictions=folder, data=task)
    assert found["classes"]["stone"]["dice"] == {"mean": None, "low": None, "high": None, "cases": 0}
    assert "neither labelled nor predicted in any case: stone" in caplog.text
    assert (
        "Not in the reference or the prediction of any case: stone." in (folder / "report.html").read_text()
    )


@pytest.mark.usefixtures("no_pictures")
def test_measurements_of_another_tolerance_are_left_behind(
    task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped evaluation is no reason to refuse another one."""
    folder = predictions_of(task, lambda name, label: np.roll(label, 1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "draw_case", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dae3d.evaluate(predictions=folder, data=task)
    assert (folder / "metrics.partial.jsonl").exists()
    found = dae3d.evaluate(predictions=folder, data=task, tolerance=2.5)
    assert found["classes"]["edge"]["nsd"]["mean"] == 1


def test_a_runs_folder_keeps_its_metrics(task: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "metrics.csv").write_text("step,train/loss\n")
    with pytest.raises(Dae3dError, match=r"run is the folder of a run, .*such as .*run/evaluation"):
        dae3d.evaluate(predictions=predictions_of(task, shifted), data=task, out=run)
    assert (run / "metrics.csv").read_text() == "step,train/loss\n"


def test_a_file_in_the_place_of_the_folder_is_named(task: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Dae3dError, match=r"file: cannot be created: .*file is a file"):
        dae3d.evaluate(predictions=predictions_of(task, shifted), data=task, out=tmp_path / "file")


@pytest.mark.usefixtures("no_pictures")
def test_predicts_with_weights_in_their_modalities(task: Path, tmp_path: Path) -> None:
    content = json.loads(task.read_text())
    del content["modality"]
    task.write_text(json.dumps(content))
    architecture = SwinArchitecture(
        embed_dim=4, heads=(1, 1, 2, 2), depths=(1, 1, 1, 1), window=2, in_channels=1, out_channels=3
    )
    torch.manual_seed(0)
    network = Segmenter(architecture)
    recipe = CaseRecipe(modalities=("t1",), labels=LABELS, roi=32)
    info = {"task": "segmentation", "recipe": recipe.model_dump(mode="json"), "axes": "straight"}
    save_weights(tmp_path / "w.safetensors", network.state_dict(), architecture, info)
    found = dae3d.evaluate(weights=[tmp_path / "w.safetensors"], data=task, out=tmp_path / "out")
    for name, figures in found["cases"].items():
        label = np.asarray(nibabel.load(tmp_path / "labels" / f"{name}.nii.gz").dataobj)
        file = tmp_path / "out" / "predictions" / f"{name}.nii.gz"
        predicted = np.asarray(nibabel.load(file).dataobj)
        overlap = 2 * ((label == 1) & (predicted == 1)).sum() / ((label == 1).sum() + (predicted == 1).sum())
        assert figures["classes"]["edge"]["dice"] == pytest.approx(overlap, abs=1e-6)


# Real labels ----------------------------------------------------------------------------------------------

SUBCORTICAL = ("thalamus", "caudate", "putamen", "pallidum")
REAL = {
    "LAS, four channels": (
        [f"open_ms_mni/patient07/{name}.nii.gz" for name in ("FLAIR", "T1", "T2", "T1POST")],
        "open_ms_mni/patient07/gold_standard.nii.gz",
        {0: "background", 1: "lesion"},
    ),
    "voxels of 0.8 x 0.8 x 5 mm": (
        ["ivadomed/sub-spleen2_ct.nii.gz"],
        "ivadomed/sub-spleen2_ct_seg-manual.nii.gz",
        {0: "background", 1: "spleen"},
    ),
    "256^3, eight classes": (
        ["subcortical_livianet/MR_Img1.nii.gz"],
        "subcortical_livianet/GT_Img1.nii.gz",
        dict(enumerate(["background", *(f"{side} {name}" for side in "12" for name in SUBCORTICAL)])),
    ),
    "oblique": (
        ["isles22/sub-strokecase0009_ses-0001_dwi.nii.gz"],
        "isles22/sub-strokecase0009_ses-0001_msk.nii.gz",
        {0: "background", 1: "infarct"},
    ),
}


def distances(first: np.ndarray, second: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """From the boundary voxels of one mask to those of the other, by a distance transform."""
    box = find_objects((first | second).astype(np.uint8))[0]
    edges = [np.pad(mask[box], 1) & ~binary_erosion(np.pad(mask[box], 1)) for mask in (first, second)]
    return distance_transform_edt(~edges[1], sampling=spacing)[edges[0]]


@pytest.mark.parametrize("name", REAL)
def test_real_labels_against_shrunken_and_displaced_ones(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    images, file, labels = REAL[name]
    path = shared_data / "labelled" / file
    volume = read_volume(path)
    label = np.rint(volume.intensities()).astype(np.uint8)
    changed = np.roll(label, (1, 0, -1), (0, 1, 2))
    changed[~binary_erosion(changed > 0, np.ones((2, 2, 1)))] = 0
    entry = {"image": [str(shared_data / "labelled" / image) for image in images], "label": str(path)}
    write_nifti(tmp_path / "p" / f"{scan_stem(Path(images[0]))}.nii.gz", changed, volume.affine)
    task = {"modality": {str(i): "T1w" for i in range(len(images))}, "labels": labels, "validation": [entry]}
    (tmp_path / "task.json").write_text(json.dumps(task))
    found = dae3d.evaluate(predictions=tmp_path / "p", data=tmp_path / "task.json")
    (case,) = found["cases"].values()
    for value, title in list(labels.items())[1:3]:
        wanted, predicted = label == value, changed == value
        figures = case["classes"][title]
        assert figures["dice"] == pytest.approx(
            2 * (wanted & predicted).sum() / (wanted.sum() + predicted.sum()), abs=1e-6
        )
        both = [distances(predicted, wanted, volume.spacing), distances(wanted, predicted, volume.spacing)]
        expected = max(np.percentile(way, 95) for way in both)
        assert figures["hd95_mm"] == pytest.approx(expected, rel=1e-4)
        millilitres = abs(np.linalg.det(volume.affine[:3, :3])) / 1000
        assert figures["reference_ml"] == pytest.approx(wanted.sum() * millilitres, rel=1e-4)
    assert (tmp_path / "p" / "pictures" / "only-errors.png").stat().st_size > 10_000


def interrupted(task: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Predictions of which all cases are measured, and nothing is written yet."""
    folder = predictions_of(task, shifted)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "draw_case", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dae3d.evaluate(predictions=folder, data=task)
    return folder


@pytest.mark.usefixtures("no_pictures")
def test_measurements_written_as_lists_count(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupted(task, monkeypatch)
    journal = folder / "metrics.partial.jsonl"
    heading, *lines = map(json.loads, journal.read_text().splitlines())
    for line in lines:
        line["result"] = {name: list(values.values()) for name, values in line["result"].items()}
    journal.write_text("".join(json.dumps(line) + "\n" for line in (heading, *lines)))
    monkeypatch.setattr(pairs, "compare", lambda *_: 1 / 0)
    found = dae3d.evaluate(predictions=folder, data=task)
    assert found["cases"]["anna"]["classes"]["edge"]["dice"] == 1


@pytest.mark.usefixtures("no_pictures")
def test_a_metric_is_added_by_a_function_and_a_line(
    task: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = interrupted(task, monkeypatch)

    def iou(masks: Masks) -> float:
        return float((masks.prediction & masks.reference).sum() / (masks.prediction | masks.reference).sum())

    monkeypatch.setitem(METRICS, "iou", Metric(iou, "IoU", decimals=2))
    # What was measured before, without it, is measured again.
    found = dae3d.evaluate(predictions=folder, data=task)
    # Dice / (2 - Dice).
    assert found["cases"]["ben"]["classes"]["core"]["iou"] == pytest.approx(0.75 / 1.25, abs=1e-6)
    assert found["classes"]["core"]["iou"]["mean"] == pytest.approx((1 + 0.6 + 0) / 3, abs=1e-6)
    assert "IoU" in capsys.readouterr().out
    assert ">IoU</th>" in (folder / "report.html").read_text()
    rows = csv.DictReader((folder / "metrics.csv").open())
    assert [row["value"] for row in rows if row["metric"] == "iou" and row["case"] == "anna"] == [
        "1.0",
        "1.0",
    ]
