"""Cases that weights were trained on, or were chosen by, are told where they are evaluated."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import dae3d
from conftest import labelled_case, write_task
from dae3d.errors import Dae3dError
from dae3d.evaluation.held_out import HeldOut, held_out
from dae3d.models.network import Segmenter
from dae3d.models.provenance import entry, kept
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.models.weights import save_weights
from dae3d.reporting import evaluation
from dae3d.scans.task import read_task
from dae3d.store.recipe import CaseRecipe
from dae3d.store.source import contents_of
from scan_files import write_nifti

SMALL = {"embed_dim": 4, "heads": (1, 1, 2, 2), "depths": (1, 1, 1, 1), "window": 2}


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Four cases to validate on: anna, ben, carl and dora."""
    entries = []
    for number, name in enumerate(("anna", "ben", "carl", "dora")):
        image, label = labelled_case(number, (24, 22, 20), lesion=True)
        write_nifti(tmp_path / f"{name}.nii.gz", image)
        write_nifti(tmp_path / f"{name}_seg.nii.gz", label)
        entries.append({"image": f"{name}.nii.gz", "label": f"{name}_seg.nii.gz"})
    return write_task(tmp_path, "four", validation=entries)


def content(task: Path, *names: str) -> list[int]:
    return [kept(digest) for digest in contents_of([task.parent / f"{name}.nii.gz" for name in names])]


def cases_of(task: Path):
    return read_task(task).split("validation")


def info_of(stages: list[dict], best: int = 8) -> dict:
    return {"task": "segmentation", "step": 8, "best_validation": {"step": best}, "trained_on": stages}


def test_each_case_is_in_its_gravest_list(task: Path) -> None:
    pretrained = entry("pretrain", content(task, "anna", "ben", "carl"), content(task, "dora"))
    stages = entry("segmentation", content(task, "carl"), content(task, "ben", "carl"), (), pretrained)
    found = held_out(cases_of(task), [info_of(stages)])
    assert found == HeldOut(4, ("carl",), ("ben",), ("anna",), known=True, known_pretraining=True)
    assert [sentence.partition(")")[0] for sentence in found.warnings] == [
        "Used for training, with labels: 1 of 4 cases (carl",
        "Used for validation, to select these weights as the best of their run: 1 of 4 cases (ben",
        "Used for pre-training, without labels: 1 of 4 cases (anna",
    ]
    assert found.note == ""


def test_the_last_weights_were_chosen_by_none(task: Path) -> None:
    stages = entry("segmentation", [], content(task, "anna", "ben"))
    assert held_out(cases_of(task), [info_of(stages)]).chose == ("anna", "ben")
    last = held_out(cases_of(task), [info_of(stages, best=4)])
    assert (last.chose, last.warnings) == ((), [])
    assert last.note.startswith("None of the cases was used for training or for selecting the weights")


def test_an_ensemble_has_met_what_any_of_it_has(task: Path) -> None:
    """Of folds, each has trained on the others' held-out cases."""
    folds = [("anna", "ben"), ("carl",)]
    infos = [info_of(entry("segmentation", content(task, *names), [])) for names in folds]
    assert held_out(cases_of(task), infos).trained == ("anna", "ben", "carl")


def test_weights_that_do_not_say_it(task: Path) -> None:
    old = {"task": "segmentation", "step": 8, "best_validation": {"step": 8}}
    for weights in ([], [old]):
        found = held_out(cases_of(task), weights)
        assert found == HeldOut(4)
        assert "unknown whether the weights were trained on these cases" in found.note
    stages = entry("segmentation", content(task, "anna"), [])
    assert held_out(cases_of(task), [info_of(stages), old]).trained == ("anna",)
    unknown = [entry("pretrain", [], [])[0] | {"known": False}]
    begun = held_out(cases_of(task), [info_of(entry("segmentation", [], [], (), unknown))])
    assert "None of the cases was used for fine-tuning or for selecting the weights; the pre" in begun.note


@pytest.fixture
def weights(task: Path, tmp_path: Path) -> Path:
    """Weights that were trained on carl and chosen by ben."""
    recipe = CaseRecipe(modalities=("t1",), labels={0: "background", 1: "organ", 4: "lesion"}, roi=32)
    architecture = SwinArchitecture(**SMALL, out_channels=3)
    torch.manual_seed(1)
    network = Segmenter(architecture)
    stages = entry("segmentation", content(task, "carl"), content(task, "ben"), recipe.class_names)
    info = info_of(stages) | {"recipe": recipe.model_dump(mode="json")}
    save_weights(tmp_path / "w.safetensors", network.state_dict(), architecture, info)
    return tmp_path / "w.safetensors"


def test_screen_page_and_figures_say_it(
    task: Path,
    weights: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With --weights; and with the folder of predictions that they made, weights gone."""
    monkeypatch.setattr(evaluation, "draw_case", lambda *_: np.zeros((8, 8, 3), np.uint8))
    ways = {
        "weights": {"weights": [weights]},
        "predictions": {"predictions": tmp_path / "weights/predictions"},
    }
    for name, way in ways.items():
        caplog.clear()
        with caplog.at_level("INFO", "dae3d"):
            found = dae3d.evaluate(data=task, out=tmp_path / name, **way)
        assert found["held_out"] == {
            "known": True,
            "trained_on": ["carl"],
            "chose_the_weights": ["ben"],
            "pretrained_on": [],
        }
        page = (tmp_path / name / "report.html").read_text()
        for text in ("Used for training, with labels: 1 of 4 cases (carl)", "to select these weights"):
            assert text in page
            assert text in caplog.text
        weights.unlink(missing_ok=True)


def test_predictions_of_others_are_not_known_to_have_met_anything(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "draw_case", lambda *_: np.zeros((8, 8, 3), np.uint8))
    for name in ("anna", "ben", "carl", "dora"):
        label = (tmp_path / f"{name}_seg.nii.gz").read_bytes()
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs" / f"{name}.nii.gz").write_bytes(label)
    found = dae3d.evaluate(data=task, predictions=tmp_path / "theirs")
    assert found["held_out"]["known"] is False
    assert "unknown whether the weights were trained on" in (tmp_path / "theirs" / "report.html").read_text()
    assert json.loads((tmp_path / "theirs" / "metrics.json").read_text()) == found


def test_labels_are_not_compared_with_themselves(task: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for name in ("anna", "ben", "carl", "dora"):
        (tmp_path / "links" / f"{name}.nii.gz").symlink_to(tmp_path / f"{name}_seg.nii.gz")
    with pytest.raises(Dae3dError, match=r"dora: prediction .*links/dora\.nii\.gz is the label itself"):
        dae3d.evaluate(data=task, predictions=tmp_path / "links")


def test_predictions_of_other_images_are_said(
    task: Path,
    weights: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another cohort's anna, under the same name and on the same grid."""
    monkeypatch.setattr(evaluation, "draw_case", lambda *_: np.zeros((8, 8, 3), np.uint8))
    other = tmp_path / "others" / "anna.nii.gz"
    other.parent.mkdir()
    other.write_bytes((tmp_path / "ben.nii.gz").read_bytes())
    scans = [other, *(tmp_path / f"{name}.nii.gz" for name in ("ben", "carl", "dora"))]
    dae3d.predict(scans=scans, weights=[weights], out=tmp_path / "out", device="cpu")
    with caplog.at_level("WARNING", "dae3d"):
        dae3d.evaluate(data=task, predictions=tmp_path / "out")
    assert (
        "1 of 4 predictions were made from other images than those in the list, such as that of anna from"
        in caplog.text
    )
    assert str(other) in caplog.text


@pytest.mark.parametrize("split", ["training", "validation"])
def test_a_run_of_fine_tuning(finetuned: Path, tiny_task: Path, split: str) -> None:
    """Its training cases, and those that chose its best weights."""
    best, last = (
        dae3d.load(finetuned / f"weights/{name}.safetensors", show=False).info for name in ("best", "last")
    )
    cases = read_task(tiny_task).split(split)
    names = tuple(case.name for case in cases)
    found = held_out(cases, [best])
    assert (found.trained, found.chose) == ((names, ()) if split == "training" else ((), names))
    assert (found.pretrained, found.known, found.known_pretraining) == ((), True, True)
    if split == "validation" and last["step"] != best["step"]:
        assert held_out(cases, [last]).chose == ()


def test_another_file_of_the_name_is_not_written_over(task: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights.json").write_text('{"kg": 71}')
    with pytest.raises(Dae3dError, match=r"weights\.json exists and was not written by `predict`"):
        dae3d.predict(scans=[tmp_path / "ben.nii.gz"], weights=[weights], out=tmp_path / "out", device="cpu")
    assert (tmp_path / "out" / "weights.json").read_text() == '{"kg": 71}'
