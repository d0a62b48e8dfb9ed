"""The command `index` on 4-D files: time series and channels."""

import json
from pathlib import Path

import pytest

import dae3d
from dae3d.cli import main
from dae3d.errors import SettingsError
from dae3d.scans.manifest import Manifest
from indexed import reasons, run, write_scan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A time series of 5 volumes, a scan of 3 channels and a plain one."""
    write_scan(tmp_path / "data" / "case1" / "bold.nii.gz", (16, 17, 18, 5))
    write_scan(tmp_path / "data" / "case2" / "multi.nii.gz", (16, 17, 18, 3))
    write_scan(tmp_path / "data" / "case3" / "plain.nii.gz", (16, 17, 18))
    return tmp_path / "data"


def volumes(manifest: Manifest) -> dict[str, list[int | None]]:
    found: dict[str, list[int | None]] = {}
    for scan in manifest.scans:
        assert scan.shape == (16, 17, 18)
        found.setdefault(scan.path.name, []).append(scan.volume)
    return found


def test_they_are_left_out_unless_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = run(folder, modality="mr")
    assert volumes(manifest) == {"plain.nii.gz": [None]}
    assert reasons(manifest) == {
        "bold.nii.gz": "4-D: shape 16x17x18x5",
        "multi.nii.gz": "4-D: shape 16x17x18x3",
    }
    assert "note: 4-D files: --volume takes one volume, or all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("volume", "bold", "multi"),
    [("first", [0], [0]), ("middle", [2], [1]), ("all", [0, 1, 2, 3, 4], [0, 1, 2]), (2, [2], [2])],
)
def test_volumes_of_a_time_series(folder: Path, volume: str | int, bold: list, multi: list) -> None:
    manifest = run(folder, modality="mr", volume=volume)
    assert volumes(manifest) == {"bold.nii.gz": bold, "multi.nii.gz": multi, "plain.nii.gz": [None]}
    assert len({scan.name for scan in manifest.scans}) == len(manifest.scans)
    assert len({scan.subject for scan in manifest.scans}) == 3


def test_a_volume_that_only_some_have(folder: Path) -> None:
    manifest = run(folder, modality="mr", volume=4)
    assert volumes(manifest) == {"bold.nii.gz": [4], "plain.nii.gz": [None]}
    assert reasons(manifest) == {"multi.nii.gz": "no volume 4: it has 3, counted from 0"}


def test_channels_are_scans_of_their_labels(folder: Path) -> None:
    manifest = run(folder, rule=["*/plain*=ct"], channels=["T1", "t1ce", "flair"])
    found = [(scan.path.name, scan.volume, scan.modality, scan.subject) for scan in manifest.scans]
    assert found == [
        ("multi.nii.gz", 0, "t1", "data/case2/multi"),
        ("multi.nii.gz", 1, "t1ce", "data/case2/multi"),
        ("multi.nii.gz", 2, "flair", "data/case2/multi"),
        ("plain.nii.gz", None, "ct", "data/case3/plain"),
    ]
    assert reasons(manifest) == {"bold.nii.gz": "4-D: 5 volumes, but --channels names 3"}


def test_a_time_series_of_unknown_modality_is_left_out_once(folder: Path) -> None:
    manifest = run(folder, rule=["*/plain*=ct"], volume="all")
    assert reasons(manifest) == dict.fromkeys(["bold.nii.gz", "multi.nii.gz"], "unknown modality")
    assert len(manifest.left_out) == 2


def test_a_layouts_channels_that_are_not_there(tmp_path: Path) -> None:
    task = tmp_path / "Task01_X"
    write_scan(task / "imagesTr" / "whole.nii.gz", (16, 17, 18, 3))
    write_scan(task / "imagesTr" / "short.nii.gz", (16, 17, 18, 2))
    write_scan(task / "imagesTr" / "flat.nii.gz")
    images = [{"image": f"./imagesTr/{name}.nii.gz"} for name in ("whole", "short", "flat")]
    channels = {"0": "T1w", "1": "T2w", "2": "FLAIR"}
    (task / "dataset.json").write_text(json.dumps({"modality": channels, "training": images}))
    manifest = run(task, layout="decathlon")
    # Which of the channels a file with fewer volumes holds, nothing tells.
    assert volumes(manifest) == {"whole.nii.gz": [0, 1, 2]}
    assert {(item.path.name, item.reason) for item in manifest.left_out} == {
        ("flat.nii.gz", "has 1 volumes, but the list names 3 channels"),
        ("short.nii.gz", "has 2 volumes, but the list names 3 channels"),
    }


def test_on_the_command_line(folder: Path) -> None:
    out = folder.parent / "m.jsonl"
    for volume, count in (("none", 1), ("middle", 3), ("3", 2)):
        arguments = ["index", str(folder), "--out", str(out), "--modality", "mr", "--volume", volume]
        assert main(arguments) == 0
        assert len(Manifest.load(out).scans) == count


@pytest.mark.parametrize(
    "settings", [{"volume": "last"}, {"volume": -1}, {"channels": ["t1"]}, {"channels": ["two words", "t1"]}]
)
def test_bad_settings_are_named(folder: Path, settings: dict) -> None:
    with pytest.raises(SettingsError, match=f"^{next(iter(settings))}: "):
        dae3d.index(folders=[folder], **settings)
