"""Folders of weights to publish: what is in them, and that nothing of the machine or of patients is."""

import csv
import json
import os
from dataclasses import asdict

import pytest
import torch
import yaml

import dae3d
from dae3d.errors import Dae3dError, SettingsError
from dae3d.exporting.sharing import shareable
from dae3d.models.network import RepairNetwork, Segmenter
from dae3d.models.provenance import trained_on
from dae3d.models.weights import read_weights
from private_run import WORD, fine_tuned, pretrained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("private"))


@pytest.fixture(scope="module")
def tuned(run, tmp_path_factory):
    return fine_tuned(tmp_path_factory.mktemp("tuned"), run)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("published") / "hub"
    return dae3d.export(weights=run, format="hub", out=out, license="cc-by-4.0")


def everything_in(folder):
    """The names and bytes of all files, in lower case."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = [path.relative_to(folder).as_posix().encode() for path in files]
    return b"\n".join([*names, *(path.read_bytes() for path in files)]).lower()


def front_matter(folder):
    text = (folder / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


@pytest.mark.parametrize("which", ["run", "tuned"])
def test_no_path_and_no_name_of_a_scan_is_in_a_folder_for_the_hub(which, tmp_path, request):
    weights = request.getfixturevalue(which)
    # The word is in the files of the run.
    assert WORD.encode() in everything_in(weights)
    assert WORD.encode() in (weights / "weights/best.safetensors").read_bytes()
    out = dae3d.export(weights=weights, format="hub", out=tmp_path / WORD / "out")
    found = everything_in(out)
    for word in (WORD, str(tmp_path), str(weights), os.getcwd()):
        assert word.lower().encode() not in found


def test_a_folder_has_weights_configuration_and_card(folder, run):
    assert sorted(path.name for path in folder.iterdir()) == [
        ".dae3d-hub",
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    original = read_weights(run)
    published = read_weights(folder)
    assert published.architecture == original.architecture
    assert published.state.keys() == original.state.keys()
    assert all(torch.equal(published.state[name], original.state[name]) for name in original.state)
    config = json.loads((folder / "config.json").read_text())
    assert config["library_name"] == "dae3d"
    assert config["dae3d_version"] == dae3d.__version__
    assert config["task"] == "pretrain"
    fields = {"backbone": "swin-unetr", **asdict(original.architecture)}
    assert config["architecture"] == json.loads(json.dumps(fields))


def test_what_training_recorded_stays_apart_from_paths(folder, run):
    before, after = read_weights(run).info, read_weights(folder).info
    assert trained_on(after) == trained_on(before)
    assert len(trained_on(after)[0].training) > 0
    lost = before["settings"].keys() - after["settings"].keys()
    assert lost == {"data", "out", "init", "probe_task", "leave_out", "resume", "monai_merging"}
    assert all(after["settings"][name] == before["settings"][name] for name in after["settings"])
    assert after["data"] == before["data"]
    for name in ("modalities", "preparation", "spacing", "step", "best_validation", "versions"):
        assert after[name] == before[name]


def test_the_card_has_licence_data_settings_and_figures(folder, run):
    header, body = front_matter(folder)
    assert header["license"] == "cc-by-4.0"
    assert header["library_name"] == "dae3d"
    assert {"medical-imaging", "swin-unetr", "ct", "t1"} <= set(header["tags"])
    # 5 scans, of which two are held out, by modality.
    rows = read_weights(run).info["data"]
    assert sum(row["train"] + row["val"] for row in rows) == 5
    for row in rows:
        assert f"| {row['modality']} | phantoms | {row['train']} | {row['val']} |" in body
    assert "arxiv.org/abs/2307.16896" in body
    assert "@article{valanarasu2023disruptive" in body
    assert 'dae3d.load("hf://ORG/NAME")' in body
    assert "batch_size: 4" in body
    step = read_weights(run).info["step"]
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) == step]
    validated = {row["metric"]: float(row["value"]) for row in rows if row["metric"].startswith("val/")}
    assert "val/psnr/ct" in validated
    for name, value in validated.items():
        assert f"| {name} | {value:.4g} |" in body


def test_without_a_licence_the_card_says_so(run, tmp_path, capsys):
    out = dae3d.export(weights=run, format="hub", out=tmp_path / "hub")
    header, body = front_matter(out)
    assert header["license"] == "unknown"
    assert "\nlicense: unknown\n" in (out / "README.md").read_text()
    assert "No licence was named" in body
    said = capsys.readouterr().out
    assert "give --license" in said
    assert "Data sets named in the folder: phantoms." in said


def test_data_sets_are_numbered_on_request(run, tmp_path):
    out = dae3d.export(weights=run, format="hub", out=tmp_path / "hub", name_data_sets=False)
    assert b"phantoms" not in everything_in(out)
    assert "| ct | data set 1 |" in (out / "README.md").read_text()


def test_names_that_look_like_paths_are_numbered_and_unknown_entries_left_out():
    row = {"modality": "ct", "train": 1, "val": 0, "voxels": 8, "scans": ["a.nii"]}
    info = {
        "task": "pretrain",
        "host": "a",
        "data": [row | {"dataset": "/data/x"}, row | {"dataset": "C:\\x"}, row | {"dataset": "good"}],
        "settings": {"roi": 32, "unknown": "a", "datasets": ["/data/x", "good"], "disruption": "/x"},
    }
    found = shareable(info)
    assert found.keys() == {"task", "data", "settings"}
    assert [each["dataset"] for each in found["data"]] == ["data set 1", "data set 2", "good"]
    assert all(each.keys() == {"modality", "train", "val", "voxels", "dataset"} for each in found["data"])
    assert found["settings"] == {"roi": 32, "datasets": ["data set 1", "good"]}


def test_a_folder_is_named_wherever_weights_are(folder, run, tmp_path, tiny_store, tiny_settings):
    assert isinstance(dae3d.load(folder), RepairNetwork)
    settings = {name: value for name, value in tiny_settings.items() if name != "window"}
    again = dae3d.pretrain(data=tiny_store, out=tmp_path / "again", init=folder, max_steps=1, **settings)
    assert read_weights(again).info["settings"]["init"] == str(folder)
    scan = next(run.parent.glob("*.nii.gz"))
    found = [
        dae3d.embed(scans=[scan], weights=weights, out=tmp_path / "e.npz", modality="t1").features
        for weights in (run, folder)
    ]
    assert (found[0] == found[1]).all()
    rows = dae3d.reconstruct(scans=[scan], weights=folder, out=tmp_path / "repaired", modality="t1")
    assert {row["image"] for row in rows} == {"disrupted", "repaired"}


def test_published_segmentation_weights_predict_the_same(tuned, tmp_path):
    folder = dae3d.export(weights=tuned, format="hub", out=tmp_path / "hub")
    assert isinstance(dae3d.load(folder), Segmenter)
    assert front_matter(folder)[0]["pipeline_tag"] == "image-segmentation"
    assert "Label values: 0 background, 1 organ, 4 lesion." in (folder / "README.md").read_text()
    scan = tuned.parent / f"{WORD}0.nii.gz"
    one, other = (
        dae3d.predict(scans=[scan], weights=[weights], out=tmp_path / name)[0].read_bytes()
        for name, weights in (("a", tuned), ("b", folder))
    )
    assert one == other


def test_a_folder_of_another_kind_is_refused_and_its_own_replaced(run, tmp_path):
    given = {"weights": run, "format": "hub"}
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text("{}")
    with pytest.raises(Dae3dError, match=r"not a folder of weights written by dae3d \(config\.json is in it"):
        dae3d.export(**given, out=theirs)
    assert (theirs / "config.json").read_text() == "{}"
    with pytest.raises(Dae3dError, match="not a folder of weights"):
        dae3d.export(**given, out=run)
    out = dae3d.export(**given, out=tmp_path / "hub")
    (out / "README.md").write_text("mine")
    dae3d.export(**given, out=out)
    assert "## Citation" in (out / "README.md").read_text()
    with pytest.raises(Dae3dError, match="folder of the weights themselves"):
        dae3d.export(weights=out, format="hub", out=out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(Dae3dError, match=r"notes\.txt is in it"):
        dae3d.export(**given, out=out)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_folder_is_whole_or_not_there(run, tmp_path, monkeypatch):
    def fail(*args):
        raise Dae3dError("stopped")

    monkeypatch.setattr("dae3d.exporting.hub.card", fail)
    with pytest.raises(Dae3dError, match="stopped"):
        dae3d.export(weights=run, format="hub", out=tmp_path / "hub")
    assert list(tmp_path.iterdir()) == []


def test_settings_of_folders_belong_to_folders(run, tmp_path):
    for given, words in (
        ({"license": "mit", "out": tmp_path / "w.safetensors"}, "license: only for format hub"),
        ({"name_data_sets": False, "out": tmp_path / "w.safetensors"}, "name_data_sets: only for format hub"),
        ({"format": "hub", "out": tmp_path / "w.pt"}, "out: must be a folder for format hub"),
    ):
        with pytest.raises(SettingsError, match=words):
            dae3d.export(weights=run, **given)
