"""Runs that go on elsewhere, or on other data, and where there is no GPU."""

import json
import logging
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml

import dae3d
from conftest import smooth_volume, write_task
from dae3d.errors import Dae3dError
from dae3d.metrics import read_metrics
from dae3d.reporting.run_folder import load_run
from dae3d.reporting.run_text import legs as legs_in_words
from dae3d.settings import resolve
from dae3d.training.run_settings import RunSettings

pytestmark = pytest.mark.slow


def small_store(folder: Path, labels: list[str]) -> Path:
    for i, label in enumerate(labels):
        voxels = np.round(smooth_volume(i, (36, 34, 33)) * 500 + 1).astype(np.int16)
        nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(folder / f"sub-{i:02d}_{label}.nii.gz")
    dae3d.index(folders=[folder], out=folder / "manifest.jsonl", val_fraction=0)
    dae3d.prepare(manifest=folder / "manifest.jsonl", out=folder / "store", workers=1, report=False)
    return folder / "store"


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def baseline_steps(run: Path) -> set[int]:
    return {step for step, name, _ in read_metrics(run / "metrics.csv")[0] if name.startswith("baseline/")}


def test_a_run_moved_with_its_store_goes_on_from_any_folder(tiny_settings, tmp_path, monkeypatch, caplog):
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "data").mkdir(parents=True)
    small_store(old / "data", ["T1w"] * 3)
    monkeypatch.chdir(old)
    dae3d.pretrain(data="data/store", out="runs/a", max_steps=4, **tiny_settings)
    saved = yaml.safe_load((old / "runs/a/settings.yaml").read_text())
    assert (saved["data"], saved["out"]) == (str(old / "data/store"), str(old / "runs/a"))
    shutil.move(old, new)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, "dae3d"):
        dae3d.pretrain(out="new/runs/a", resume=True, max_steps=6)
    assert [leg["from"] for leg in record(new / "runs/a")["legs"]] == [0]
    assert "the data has changed" not in caplog.text
    assert record(new / "runs/a")["step"] == 6


def test_relative_paths_of_older_runs_are_found_beside_the_run(tmp_path, monkeypatch):
    for folder in ("a/store", "a/run", "b/store", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    saved = {"data": "store", "out": "run"}
    (tmp_path / "a/run/settings.yaml").write_text(yaml.safe_dump(saved))
    monkeypatch.chdir(tmp_path / "b")  # which has a store too, another one
    assert os.path.samefile(
        resolve(RunSettings, {"resume": True, "out": "../a/run"}).data, tmp_path / "a/store"
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert os.path.samefile(
        resolve(RunSettings, {"resume": True, "out": "../a/run"}).data, tmp_path / "a/store"
    )
    assert resolve(RunSettings, {"resume": True, "out": "../a/run", "data": "given"}).data == Path("given")


def test_other_data_is_a_leg_of_its_own_with_baselines_of_its_own(tiny_settings, tmp_path, caplog):
    stores = []
    for name, labels in (("one", ["T1w"] * 3), ("two", ["T1w"] * 3 + ["T2w"] * 2)):
        (tmp_path / name).mkdir()
        stores.append(small_store(tmp_path / name, labels))
    run = dae3d.pretrain(data=stores[0], out=tmp_path / "run", max_steps=4, **tiny_settings)
    assert baseline_steps(run) == {0}
    with caplog.at_level(logging.WARNING, "dae3d"):
        dae3d.pretrain(out=run, resume=True, data=stores[1], max_steps=8)
    assert "the data has changed at step 4" in caplog.text
    assert "t2 of two: 2 for training, 0 for validation" in caplog.text
    first, second = record(run)["legs"]
    assert (first["from"], second["from"]) == (0, 4)
    assert [row["modality"] for row in first["data"]["rows"]] == ["t1"]
    assert [row["modality"] for row in second["data"]["rows"]] == ["t1", "t2"]
    assert baseline_steps(run) == {0, 5}  # with the next validation
    assert legs_in_words(load_run(run)) == [
        "From step 4 on, training continued on other data: 3 scans of t1 (two), 2 scans of t2 (two)."
    ]
    caplog.clear()
    dae3d.pretrain(out=run, resume=True, max_steps=9)
    assert [leg["from"] for leg in record(run)["legs"]] == [0, 4]
    assert baseline_steps(run) == {0, 5}


def test_a_run_of_before_there_were_legs_has_one(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    old = record(run)
    del old["legs"], old["data"]["scans_digest"]
    for validation in old["validation"].values():
        del validation["crops_digest"]
    (run / "run.json").write_text(json.dumps(old))
    dae3d.pretrain(out=run, resume=True, max_steps=15)
    assert [leg["from"] for leg in record(run)["legs"]] == [0]


def test_training_cases_that_are_to_validate_are_named(tiny_task, tiny_finetune, tmp_path, caplog):
    entries = json.loads(tiny_task.read_text())
    cases = entries["training"] + entries["validation"]
    for entry in cases:
        for key in ("image", "label"):
            entry[key] = str(tiny_task.parent / entry[key])
    (tmp_path / "lists").mkdir()
    before = write_task(tmp_path / "lists", "before", training=cases[:4], validation=cases[4:])
    after = write_task(tmp_path / "lists", "after", training=cases[2:], validation=cases[:2])
    given = tiny_finetune | {"max_steps": 2, "val_every": 2, "save_every": 2}
    sizes = {name: given[name] for name in ("embed_dim", "heads", "depths", "window")}
    run = dae3d.finetune(out=tmp_path / "run", **(given | {"data": before}))
    with caplog.at_level(logging.WARNING, "dae3d"):
        dae3d.finetune(out=run, resume=True, data=after, max_steps=4, **sizes)
    assert "2 validation cases were training cases earlier in this run: sub-0_T1w, sub-1_T1w" in (caplog.text)
    assert [leg["cases"]["validation"][0] for leg in record(run)["legs"]] == ["sub-4_T1w", "sub-0_T1w"]


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_a_config_for_a_gpu_stops_without_one_and_names_another(tiny_store, tiny_settings, tmp_path):
    forced = {name: value for name, value in tiny_settings.items() if name != "accelerator"}
    given = forced | {"config": "one-gpu-24gb", "data": tiny_store, "out": tmp_path / "run", "max_steps": 1}
    with pytest.raises(Dae3dError, match=r"accelerator: gpu.*small-cpu.*--accelerator cpu"):
        dae3d.pretrain(**given)
    assert not (tmp_path / "run").exists()
    dae3d.pretrain(**given, accelerator="cpu", accumulate=1)


def test_a_run_computes_with_the_threads_asked_for(tiny_store, tiny_settings, tmp_path):
    before = torch.get_num_threads()
    try:
        dae3d.pretrain(data=tiny_store, out=tmp_path / "run", max_steps=1, threads=2, **tiny_settings)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
