"""The pages docs/tasks/*.md: their code runs, their commands exist, their configs are as published."""

import json
import re
import shlex
from pathlib import Path

import pytest

from dae3d import cli
from dae3d.scans.task import read_task
from dae3d.settings import resolve
from dae3d.training.finetune_settings import FinetuneSettings

PAGES = Path(__file__).resolve().parents[1] / "docs" / "tasks"
NAMES = ["brats", "btcv", "feta", "hippocampus"]


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (PAGES / f"{name}.md").read_text(), re.M | re.S)


def make_list(name: str, folder: Path, monkeypatch) -> None:
    """Run the page's own code where the data lies."""
    monkeypatch.chdir(folder)
    (code,) = blocks(name, "python")
    exec(compile(code, f"{name}.md", "exec"), {})


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_there_is_a_page_for_every_config_of_a_task():
    assert sorted(page.stem for page in PAGES.glob("*.md")) == NAMES


# The lists, from folders as they are downloaded


def test_btcv(tmp_path, monkeypatch, capsys):
    numbers = [*range(1, 11), *range(21, 41)]
    for number in numbers:
        touch(tmp_path / "RawData/Training", f"img/img{number:04d}.nii.gz", f"label/label{number:04d}.nii.gz")
    touch(tmp_path / "RawData/Testing/img", *(f"img{number:04d}.nii.gz" for number in range(61, 81)))
    make_list("btcv", tmp_path, monkeypatch)
    assert capsys.readouterr().out == "24 6 20\n"
    task = read_task(tmp_path / "btcv.json")
    assert [case.name for case in task.validation] == [f"img{number:04d}" for number in range(35, 41)]
    assert [case.name for case in task.training] == [f"img{number:04d}" for number in numbers if number < 35]
    for case in (*task.training, *task.validation):
        (image,) = case.images
        assert case.label == tmp_path / "RawData/Training/label" / image.name.replace("img", "label")
    assert task.modalities == ("ct",)
    assert len(task.labels) == 14
    # The values of the challenge: https://www.synapse.org/#!Synapse:syn3193805/wiki/217789
    assert [task.labels[value] for value in (0, 1, 6, 11, 13)] == [
        "background",
        "spleen",
        "liver",
        "pancreas",
        "left adrenal gland",
    ]
    assert {case.label for case in task.test} == {None}


def test_feta(tmp_path, monkeypatch, capsys):
    for number in range(1, 81):
        stem = f"sub-{number:03d}/anat/sub-{number:03d}_rec-{'mial' if number <= 40 else 'irtk'}"
        touch(tmp_path / "feta_2.2", f"{stem}_T2w.nii.gz", f"{stem}_dseg.nii.gz")
    touch(tmp_path / "feta_2.2", "participants.tsv")
    make_list("feta", tmp_path, monkeypatch)
    assert capsys.readouterr().out == "64 16\n"
    task = read_task(tmp_path / "feta.json")
    assert sum("mial" in case.name for case in task.validation) == 8
    assert {case.subject for case in task.training}.isdisjoint(case.subject for case in task.validation)
    for case in (*task.training, *task.validation):
        (image,) = case.images
        assert image.name.removesuffix("_T2w.nii.gz") == case.label.name.removesuffix("_dseg.nii.gz")
    assert task.modalities == ("t2",)
    assert len(task.labels) == 8
    assert (task.labels[2], task.labels[7]) == ("grey matter", "brainstem")


def test_brats(tmp_path, monkeypatch, capsys):
    for number in (0, 2, 3, 5, 6, 8, 9):
        case = f"BraTS2021_{number:05d}"
        touch(
            tmp_path / "TrainingData" / case,
            *(f"{case}_{kind}.nii.gz" for kind in ("t1", "t1ce", "t2", "flair", "seg")),
        )
    make_list("brats", tmp_path, monkeypatch)
    assert capsys.readouterr().out == "7\n"
    task = read_task(tmp_path / "brats.json")
    assert task.modalities == ("t1", "t1ce", "t2", "flair")
    assert tuple(task.labels) == (0, 1, 2, 4)
    first = task.training[0]
    endings = [image.name.removeprefix("BraTS2021_00000_") for image in first.images]
    assert endings == ["t1.nii.gz", "t1ce.nii.gz", "t2.nii.gz", "flair.nii.gz"]
    assert first.label.name == "BraTS2021_00000_seg.nii.gz"
    assert len({case.subject for case in task.training}) == 7
    training, held_out = task.fold(0)
    assert [case.subject for case in held_out] == ["BraTS2021_00000", "BraTS2021_00008"]
    assert len(training) == 5


def test_hippocampus(tmp_path, monkeypatch, capsys):
    root = tmp_path / "Task04_Hippocampus"
    training = [f"hippocampus_{number:03d}.nii.gz" for number in range(260, 0, -1)]
    test = [f"hippocampus_{number:03d}.nii.gz" for number in range(261, 391)]
    touch(root / "imagesTr", *training)
    touch(root / "labelsTr", *training)
    touch(root / "imagesTs", *test)
    # The entries of the set's own list.
    dataset = {
        "name": "Hippocampus",
        "description": "Left and right hippocampus segmentation",
        "reference": " Vanderbilt University Medical Center",
        "licence": "CC-BY-SA 4.0",
        "relase": "1.0 04/05/2018",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": 260,
        "numTest": 130,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in training],
        "test": [f"./imagesTs/{name}" for name in test],
    }
    (root / "dataset.json").write_text(json.dumps(dataset))
    make_list("hippocampus", tmp_path, monkeypatch)
    assert capsys.readouterr().out == "208 52 130\n"
    task = read_task(root / "task.json")
    assert task.modalities == ("t1",)
    assert task.labels == {0: "background", 1: "Anterior", 2: "Posterior"}
    assert [case.name for case in task.validation[:2]] == ["hippocampus_001", "hippocampus_006"]
    assert (len(task.training), len(task.test)) == (208, 130)
    assert read_task(root / "dataset.json").modalities == ("mr",)


# The commands


def commands(name: str) -> list[str]:
    lines = "".join(blocks(name, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("dae3d ")]


@pytest.mark.parametrize("command", [c for name in NAMES for c in commands(name)])
def test_every_command_is_one_that_the_command_line_takes(command, monkeypatch):
    taken = []
    monkeypatch.setattr(cli, "run_command", lambda function, fields: taken.append((function, fields)) or 0)
    assert cli.main(shlex.split(command)[1:]) == 0
    ((function, fields),) = taken
    resolve(function.settings, fields)


@pytest.mark.parametrize("name", NAMES)
def test_the_pages_go_from_list_to_table(name):
    names = [command.split()[1] for command in commands(name)]
    assert names[0] == "finetune"
    assert "evaluate" in names
    assert f"--config {name} " in commands(name)[0]
    assert re.search(
        r"not measured|nothing on this page was measured", (PAGES / f"{name}.md").read_text(), re.I
    )


# The configs

# The published fine-tuning recipe (arXiv 2307.16896 and its released code).
PUBLISHED = {
    "axes": "straight",
    "transfer": None,
    "roi": (96, 96, 96),
    "batch_size": 16,
    "crops_per_case": 4,
    "positive_share": 0.5,
    "crop_balance": "voxels",
    "flip_prob": 0.2,
    "rotate_prob": 0.2,
    "scale_intensity": 0.1,
    "scale_prob": 0.1,
    "shift_intensity": 0.1,
    "shift_prob": 0.1,
    "warmup_steps": "50 epochs",
    "lr": 8e-4,
    "min_lr": 0,
    "warmup_lr": 0,
    "cosine_from": "warmup",
    "weight_decay": 1e-5,
    "layer_decay": 1,
    "clip_grad": None,
    "val_overlap": 0.5,
}
RECIPES = {
    "btcv": PUBLISHED
    | {
        "max_steps": "1000 epochs",
        "val_every": "5 epochs",
        "spacing": (1.5, 1.5, 2.0),
        "crop_foreground": True,
        "intensity": {"ct": "window:-175:250"},
    },
    "feta": PUBLISHED
    | {
        "max_steps": "600 epochs",
        "val_every": "10 epochs",
        "spacing": None,
        "crop_foreground": False,
        "intensity": {},
    },
    # Swin UNETR (arXiv 2201.01266) as released.
    "brats": PUBLISHED
    | {
        "roi": (128, 128, 128),
        "batch_size": 1,
        "crops_per_case": 1,
        "positive_share": 0,
        "flip_prob": 0.5,
        "rotate_prob": 0,
        "scale_prob": 1,
        "shift_prob": 1,
        "max_steps": "300 epochs",
        "lr": 1e-4,
        "val_every": "5 epochs",
        "spacing": None,
        "crop_foreground": True,
        "intensity": {},
        "precision": "32-true",
    },
    "hippocampus": {"roi": (64, 64, 64), "spacing": None, "flip_prob": 0, "rotate_prob": 0},
}


@pytest.mark.parametrize("name", NAMES)
def test_the_configs_are_the_published_recipes(name):
    settings = resolve(FinetuneSettings, {"config": name, "data": "task.json", "out": "run"})
    recipe = RECIPES[name]
    assert {field: getattr(settings, field) for field in recipe} == recipe
