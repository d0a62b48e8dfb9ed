"""The command `index` on folders of small files: what is found, what is left out, what is said."""

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import dae3d
from dae3d.cli import main
from dae3d.errors import Dae3dError, SettingsError
from dae3d.scans.manifest import Manifest
from dae3d.scans.splits import hash01
from indexed import modalities, reasons, run, write_scan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "dataset1"
    made.mkdir()
    return made


def test_what_a_manifest_says_of_a_scan(folder: Path) -> None:
    path = write_scan(folder / "sub-07" / "anat" / "sub-07_T1w.nii.gz")
    manifest = run(folder)
    (scan,) = manifest.scans
    assert (scan.path, scan.modality, scan.subject, scan.dataset) == (
        path,
        "t1",
        "dataset1/sub-07",
        "dataset1",
    )
    assert (scan.shape, scan.spacing, scan.dtype) == ((16, 17, 18), (1, 2, 3), "uint8")
    assert (scan.orientation, scan.split, scan.digest) == ("LPS", "train", None)
    assert list(Manifest.load(folder.parent / "manifest.json").scans) == [scan]


def test_a_modality_is_never_guessed_from_part_of_a_path(folder: Path) -> None:
    write_scan(folder / "x.nii.gz")
    write_scan(folder / "t1" / "ct_scan_T1.nii.gz")
    write_scan(folder / "patient03_study2_FLAIR.nii.gz")
    write_scan(folder / "sub-1_T2w.nii.gz")
    manifest = run(folder)
    assert modalities(manifest) == {"sub-1_T2w.nii.gz": "t2"}
    assert set(reasons(manifest).values()) == {"unknown modality"}
    assert len(reasons(manifest)) == 3


def test_rules_come_first_then_the_option_then_bids(folder: Path) -> None:
    for name in ("sub-1_T1w", "sub-2_T1w", "odd/sub-3_T1w", "y"):
        write_scan(folder / f"{name}.nii.gz")
    ruled = run(folder, rule=["odd/*=odd", "*-[23]*=two"])
    assert modalities(ruled) == {
        "sub-1_T1w.nii.gz": "t1",
        "sub-2_T1w.nii.gz": "two",
        "sub-3_T1w.nii.gz": "odd",
    }
    both = run(folder, rule=["odd/*=odd"], modality="CT")
    assert modalities(both) == {
        "sub-1_T1w.nii.gz": "ct",
        "sub-2_T1w.nii.gz": "ct",
        "sub-3_T1w.nii.gz": "odd",
        "y.nii.gz": "ct",
    }


def test_a_rule_may_begin_with_the_folder_given(tmp_path: Path) -> None:
    write_scan(tmp_path / "lidc" / "a.nii.gz")
    write_scan(tmp_path / "brats" / "b.nii.gz")
    manifest = run(tmp_path / "lidc", tmp_path / "brats", rule=["lidc/*=ct", "brats/*=t1"])
    assert modalities(manifest) == {"a.nii.gz": "ct", "b.nii.gz": "t1"}


def test_what_is_left_out_and_why(folder: Path) -> None:
    write_scan(folder / "good.nii.gz")
    write_scan(folder / "four.nii.gz", (16, 16, 16, 2))
    write_scan(folder / "two.nii.gz", (16, 16))
    write_scan(folder / "localiser.nii.gz", (256, 256, 3))
    write_scan(folder / "seg" / "mask.nii.gz")
    (folder / "broken.nii.gz").write_text("no scan")
    (folder / "gone.nii.gz").symlink_to(folder / "nowhere.nii.gz")
    (folder / "zlink.nii.gz").symlink_to(folder / "good.nii.gz")
    manifest = run(folder, modality="ct", exclude=["seg/*"])
    assert modalities(manifest) == {"good.nii.gz": "ct"}
    found = reasons(manifest)
    assert found.pop("broken.nii.gz").startswith("unreadable: ")
    assert found == {
        "four.nii.gz": "4-D: shape 16x16x16x2",
        "two.nii.gz": "2-D: shape 16x16",
        "localiser.nii.gz": "fewer than 8 voxels along an axis (--min-slices): shape 256x256x3",
        "mask.nii.gz": "excluded: seg/*",
        "gone.nii.gz": "missing file",
        "zlink.nii.gz": f"same file as another: {folder / 'good.nii.gz'}",
    }


def test_thin_stacks_are_kept_on_request(folder: Path) -> None:
    write_scan(folder / "thin.nii.gz", (64, 64, 5))
    assert modalities(run(folder, modality="ct", min_slices=5)) == {"thin.nii.gz": "ct"}


def test_only_scans_are_listed_and_hidden_folders_are_not_entered(folder: Path) -> None:
    image = sitk.Image([16, 16, 16], sitk.sitkInt16)
    sitk.WriteImage(image, str(folder / "pair.mhd"))
    sitk.WriteImage(image, str(folder / "b.nrrd"))
    nibabel.save(nibabel.Nifti1Pair(np.zeros((16, 16, 16), np.uint8), np.eye(4)), folder / "pair.hdr")
    nibabel.save(nibabel.MGHImage(np.zeros((16, 16, 16), np.uint8), np.eye(4)), folder / "c.mgz")
    write_scan(folder / ".cache" / "hidden.nii.gz")
    write_scan(folder / "._a.nii.gz")
    write_scan(folder / "A.NII")
    manifest = run(folder, modality="ct")
    assert [scan.path.name for scan in manifest.scans] == ["A.NII", "b.nrrd", "c.mgz", "pair.hdr", "pair.mhd"]
    assert not manifest.left_out


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write_scan(tmp_path / "far" / "a.nii.gz")
    root = tmp_path / "root"
    write_scan(root / "b.nii.gz")
    (root / "link").symlink_to(tmp_path / "far")
    (root / "same").symlink_to(tmp_path / "far")
    (root / "loop").symlink_to(root)
    (tmp_path / "far" / "back").symlink_to(root)
    manifest = run(root, modality="ct")
    assert [scan.path for scan in manifest.scans] == [root / "b.nii.gz", root / "link" / "a.nii.gz"]


def test_a_file_reached_twice_is_indexed_once(folder: Path) -> None:
    path = write_scan(folder / "a" / "x.nii.gz")
    manifest = run(folder, folder / "a", folder / "a" / ".." / "a", path, modality="ct")
    assert [scan.path for scan in manifest.scans] == [path]
    assert not manifest.left_out


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_that_cannot_be_listed_is_left_out(folder: Path) -> None:
    write_scan(folder / "a.nii.gz")
    locked = write_scan(folder / "locked" / "b.nii.gz").parent
    locked.chmod(0)
    manifest = run(folder, modality="ct")
    locked.chmod(0o700)
    assert reasons(manifest) == {"locked": "unreadable: Permission denied"}


def brats(folder: Path, cases: range) -> None:
    for number in cases:
        for sequence in ("t1", "t1ce", "t2", "flair"):
            case = f"BraTS2021_{number:05d}"
            write_scan(folder / case / f"{case}_{sequence}.nii.gz")


BRATS = ["*_t1.nii.gz=t1", "*_t1ce.nii.gz=t1ce", "*_t2.nii.gz=t2", "*_flair.nii.gz=flair"]


def test_subjects_never_straddle_and_additions_move_nobody(folder: Path) -> None:
    brats(folder, range(10))
    before = run(folder, rule=BRATS, val_fraction=0.3)
    brats(folder, range(10, 20))
    after = run(folder, rule=BRATS, val_fraction=0.3)
    assert len(before.scans) == 40
    assert len({scan.subject for scan in before.scans}) == 10
    for manifest in (before, after):
        sides = {(scan.subject, scan.split) for scan in manifest.scans}
        assert len(sides) == len({scan.subject for scan in manifest.scans})
        assert {split for _, split in sides} == {"train", "val"}
    assert {(s.path, s.split) for s in before.scans} < {(s.path, s.split) for s in after.scans}


def test_splits_do_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    brats(tmp_path / "here" / "brats", range(12))
    brats(tmp_path / "there" / "deep" / "brats", range(12))
    one, other = (
        run(place, rule=BRATS, val_fraction=0.3)
        for place in (tmp_path / "here" / "brats", tmp_path / "there" / "deep" / "brats")
    )
    assert [(s.subject, s.split) for s in one.scans] == [(s.subject, s.split) for s in other.scans]


def test_few_scans_are_held_out_by_their_number_and_what_is_odd_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_scan(folder / f"head{number}_t1.nii.gz")
        write_scan(folder / f"chest{number}_ct.nii.gz")
    write_scan(folder / "single_pet.nii.gz")
    rules = ["*_t1*=t1", "*_ct*=ct", "*_pet*=pet"]
    manifest = run(folder, rule=rules, val_fraction=1e-9)
    assert [scan.modality for scan in manifest.scans if scan.split == "val"] == ["ct"]
    assert "nothing held out for pet, t1: too few subjects" in capsys.readouterr().out
    # 0.29 of 7 are two: one each, and never the only one of a modality.
    manifest = run(folder, rule=rules, val_fraction=0.29)
    trained = {scan.modality for scan in manifest.scans if scan.split == "train"}
    assert trained == {"ct", "pet", "t1"}
    assert {scan.split for scan in run(folder, rule=rules, val_fraction=0).scans} == {"train"}


def test_a_share_far_from_what_was_asked_for_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A patient of 20 scans among 11 of one scan each, held out by 5 %."""
    for number in range(20):
        write_scan(folder / "many" / f"{number}.nii.gz")
    for number in range(11):
        write_scan(folder / f"p{number}" / "0.nii.gz")
    seed = next(
        seed
        for seed in range(1000)
        if hash01(seed, "many") < 0.05 and all(hash01(seed, f"p{number}") >= 0.05 for number in range(11))
    )
    run(folder, modality="ct", subject="^(many|p[0-9]+)/", seed=seed)
    assert "20 of 31 scans are held out, 65%, but 5% were asked for" in capsys.readouterr().out


def test_subjects_by_regular_expression(tmp_path: Path) -> None:
    for name in ("T1/a_1.nii.gz", "T1/b_1.nii.gz", "late/a_2.nii.gz", "late/odd.nii.gz"):
        write_scan(tmp_path / "d" / name)
    manifest = run(tmp_path / "d", modality="t1", subject=r"/([ab])_")
    assert [scan.subject for scan in manifest.scans] == ["a", "b", "a", "d/late/odd"]


def test_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        write_scan(folder / f"case{number}_flair.nii.gz")
    write_scan(folder / "labels" / "mask.nii.gz")
    out = folder.parent / "m.json"
    arguments = ["--rule", "case*=flair", "*.mha=ct", "--out", str(out), "--val-fraction", "0.5"]
    assert main(["index", str(folder), *arguments]) == 0
    shown = capsys.readouterr().out
    for words in ("flair", "left out", "unknown modality", "--rule 'dataset1/labels/*=LABEL'", str(out)):
        assert words in shown
    assert len(Manifest.load(out).scans) == 3


def test_unknown_scans_are_met_with_rules_that_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write_scan(folder / f"case{number}" / "T1GD.nii.gz")
        write_scan(folder / f"case{number}_FLAIR.nii.gz")
    write_scan(folder / "odd [1]" / "scan.nii.gz")
    out = folder.parent / "m.json"
    assert main(["index", str(folder), "--out", str(out)]) == 1
    shown, error = capsys.readouterr()
    assert "no manifest was written" in error
    assert not out.exists()
    lines = [line.strip() for line in shown.splitlines() if "--rule" in line]
    assert "--rule T1GD.nii.gz=t1ce  (2 of them)" in lines
    rules = [line.removeprefix("--rule ").rpartition("  (")[0].strip("'") for line in lines]
    manifest = run(folder, rule=rules)
    assert sorted(scan.modality for scan in manifest.scans) == ["flair", "flair", "label", "t1ce", "t1ce"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rule": ["scans"]}, "rule: 'scans' is not GLOB=LABEL"),
        ({"modality": "two words"}, "modality: 'two words' is not a modality label"),
        ({"subject": "case[0-9]+"}, "subject: the regular expression needs a group"),
        ({"subject": "(case"}, "subject: not a regular expression"),
        ({"val_fraction": 1.0}, "val_fraction: "),
        ({"min_slices": 0}, "min_slices: "),
        ({"root": {"luna16": "."}}, "root: no list given is called 'luna16'"),
        ({"layout": "luna"}, "layout: "),
        ({"workers": 0}, "workers: "),
    ],
)
def test_bad_settings_are_named(folder: Path, settings: dict, named: str) -> None:
    with pytest.raises(SettingsError) as error:
        run(folder, **settings)
    assert str(error.value).startswith(named)


def test_nothing_to_index_is_an_error(folder: Path) -> None:
    (folder / "notes.txt").touch()
    with pytest.raises(Dae3dError, match=r"no scans in .*dataset1.*\.nii\.gz.*\.mhd"):
        run(folder)
    with pytest.raises(Dae3dError, match="nowhere: no such folder"):
        run(folder / "nowhere")
    with pytest.raises(Dae3dError, match=r"notes\.txt: not a folder, a \.json list, a DICOM file or a file"):
        run(folder / "notes.txt")
    with pytest.raises(SettingsError, match="folders"):
        dae3d.index(folders=[])
    path = write_scan(folder / "a.nii.gz")
    with pytest.raises(Dae3dError, match="layout: luna16 is for folders"):
        run(path, layout="luna16")
    with pytest.raises(Dae3dError, match=r"out: .* is a folder"):
        dae3d.index(folders=[folder], out=folder, modality="ct")


def test_a_path_that_is_not_in_utf8_is_left_out_and_written_readably(tmp_path: Path) -> None:
    good = write_scan(tmp_path / "in" / "ok_t1.nii.gz")
    bad = os.fsencode(tmp_path / "in") + b"/caf\xe9_t1.nii.gz"
    with open(bad, "wb") as file:
        file.write(good.read_bytes())
    manifest = dae3d.index(folders=[tmp_path / "in"], modality="t1", out=tmp_path / "manifest.jsonl")
    (left_out,) = manifest.left_out
    assert [scan.path for scan in manifest.scans] == [good]
    assert left_out.path.name == r"caf\xe9_t1.nii.gz"
    assert "UTF-8" in left_out.reason


@pytest.mark.parametrize("name", ["list.json", "scan.nii.gz", "notes.md"])
def test_what_is_no_manifest_is_not_written_over(tmp_path: Path, name: str) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz")
    there = tmp_path / name
    there.write_text('{"training": []}')
    with pytest.raises(Dae3dError, match=f"{name} exists and is not a manifest"):
        dae3d.index(folders=[tmp_path / "in"], modality="t1", out=there)
    assert there.read_text() == '{"training": []}'


def test_a_manifest_is_written_over_an_earlier_version_s_too(tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz")
    there = tmp_path / "manifest.json"
    there.write_text('{\n "version": 1,\n "scans": [],\n "left_out": []\n}\n')
    for _ in range(2):
        assert len(dae3d.index(folders=[tmp_path / "in"], modality="t1", out=there).scans) == 1
