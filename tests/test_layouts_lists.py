"""The lists published with the reference implementation, and lists whose names start elsewhere."""

import json
from pathlib import Path

import pytest

from dae3d.errors import Dae3dError
from dae3d.scans.layouts.published_lists import PUBLISHED
from dae3d.scans.lists import read_list
from dae3d.scans.sources import Candidate
from layout_trees import plant

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001"

# Of each list: names as it writes them, for training and for validation, and the subjects they stand for.
NAMES = {
    "dataset_LUNA16_0.json": (
        [f"subset_0/{UID}.11.nii.gz", f"subset_9/{UID}.12.nii.gz"],
        [f"luna16/{UID}.11", f"luna16/{UID}.12"],
    ),
    "dataset_TCIAcovid19_0.json": (
        ["data/volume-covid19-A-0721_day008.nii.gz", "data/volume-covid19-A-0318_1.nii.gz"],
        ["covid19/A-0721", "covid19/A-0318"],
    ),
    "dataset_HNSCC_0.json": (
        ["images/img_818.nii.gz", "images/img_99.nii.gz"],
        ["hnscc/img_818", "hnscc/img_99"],
    ),
    "dataset_TCIAcolon_v2_0.json": (
        ["images/img_3406.nii.gz", "images/img_99.nii.gz"],
        ["ct-colonography/img_3406", "ct-colonography/img_99"],
    ),
    "dataset_LIDC_0.json": (
        ["Image_LIDC/LIDC-IDRI-0417_0.nii.gz", "Image_LIDC/LIDC-IDRI-0151_2.nii.gz"],
        ["lidc-idri/LIDC-IDRI-0417", "lidc-idri/LIDC-IDRI-0151"],
    ),
}


def write(folder: Path, name: str, training: list[str], validation: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"training": training, "validation": validation}
    content = {side: [{"image": image} for image in images] for side, images in sides.items()}
    (folder / name).write_text(json.dumps(content))
    return folder / name


@pytest.mark.parametrize("name", NAMES)
def test_ct_lists(tmp_path: Path, name: str) -> None:
    names, subjects = NAMES[name]
    path = write(tmp_path / "jsons", name, names[:1], names[1:])
    root = plant(tmp_path / "scans", *names)
    published = PUBLISHED[name]
    scans = read_list(path, 0, None, {published: root})
    assert [scan.path for scan in scans] == [root / image for image in names]
    assert [scan.subject for scan in scans] == subjects
    assert [scan.split for scan in scans] == ["train", "val"]
    assert {(scan.modality, scan.dataset, scan.root) for scan in scans} == {("ct", published, root)}


def test_brats_list(tmp_path: Path) -> None:
    kinds = ("t1", "t1ce", "t2", "flair")
    train = [f"TrainingData/BraTS2021_00510/BraTS2021_00510_{kind}.nii.gz" for kind in kinds]
    held_out = ["ValidationData/BraTS2021_01732/BraTS2021_01732_t1ce.nii.gz"]
    path = write(tmp_path, "brats21_pre.json", train, held_out)
    plant(tmp_path, *train, *held_out)
    scans = read_list(path, 0, None)
    assert [(scan.modality, scan.subject, scan.split) for scan in scans] == [
        *((kind, "brats21/BraTS2021_00510", "train") for kind in kinds),
        ("t1ce", "brats21/BraTS2021_01732", "val"),
    ]
    assert {scan.dataset for scan in scans} == {"brats21"}


def test_luna16_as_it_is_released(tmp_path: Path) -> None:
    names = [f"subset_0/{UID}.11.nii.gz", f"subset_9/{UID}.12.nii.gz", f"subset_9/{UID}.13.nii.gz"]
    path = write(tmp_path / "jsons", "dataset_LUNA16_0.json", names, [])
    root = plant(tmp_path / "luna", f"subset0/{UID}.11.mhd", f"subset9/{UID}.12.mhd")
    # A segmentation has the same name as its scan.
    plant(root, f"seg-lungs-LUNA16/{UID}.13.mhd")
    scans = read_list(path, 0, None, {"dataset_LUNA16_0": root})
    assert [scan.path for scan in scans] == [
        root / f"subset0/{UID}.11.mhd",
        root / f"subset9/{UID}.12.mhd",
        root / names[2],
    ]
    assert {scan.modality for scan in scans} == {"ct"}


def test_a_published_list_without_its_scans_asks_where_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, "dataset_HNSCC_0.json", ["images/img_1.nii.gz", "images/img_2.nii.gz"], [])
    plant(tmp_path / "elsewhere", "images/img_1.nii.gz")
    with pytest.raises(
        Dae3dError, match=r"none of the 2 scans .*images/img_1\.nii\.gz; .* --root hnscc=FOLDER"
    ):
        read_list(path, 0, None)
    assert len(read_list(path, 0, None, {"hnscc": tmp_path / "elsewhere"})) == 2


def test_the_list_itself_comes_before_what_its_name_tells(tmp_path: Path) -> None:
    path = tmp_path / "dataset_HNSCC_0.json"
    entry = {"image": "images/img_1.nii.gz", "modality": "PET", "subject": 7}
    path.write_text(json.dumps({"training": [entry, "odd.nii.gz"]}))
    plant(tmp_path, "images/img_1.nii.gz", "odd.nii.gz")
    first, odd = read_list(path, 0, "necks")
    assert (first.modality, first.subject, first.dataset) == ("pet", "7", "necks")
    assert (odd.modality, odd.subject) == (None, None)


def test_the_names_of_any_list_can_start_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path / "lists", "mine.json", ["a.nii.gz"], ["../b.nii.gz"])
    root = plant(tmp_path / "scans", "a.nii.gz")
    inside, outside = read_list(path, 0, None, {"mine": root, "hnscc": tmp_path})
    assert (inside.path, inside.root) == (root / "a.nii.gz", root)
    assert (outside.path, outside.root) == (tmp_path / "b.nii.gz", tmp_path)
    assert read_list(path, 0, None)[0].path == tmp_path / "lists" / "a.nii.gz"


def test_a_root_that_is_no_folder(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.json", ["a.nii.gz"], [])
    with pytest.raises(Dae3dError, match=r"^root: .*gone: no such folder, for mine\.json$"):
        read_list(path, 0, None, {"mine": tmp_path / "gone"})


def test_a_modality_that_is_no_label_is_left_to_the_rules(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"modality": {"0": "CT (portal venous)"}, "training": ["a.nii.gz"]}))
    (scan,) = read_list(path, 0, None)
    assert isinstance(scan, Candidate)
    assert (scan.modality, scan.unread) == (None, "CT (portal venous)")
