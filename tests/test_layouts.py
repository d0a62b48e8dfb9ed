"""The layouts of public data sets that file names tell of, each on a miniature of its release."""

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dae3d.errors import Dae3dError
from dae3d.scans.layouts.layout import LAYOUTS, LayoutName
from dae3d.scans.layouts.names import told_by_name
from dae3d.scans.readers import read_header
from layout_trees import found, plant, told

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001"


def test_luna16(tmp_path: Path) -> None:
    # Nothing of the path but the layout's own parts counts: dataset1 and t1 are not modalities.
    root = plant(
        tmp_path / "dataset1" / "t1",
        f"subset0/{UID}.105756658031515062000744821260.mhd",
        f"subset9/{UID}.114218724025049818743426522343.mhd",
        f"seg-lungs-LUNA16/{UID}.105756658031515062000744821260.mhd",
        "annotations.csv",
        "candidates_V2.csv",
    )
    scans, left = found("luna16", root)
    assert told(scans) == {
        f"subset0/{UID}.105756658031515062000744821260.mhd": (
            "ct",
            f"luna16/{UID}.105756658031515062000744821260",
        ),
        f"subset9/{UID}.114218724025049818743426522343.mhd": (
            "ct",
            f"luna16/{UID}.114218724025049818743426522343",
        ),
    }
    assert left == {
        f"seg-lungs-LUNA16/{UID}.105756658031515062000744821260.mhd": "lung segmentation of LUNA16"
    }
    assert {scan.dataset for scan in scans.values()} == {"luna16"}
    assert read_header(next(iter(scans.values())).path).shape == (8, 8, 8)


def test_a_part_of_a_set_can_be_given(tmp_path: Path) -> None:
    plant(tmp_path, f"subset3/{UID}.7.mhd", f"subset4/{UID}.8.mhd")
    scans, _ = found("luna16", tmp_path / "subset3")
    assert told(scans) == {f"{UID}.7.mhd": ("ct", f"luna16/{UID}.7")}


def test_covid19_days_and_series_are_of_one_subject(tmp_path: Path) -> None:
    names = ["A-0011", "A-0721_day008", "A-0721_day020", "A-0318_0", "A-0318_1", "A-0003_ct"]
    plant(tmp_path, *(f"data/volume-covid19-{name}.nii.gz" for name in names))
    plant(tmp_path, "data/volume-covid19-A-0003_seg.nii.gz", "data/atlas.nii.gz")
    scans, left = found("covid19", tmp_path, dataset="lungs")
    subjects = [scans[f"data/volume-covid19-{name}.nii.gz"].subject for name in names]
    assert subjects == [f"covid19/A-{number}" for number in ("0011", "0721", "0721", "0318", "0318", "0003")]
    assert {scan.modality for scan in scans.values()} == {"ct"}
    assert {scan.dataset for scan in scans.values()} == {"lungs"}
    assert left == {
        "data/volume-covid19-A-0003_seg.nii.gz": "segmentation",
        "data/atlas.nii.gz": "not a scan of covid19, by its name",
    }


def test_brats21_has_four_modalities_a_subject(tmp_path: Path) -> None:
    for part, case in (("TrainingData_16July2021", "00000"), ("ValidationData", "00001")):
        folder = f"RSNA_ASNR_MICCAI_BraTS2021_{part}/BraTS2021_{case}/BraTS2021_{case}"
        plant(tmp_path, *(f"{folder}_{kind}.nii.gz" for kind in ("flair", "t1", "t1ce", "t2")))
    plant(
        tmp_path,
        "RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021/BraTS2021_00000/BraTS2021_00000_seg.nii.gz",
    )
    scans, left = found("brats21", tmp_path)
    for case in ("BraTS2021_00000", "BraTS2021_00001"):
        own = {shown: scan for shown, scan in scans.items() if case in shown}
        assert {scan.subject for scan in own.values()} == {f"brats21/{case}"}
        assert {Path(shown).name: scan.modality for shown, scan in own.items()} == {
            f"{case}_{kind}.nii.gz": kind for kind in ("flair", "t1", "t1ce", "t2")
        }
    assert list(left.values()) == ["tumour segmentation"]


@pytest.mark.parametrize(
    ("train", "test", "label"),
    [
        ("RawData/Training/img", "RawData/Testing/img", "RawData/Training/label"),
        ("imagesTr", "imagesTs", "labelsTr"),
    ],
)
def test_btcv(tmp_path: Path, train: str, test: str, label: str) -> None:
    plant(tmp_path, f"{train}/img0001.nii.gz", f"{test}/img0061.nii.gz", f"{label}/label0001.nii.gz")
    # Deformed copies that Synapse has beside the images.
    plant(tmp_path, "RegData/Training-Training/img/0001/img0002-0001.nii.gz")
    scans, left = found("btcv", tmp_path)
    assert told(scans) == {
        f"{train}/img0001.nii.gz": ("ct", "btcv/img0001"),
        f"{test}/img0061.nii.gz": ("ct", "btcv/img0061"),
    }
    assert left == {
        f"{label}/label0001.nii.gz": "organ segmentation",
        "RegData/Training-Training/img/0001/img0002-0001.nii.gz": "not a scan of btcv, by its name",
    }


def test_feta(tmp_path: Path) -> None:
    plant(tmp_path, "participants.tsv", "sub-001/anat/sub-001_rec-mial_T2w.json")
    plant(tmp_path, *(f"sub-001/anat/sub-001_rec-mial_{kind}.nii.gz" for kind in ("T2w", "dseg")))
    plant(tmp_path, *(f"sub-041/anat/sub-041_rec-irtk_{kind}.nii.gz" for kind in ("T2w", "dseg")))
    scans, left = found("feta", tmp_path)
    assert told(scans) == {
        "sub-001/anat/sub-001_rec-mial_T2w.nii.gz": ("t2", "feta/sub-001"),
        "sub-041/anat/sub-041_rec-irtk_T2w.nii.gz": ("t2", "feta/sub-041"),
    }
    assert set(left.values()) == {"tissue segmentation"}


@pytest.mark.parametrize("name", ["hnscc", "ct-colonography", "lidc-idri"])
def test_sets_of_dicom_series_take_ct(tmp_path: Path, name: LayoutName) -> None:
    layout = LAYOUTS[name]
    assert layout.dicom
    plant(tmp_path, "LICENSE", "manifest-1/metadata.csv")
    assert list(layout.candidates(tmp_path, None)) == []
    assert layout.refuses("ct", "CT") is None
    # A rule may tell what a CT series is.
    assert layout.refuses(None, "CT") is None
    assert layout.refuses("pet", "PT") == f"pet: of {layout.title}, only ct series are taken"
    for scanner in ("MR", "", "Doe^Jane"):
        assert (
            layout.refuses(None, scanner) == f"unknown modality: of {layout.title}, only ct series are taken"
        )
    assert "LICENSE" in str(layout.mismatch(tmp_path))


def test_only_dicom_sets_refuse_modalities() -> None:
    assert [name for name, layout in LAYOUTS.items() if layout.refuses("us", "US")] == [
        name for name, layout in LAYOUTS.items() if layout.dicom
    ]


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if not layout.dicom])
def test_a_wrong_layout_says_what_was_expected_and_found(tmp_path: Path, name: LayoutName) -> None:
    plant(tmp_path, "scans/anything.nii.gz", "notes.txt", ".hidden")
    for number in range(20):
        (tmp_path / f"case{number:02}").mkdir()
    with pytest.raises(Dae3dError) as caught:
        list(LAYOUTS[name].candidates(tmp_path, None))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: no scan of {LAYOUTS[name].title} was found\nexpected:\n")
    expected, listing = message.split("expected:\n")[1].split("found:\n")
    assert [line.strip() for line in expected.splitlines()] == [
        line.strip() for line in LAYOUTS[name].expected.splitlines()
    ]
    # 22 names beside the hidden one, of which 12 are shown.
    names = [line.strip() for line in listing.splitlines()]
    assert names[:2] == ["case00/", "case01/"]
    assert names[12:] == ["and 10 more"]


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(Dae3dError, match=r"found:\n  nothing$"):
        list(LAYOUTS["luna16"].candidates(tmp_path, None))


def test_every_layout_can_be_named() -> None:
    assert set(get_args(LayoutName)) == set(LAYOUTS)


@given(st.lists(st.sampled_from(["t1", "dataset1", "seg", "img", "flair", "t2", "my data", "ü"]), max_size=4))
def test_where_a_set_lies_tells_nothing(folders: list[str]) -> None:
    brats, luna = "BraTS2021_00007/BraTS2021_00007_t1ce.nii.gz", f"subset0/{UID}.5.mhd"
    prefix = "".join(f"{folder}/" for folder in folders)
    assert told_by_name("brats21", prefix + brats) == ("t1ce", "brats21/BraTS2021_00007")
    assert told_by_name("luna16", prefix + luna) == ("ct", f"luna16/{UID}.5")
