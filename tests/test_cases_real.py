"""Real labelled scans through the store, with the errors that are planted among them."""

import json
from pathlib import Path

import numpy as np
import pytest

from dae3d.errors import Dae3dError
from dae3d.scans.readers import read_volume
from dae3d.scans.task import Task, read_task
from dae3d.store.cases import prepare_cases
from dae3d.store.recipe import CaseRecipe
from scan_files import write_nifti


def recipe(task: Task, **changes) -> CaseRecipe:
    return CaseRecipe(modalities=task.modalities, labels=task.labels, roi=32, **changes)


@pytest.fixture(scope="module")
def labelled(shared_data: Path) -> Path:
    return shared_data / "labelled"


def entry(image: Path, label: Path) -> dict[str, str]:
    return {"image": str(image), "label": str(label)}


def real_task(path: Path, modality: str, names: list[str], training: list[dict]) -> Task:
    path.write_text(json.dumps({"modality": modality, "labels": names, "training": training}))
    return read_task(path)


def test_real_hippocampi(labelled, tmp_path):
    folder = labelled / "msd_hippocampus"
    files = sorted((folder / "images").iterdir())[:12]
    entries = [entry(file, folder / "labels" / file.name) for file in files]
    task = real_task(tmp_path / "t.json", "MRI", ["background", "anterior", "posterior"], entries)
    store = prepare_cases(task.training, recipe(task), tmp_path / "store", workers=1)
    for number in (0, 11):
        label = read_volume(folder / "labels" / files[number].name).array
        assert store.cases[number].voxels == tuple(np.bincount(label.ravel(), minlength=3))


def test_planted_errors_of_a_real_data_set(labelled, tmp_path):
    """The label of subject 010 is that of 011, and the label of 281 has another shape than any image."""
    folder = labelled / "msd_hippocampus"
    image, label = folder / "images" / "hippocampus_011.nii.gz", folder / "labels" / "hippocampus_011.nii.gz"
    fitting = tmp_path / "hippocampus_010.nii.gz"
    volume = read_volume(image)
    write_nifti(fitting, volume.array[::-1], volume.affine)
    wrong = labelled.parent / "awkward"
    entries = [
        entry(image, label),
        entry(fitting, wrong / "unpaired_label_hippocampus_010.nii.gz"),
        entry(folder / "images" / "hippocampus_004.nii.gz", wrong / "unpaired_label_hippocampus_281.nii.gz"),
    ]
    task = real_task(tmp_path / "t.json", "MRI", ["background", "anterior", "posterior"], entries)
    with pytest.raises(Dae3dError) as caught:
        prepare_cases(task.training, recipe(task), tmp_path / "store", workers=1)
    text = str(caught.value)
    assert "2 of 3 cases" in text
    assert "unpaired_label_hippocampus_010.nii.gz: is the same as a file of hippocampus_011" in text
    assert "its shape is 512x512x94, not" in text


def test_real_odd_pairs(labelled, tmp_path):
    """NRRD, a CT of another extent than its label, and channels that share their label's grid."""
    scans = labelled / "totalsegmentator"
    ms = labelled / "open_ms_mni" / "patient07"
    names = [f"organ {value}" for value in range(118)]
    right = entry(scans / "example_ct_sm.nii.gz", scans / "example_seg.nii.gz")
    wrong = entry(scans / "example_ct.nii.gz", scans / "example_seg.nii.gz")
    task = real_task(tmp_path / "ct.json", "CT", names, [right, wrong])
    made = recipe(task, spacing=(3, 3, 3))
    with pytest.raises(Dae3dError, match=r"1 of 2 .*\n.*example_seg.*shape is 122x101x30, not 122x101x112"):
        prepare_cases(task.training, made, tmp_path / "ct", workers=1)
    store = prepare_cases(task.training[:1], made, tmp_path / "ct", workers=1)
    present = [number for number, count in enumerate(store.cases[0].voxels) if count]
    assert len(present) == 42
    tumour = labelled / "pyradiomics"
    task = real_task(
        tmp_path / "mr.json",
        "mr",
        ["background", "tumour"],
        [entry(tumour / f"brain{n}_image.nrrd", tumour / f"brain{n}_label.nrrd") for n in (1, 2)],
    )
    store = prepare_cases(task.training, recipe(task), tmp_path / "mr", workers=1)
    assert [case.shape for case in store.cases] == [(256, 256, 25), (256, 256, 23)]
    channels = [str(ms / f"{name}.nii.gz") for name in ("T1", "T1POST", "T2", "FLAIR")]
    (tmp_path / "ms.json").write_text(
        json.dumps(
            {
                "modality": {"0": "T1w", "1": "t1post", "2": "T2w", "3": "FLAIR"},
                "labels": {"lesion": 1},
                "training": [{"image": channels, "label": str(ms / "gold_standard.nii.gz")}],
            }
        )
    )
    task = read_task(tmp_path / "ms.json")
    assert task.modalities == ("t1", "t1ce", "t2", "flair")
    made = recipe(task, crop_foreground=True)
    store = prepare_cases(task.training, made, tmp_path / "ms", workers=1)
    assert store.image(0, (60, 60, 60), (32, 32, 32)).shape == (4, 32, 32, 32)
