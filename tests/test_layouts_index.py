"""The command `index` with `--layout` and `--root`."""

import json
from pathlib import Path

import pytest

import dae3d
from dae3d.errors import Dae3dError
from dicom_files import evenly, write_series
from layout_trees import plant

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001"


def test_the_four_modalities_of_a_subject_stay_together(tmp_path: Path) -> None:
    for case in range(8):
        folder = f"BraTS2021_{case:05}/BraTS2021_{case:05}"
        plant(
            tmp_path / "brats", *(f"{folder}_{kind}.nii.gz" for kind in ("flair", "t1", "t1ce", "t2", "seg"))
        )
    manifest = dae3d.index(
        folders=[tmp_path / "brats"], layout="brats21", out=tmp_path / "m.jsonl", val_fraction=0.25
    )
    sides: dict[str, set[str]] = {}
    for scan in manifest.scans:
        sides.setdefault(scan.subject, set()).add(scan.split)
    assert len(manifest.scans) == 32
    assert len(sides) == 8
    assert all(len(own) == 1 for own in sides.values())
    assert {side for own in sides.values() for side in own} == {"train", "val"}
    assert {scan.dataset for scan in manifest.scans} == {"brats21"}
    assert sum(left.files for left in manifest.left_out) == 8


def test_channels_of_a_task_are_volumes_of_one_file(tmp_path: Path) -> None:
    home = tmp_path / "Task05_Prostate"
    plant(home, "imagesTr/prostate_00.nii.gz", channels=2)
    content = {"modality": {"0": "T2", "1": "ADC"}, "training": [{"image": "./imagesTr/prostate_00.nii.gz"}]}
    (home / "dataset.json").write_text(json.dumps(content))
    manifest = dae3d.index(folders=[tmp_path], layout="decathlon", out=tmp_path / "m.jsonl")
    assert [(scan.modality, scan.volume, scan.shape) for scan in manifest.scans] == [
        ("t2", 0, (8, 8, 8)),
        ("adc", 1, (8, 8, 8)),
    ]
    assert {scan.subject for scan in manifest.scans} == {"Task05_Prostate/prostate_00"}


def test_a_wrong_layout_writes_no_manifest(tmp_path: Path) -> None:
    plant(tmp_path / "scans", "sub-1_T1w.nii.gz")
    with pytest.raises(
        Dae3dError, match=r"no scan of LUNA16 was found\nexpected:\n[^$]*found:\n  sub-1_T1w\.nii\.gz"
    ):
        dae3d.index(folders=[tmp_path / "scans"], layout="luna16", out=tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()


def test_published_lists_over_the_released_folders(tmp_path: Path) -> None:
    luna = plant(tmp_path / "luna", f"subset0/{UID}.1.mhd", f"subset1/{UID}.2.mhd")
    covid = plant(tmp_path / "covid", "data/volume-covid19-A-0001.nii.gz")
    jsons = tmp_path / "jsons"
    jsons.mkdir()
    first, second = ({"image": f"subset_{i}/{UID}.{i + 1}.nii.gz"} for i in range(2))
    (jsons / "dataset_LUNA16_0.json").write_text(json.dumps({"training": [first], "validation": [second]}))
    third = {"image": "data/volume-covid19-A-0001.nii.gz"}
    (jsons / "dataset_TCIAcovid19_0.json").write_text(json.dumps({"training": [third], "validation": []}))
    manifest = dae3d.index(
        folders=[jsons / "dataset_LUNA16_0.json", jsons / "dataset_TCIAcovid19_0.json"],
        root={"luna16": luna, "covid19": covid},
        out=tmp_path / "m.jsonl",
        val_fraction=0,
    )
    assert [(scan.path.name, scan.dataset, scan.modality, scan.split) for scan in manifest.scans] == [
        (f"{UID}.1.mhd", "luna16", "ct", "train"),
        (f"{UID}.2.mhd", "luna16", "ct", "val"),
        ("volume-covid19-A-0001.nii.gz", "covid19", "ct", "train"),
    ]


def test_a_collection_of_dicom_series_as_its_archive_lays_it_out(tmp_path: Path) -> None:
    root = plant(tmp_path / "hnscc", "LICENSE", "manifest-1603198545583/metadata.csv")
    patient = root / "manifest-1603198545583" / "HNSCC" / "HNSCC-01-0001"
    for modality, series in (("CT", "2.000000-CT-90001"), ("PT", "4.000000-PET-90002")):
        folder = patient / "02-14-1998-NA-NeckHeadNeckPETCT-12345" / series
        write_series(folder, evenly(12), modality, PatientID="HNSCC-01-0001", StudyInstanceUID="1.2.3")
    manifest = dae3d.index(folders=[root], layout="hnscc", out=tmp_path / "m.jsonl", salt=salt(tmp_path))
    (scan,) = manifest.scans
    assert (scan.modality, len(scan.files)) == ("ct", 12)
    assert {left.reason: left.files for left in manifest.left_out} == {
        "pet: of HNSCC, only ct series are taken": 12,
        "not a scan: no ending that is known": 1,
        "not a scan: .csv": 1,
    }


def test_a_collection_without_dicom_files(tmp_path: Path) -> None:
    plant(tmp_path / "lidc", "LIDC-XML-only/tcia-lidc-xml/157/158.xml", "manifest.tcia")
    with pytest.raises(Dae3dError, match=r"no scan of LIDC-IDRI was found\nexpected:\n[^$]*LIDC-IDRI-0001/"):
        dae3d.index(
            folders=[tmp_path / "lidc"], layout="lidc-idri", out=tmp_path / "m.jsonl", salt=salt(tmp_path)
        )


def salt(folder: Path) -> Path:
    (folder / "salt").write_bytes(bytes(range(32)))
    return folder / "salt"
