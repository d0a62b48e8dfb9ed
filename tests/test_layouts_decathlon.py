"""The layouts `decathlon` and `bids`."""

import json
from pathlib import Path

import pytest

import dae3d
from dae3d.errors import Dae3dError
from dae3d.scans.layouts.layout import LAYOUTS
from dae3d.scans.manifest import LeftOut
from dae3d.scans.readers import read_header
from dae3d.scans.sources import Candidate
from layout_trees import found, plant


def task(home: Path, modality: dict[str, str], training: list[str], test: list[str]) -> Path:
    """A task's `dataset.json` with the fields and the spelling of the real ones."""
    home.mkdir(parents=True, exist_ok=True)
    content = {
        "name": home.name.partition("_")[2],
        "tensorImageSize": "4D" if len(modality) > 1 else "3D",
        "modality": modality,
        "labels": {"0": "background", "1": "organ"},
        "numTraining": len(training),
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in training
        ],
        "test": [f"./imagesTs/{name}.nii.gz" for name in test],
    }
    (home / "dataset.json").write_text(json.dumps(content))
    return home


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Task 1 with its four channels, and task 9."""
    channels = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    brain = task(tmp_path / "Task01_BrainTumour", channels, ["BRATS_001"], ["BRATS_485"])
    plant(brain, "imagesTr/BRATS_001.nii.gz", "imagesTs/BRATS_485.nii.gz", channels=4)
    # What a Mac leaves in the archives.
    plant(brain, "labelsTr/BRATS_001.nii.gz", "imagesTr/._BRATS_001.nii.gz")
    spleen = task(tmp_path / "Task09_Spleen", {"0": "CT"}, ["spleen_2", "spleen_3"], [])
    plant(spleen, "imagesTr/spleen_2.nii.gz", "labelsTr/spleen_2.nii.gz", "averages/mean.nii.gz")
    return tmp_path


def test_channels_become_scans_of_one_subject(tasks: Path) -> None:
    answers = list(LAYOUTS["decathlon"].candidates(tasks / "Task01_BrainTumour", None))
    scans = [answer for answer in answers if isinstance(answer, Candidate)]
    assert [(scan.shown, scan.volume, scan.modality) for scan in scans[:4]] == [
        ("imagesTr/BRATS_001.nii.gz", 0, "flair"),
        ("imagesTr/BRATS_001.nii.gz", 1, "t1"),
        ("imagesTr/BRATS_001.nii.gz", 2, "t1ce"),
        ("imagesTr/BRATS_001.nii.gz", 3, "t2"),
    ]
    assert [scan.subject for scan in scans] == 4 * ["Task01_BrainTumour/BRATS_001"] + 4 * [
        "Task01_BrainTumour/BRATS_485"
    ]
    assert [answer.reason for answer in answers if isinstance(answer, LeftOut)] == ["segmentation"]


def test_all_tasks_of_a_folder(tasks: Path) -> None:
    scans, left = found("decathlon", tasks)
    assert {scan.dataset for scan in scans.values()} == {"Task01_BrainTumour", "Task09_Spleen"}
    spleen = scans["Task09_Spleen/imagesTr/spleen_2.nii.gz"]
    assert (spleen.modality, spleen.volume, spleen.subject) == ("ct", None, "Task09_Spleen/spleen_2")
    assert left == {
        "Task01_BrainTumour/labelsTr/BRATS_001.nii.gz": "segmentation",
        "Task09_Spleen/labelsTr/spleen_2.nii.gz": "segmentation",
        "Task09_Spleen/averages/mean.nii.gz": "not an image of Task09_Spleen",
        "Task09_Spleen/imagesTr/spleen_3.nii.gz": "missing file",
    }


def test_a_task_must_name_its_modality(tmp_path: Path) -> None:
    home = task(tmp_path / "Dataset009_Spleen", {}, ["a"], [])
    plant(home, "imagesTr/a.nii.gz")
    with pytest.raises(Dae3dError, match=r"Dataset009_Spleen/dataset\.json: has no `modality`"):
        list(LAYOUTS["decathlon"].candidates(tmp_path, None))


def test_a_task_whose_modality_is_no_word(tmp_path: Path) -> None:
    task(tmp_path, {"0": "CT (portal venous)"}, ["a"], [])
    with pytest.raises(
        Dae3dError, match=r"dataset\.json: modality: 'CT \(portal venous\)' is not a modality"
    ):
        list(LAYOUTS["decathlon"].candidates(tmp_path, None))


CHANNELS = {"0": "T2", "1": "ADC"}


@pytest.fixture(params=["version 1", "version 1, one missing", "version 2"])
def nnunet(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Twelve patients of two channels, each a file of its own; the last has one visit more."""
    cases = [f"p_{number:02d}01" for number in range(1, 13)] + ["p_1202"]
    home = task(tmp_path / "Dataset005_Prostate", CHANNELS, cases, [])
    if request.param == "version 2":
        content = {"channel_names": CHANNELS, "labels": {"background": 0, "PZ": 1}, "file_ending": ".nii.gz"}
        (home / "dataset.json").write_text(json.dumps(content))
    plant(home, *(f"imagesTr/{case}_000{channel}.nii.gz" for case in cases for channel in range(2)))
    plant(home, "labelsTr/p_0101.nii.gz", "imagesTs/p_9901_0000.nii.gz", "imagesTs/p_9901_0001.nii.gz")
    if request.param == "version 1, one missing":
        (home / "imagesTr" / "p_0101_0000.nii.gz").unlink()
    return home


@pytest.mark.parametrize("layout", ["decathlon", "nnunet"])
def test_channels_in_files_have_the_label_of_their_number(nnunet: Path, layout: str, tmp_path: Path) -> None:
    manifest = dae3d.index(
        folders=[nnunet], layout=layout, out=tmp_path / "m.jsonl", val_fraction=0.3, min_slices=4
    )
    for scan in manifest.scans:
        assert scan.modality == {"0000": "t2", "0001": "adc"}[scan.path.name[7:11]]
    sides: dict[str, set[str]] = {}
    for scan in manifest.scans:
        sides.setdefault(scan.path.name[:4], set()).add(f"{scan.subject} {scan.split}")
    assert len(sides) == 13
    assert all(len(found) == 1 for found in sides.values())
    missing = [left.path.name for left in manifest.left_out if left.reason == "missing file"]
    assert missing == ([] if (nnunet / "imagesTr/p_0101_0000.nii.gz").exists() else ["p_0101_0000.nii.gz"])


def test_the_list_of_a_data_set_of_nnunet(nnunet: Path, tmp_path: Path) -> None:
    """Without the layout the same scans are found, less those to test on."""
    manifest = dae3d.index(folders=[nnunet / "dataset.json"], out=tmp_path / "m.jsonl", min_slices=4)
    found = {scan.path.name: scan.modality for scan in manifest.scans}
    there = [path.name for path in (nnunet / "imagesTr").iterdir()]
    assert found == {name: {"0": "t2", "1": "adc"}[name[10]] for name in there}


def test_a_channel_that_the_list_does_not_name(tmp_path: Path) -> None:
    home = task(tmp_path / "Task05_Prostate", CHANNELS, ["p_00"], [])
    plant(home, "imagesTr/p_00_0000.nii.gz", "imagesTr/p_00_0001.nii.gz", "imagesTr/p_00_0002.nii.gz")
    scans, left = found("nnunet", home)
    assert [(name[-11:-7], scan.modality) for name, scan in scans.items()] == [
        ("0000", "t2"),
        ("0001", "adc"),
    ]
    assert left == {"imagesTr/p_00_0002.nii.gz": "not a channel of Task05_Prostate: numbers are 0000 to 0001"}


def test_a_file_with_other_volumes_than_the_list_has_channels(tmp_path: Path) -> None:
    """Its first volume would else be called by the name of the first channel."""
    home = task(tmp_path / "Task01", {"0": "FLAIR", "1": "T1w"}, ["a", "b", "c"], [])
    plant(home, "imagesTr/a.nii.gz")
    plant(home, "imagesTr/b.nii.gz", channels=3)
    plant(home, "imagesTr/c.nii.gz", channels=2)
    manifest = dae3d.index(folders=[home], layout="decathlon", out=tmp_path / "m.jsonl", min_slices=4)
    assert [(scan.path.name, scan.modality) for scan in manifest.scans] == [
        ("c.nii.gz", "flair"),
        ("c.nii.gz", "t1"),
    ]
    assert {left.path.name: left.reason for left in manifest.left_out} == {
        "a.nii.gz": "has 1 volumes, but the list names 2 channels",
        "b.nii.gz": "has 3 volumes, but the list names 2 channels",
    }


def test_real_images_of_a_task(shared_data: Path, tmp_path: Path) -> None:
    names = ["hippocampus_001", "hippocampus_004"]
    home = task(tmp_path / "Task04_Hippocampus", {"0": "MRI"}, names, [])
    (home / "imagesTr").symlink_to(shared_data / "labelled" / "msd_hippocampus" / "images")
    (home / "labelsTr").symlink_to(shared_data / "labelled" / "msd_hippocampus" / "labels")
    scans, left = found("decathlon", home)
    assert len(scans) == len(list((home / "imagesTr").glob("hippocampus_*.nii.gz")))
    assert {scan.modality for scan in scans.values()} == {"mr"}
    # From the catalogue of the real scans.
    assert read_header(scans["imagesTr/hippocampus_001.nii.gz"].path).shape == (35, 51, 35)
    assert set(left.values()) == {"segmentation"}


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    plant(tmp_path, "ds1/dataset_description.json", "ds1/participants.tsv")
    plant(
        tmp_path / "ds1",
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_ce-gad_T1w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_mod-FLAIR_defacemask.nii.gz",
        "sub-01/ses-2/dwi/sub-01_ses-2_dwi.nii.gz",
        "sub-01/ses-2/fmap/sub-01_ses-2_phasediff.nii.gz",
        "sub-01/ses-2/func/sub-01_ses-2_task-rest_bold.nii.gz",
        "sub-01/ses-2/perf/sub-01_ses-2_asl.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_inv-1_MP2RAGE.nii.gz",
        "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "template.nii.gz",
    )
    return plant(tmp_path, "ds2/sub-01/anat/sub-01_T2w.nii.gz", "other/scan.nii.gz")


def test_bids(bids: Path) -> None:
    scans, left = found("bids", bids / "ds1")
    assert {Path(shown).name: scan.modality for shown, scan in scans.items()} == {
        "sub-01_ses-1_T1w.nii.gz": "t1",
        "sub-01_ses-1_ce-gad_T1w.nii.gz": "t1ce",
        "sub-01_ses-2_FLAIR.nii.gz": "flair",
        "sub-01_ses-2_dwi.nii.gz": "dwi",
        # Its name tells no contrast that is known; a rule may.
        "sub-01_ses-2_inv-1_MP2RAGE.nii.gz": None,
    }
    assert {scan.subject for scan in scans.values()} == {"ds1/sub-01"}
    assert {Path(shown).name: reason for shown, reason in left.items()} == {
        "sub-01_ses-2_mod-FLAIR_defacemask.nii.gz": "mask or segmentation",
        "sub-01_ses-2_phasediff.nii.gz": "field map",
        "sub-01_ses-2_task-rest_bold.nii.gz": "functional series",
        "sub-01_ses-2_asl.nii.gz": "perfusion series",
        "sub-01_desc-preproc_T1w.nii.gz": "not a raw BIDS image: in derivatives",
        "template.nii.gz": "not a raw BIDS image: in ds1",
    }


def test_several_bids_data_sets_share_no_subject(bids: Path) -> None:
    answers = list(LAYOUTS["bids"].candidates(bids, None))
    scans = [answer for answer in answers if isinstance(answer, Candidate)]
    assert {(scan.dataset, scan.subject) for scan in scans} == {("ds1", "ds1/sub-01"), ("ds2", "ds2/sub-01")}
    assert scans[-1].shown == "ds2/sub-01/anat/sub-01_T2w.nii.gz"
