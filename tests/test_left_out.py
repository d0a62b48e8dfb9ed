"""Subjects on whom segmentation is tested are left out of pre-training."""

import gzip
import json
import re
import shutil

import nibabel
import numpy as np
import pytest
import torch

import dae3d
from conftest import TINY, smooth_volume, write_task
from dae3d.errors import Dae3dError
from dae3d.models.provenance import kept, trained_on
from dae3d.models.weights import read_weights
from dae3d.store.source import contents_of

FEW = {**TINY, "max_steps": 2, "save_every": 2, "val_every": 2, "contrastive_weight": 0}


def scan(path, seed):
    voxels = np.round(smooth_volume(seed, (36, 34, 32)) * 500 + 1).astype(np.int16)
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(path)
    return path


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Five subjects with a T1 each, the first with a T2 too."""
    folder = tmp_path_factory.mktemp("scans")
    for number in range(5):
        scan(folder / f"sub-{number}_T1w.nii.gz", number)
    scan(folder / "sub-0_T2w.nii.gz", 10)
    return folder


@pytest.fixture(scope="module")
def store(scans):
    dae3d.index(folders=[scans], out=scans / "manifest.json", val_fraction=0)
    dae3d.prepare(manifest=scans / "manifest.json", out=scans / "store", workers=1)
    return scans / "store"


def task(folder, *names, fold=None):
    """A list that is tested on these images; the label is any file."""
    shutil.copy(folder / names[0], folder / "seg.nii.gz")
    entries = [{"image": name, "label": f"{number}_seg.nii.gz"} for number, name in enumerate(names)]
    if fold is None:
        train = scan(folder / "other_T1w.nii.gz", 20).name
        splits = {"training": [{"image": train, "label": "t_seg.nii.gz"}], "validation": entries}
    else:
        splits = {"training": [{**entry, "fold": fold} for entry in entries]}
    return write_task(folder, "tested", **splits)


def trained_with(store, leave_out, out):
    run = dae3d.pretrain(data=store, out=out, leave_out=leave_out, **FEW)
    record = json.loads((run / "run.json").read_text())["data"]
    (stage,) = trained_on(read_weights(run).info)
    return stage.training, record


def of_files(*paths):
    return {kept(digest) for digest in contents_of(paths)}


def test_a_tested_subject_is_left_out_with_all_its_scans(scans, store, tmp_path):
    shutil.copy(scans / "sub-0_T1w.nii.gz", tmp_path / "renamed.nii.gz")
    training, record = trained_with(store, task(tmp_path, "renamed.nii.gz"), tmp_path / "run")
    assert not training & of_files(scans / "sub-0_T1w.nii.gz", scans / "sub-0_T2w.nii.gz")
    assert of_files(*(scans / f"sub-{n}_T1w.nii.gz" for n in range(1, 5))) <= training
    assert record["left_out"] == 2
    assert [(row["modality"], row["train"]) for row in record["rows"]] == [("t1", 4)]


def test_the_same_voxels_in_another_file_are_found(scans, store, tmp_path):
    """Packed again, with another header: no byte of the file is the same."""
    image = nibabel.load(scans / "sub-3_T1w.nii.gz")
    header = image.header.copy()
    header["descrip"] = b"written again"
    nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([2, 2, 2, 1]), header).to_filename(
        tmp_path / "again.nii"
    )
    with gzip.open(tmp_path / "again.nii.gz", "wb", 1) as file:
        file.write((tmp_path / "again.nii").read_bytes())
    (tmp_path / "again.nii").unlink()
    training, record = trained_with(store, task(tmp_path, "again.nii.gz"), tmp_path / "run")
    assert record["left_out"] == 1
    assert not training & of_files(scans / "sub-3_T1w.nii.gz")


def test_with_folds_every_case_is_tested_once(scans, store, tmp_path):
    for number in (1, 2):
        shutil.copy(scans / f"sub-{number}_T1w.nii.gz", tmp_path)
    listed = task(tmp_path, "sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz", fold=0)
    _, record = trained_with(store, listed, tmp_path / "run")
    assert record["left_out"] == 2


def test_errors_name_the_setting_and_the_file(scans, store, tmp_path):
    names = [path.name for path in sorted(scans.glob("*T1w.nii.gz"))]
    for name in names:
        shutil.copy(scans / name, tmp_path)
    everything = task(tmp_path, *names)
    with pytest.raises(Dae3dError, match="leave_out: no training scans remain"):
        dae3d.pretrain(data=store, out=tmp_path / "run", leave_out=everything, **FEW)
    (tmp_path / names[0]).write_bytes(b"no scan")
    with pytest.raises(Dae3dError, match=re.escape(names[0])):
        dae3d.pretrain(data=store, out=tmp_path / "run", leave_out=everything, **FEW)
    with pytest.raises(Dae3dError, match=r"nowhere\.json"):
        dae3d.pretrain(data=store, out=tmp_path / "run", leave_out=tmp_path / "nowhere.json", **FEW)


def test_a_run_goes_on_without_them(scans, store, tmp_path):
    shutil.copy(scans / "sub-4_T1w.nii.gz", tmp_path)
    listed = task(tmp_path, "sub-4_T1w.nii.gz")
    whole = dae3d.pretrain(data=store, out=tmp_path / "whole", leave_out=listed, **{**FEW, "max_steps": 4})
    parts = dae3d.pretrain(data=store, out=tmp_path / "parts", leave_out=listed, **FEW)
    dae3d.pretrain(
        data=store, out=parts, leave_out=listed, resume=True, **{**FEW, "max_steps": 4, "warmup_steps": 2}
    )
    ours, theirs = (read_weights(run / "weights/last.safetensors").state for run in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
