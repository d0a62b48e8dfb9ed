"""The command `index` on Decathlon-style lists."""

import json
from pathlib import Path

import pytest

import dae3d
from dae3d.errors import Dae3dError
from dae3d.scans.manifest import Manifest
from indexed import modalities, reasons, write_scan


def write_list(path: Path, **content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def run(*sources: Path, **settings) -> Manifest:
    return dae3d.index(folders=list(sources), out=sources[0].parent / "out" / "m.json", **settings)


def splits(manifest: Manifest) -> dict[str, str]:
    return {scan.path.name: scan.split for scan in manifest.scans}


def entry(name: str, **more: object) -> dict[str, object]:
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz", **more}


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A folder with images a, b, c, d and the label of a."""
    for name in "abcd":
        write_scan(tmp_path / "task" / "imagesTr" / f"{name}.nii.gz")
    write_scan(tmp_path / "task" / "labelsTr" / "a.nii.gz")
    return tmp_path / "task"


def test_training_and_validation_are_kept(task: Path) -> None:
    path = write_list(
        task / "dataset.json",
        name="Task09_Spleen",
        modality={"0": "CT"},
        labels={"0": "background", "1": "spleen"},
        training=[entry("a"), "imagesTr/b.nii.gz"],
        validation=[entry("c", modality="CBCT"), entry("gone")],
        test=["./imagesTr/d.nii.gz"],
    )
    manifest = run(path, val_fraction=0.9)
    assert splits(manifest) == {"a.nii.gz": "train", "b.nii.gz": "train", "c.nii.gz": "val"}
    assert modalities(manifest) == {"a.nii.gz": "ct", "b.nii.gz": "ct", "c.nii.gz": "cbct"}
    assert {scan.dataset for scan in manifest.scans} == {"Task09_Spleen"}
    assert [scan.subject for scan in manifest.scans] == [f"task/imagesTr/{name}" for name in "abc"]
    assert reasons(manifest) == {"gone.nii.gz": "missing file"}


@pytest.mark.parametrize("key", ["val", "valid", "Validation"])
def test_other_names_of_what_is_held_out(task: Path, key: str) -> None:
    path = write_list(
        task / "l.json", modality="CT", **{"training": [entry("a"), entry("b")], key: [entry("c")]}
    )
    manifest = run(path, val_fraction=0.9)
    assert splits(manifest) == {"a.nii.gz": "train", "b.nii.gz": "train", "c.nii.gz": "val"}


def test_keys_that_hold_scans_and_are_not_read_are_said(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {"training": [entry("a")], "held_out": [entry("b"), entry("c")], "extra": ["imagesTr/d.nii.gz"]}
    other = {"authors": ["A", "B"], "sizes": [1, 2], "numbers": [{"n": 1}], "val": 0.2}
    run(write_list(task / "l.json", modality="CT", **content, **other))
    assert (
        "l.json: `held_out` holds 2 scans but is not read; the known keys are `training`, `validation`"
        in caplog.text
    )
    assert "`extra` holds 1 scans" in caplog.text
    assert not any(f"`{key}`" in caplog.text for key in other)


def test_one_part_under_two_names(task: Path) -> None:
    path = write_list(task / "l.json", training=[entry("a")], val=[entry("b")], validation=[entry("c")])
    with pytest.raises(
        Dae3dError, match=r"l\.json: `val` and `validation` mean the same, and both have entries"
    ):
        run(path, modality="ct")
    # An empty one is in nobody's way.
    path = write_list(task / "l.json", training=[entry("a")], val=[entry("b")], validation=[])
    assert splits(run(path, modality="ct")) == {"a.nii.gz": "train", "b.nii.gz": "val"}


def test_folds(task: Path) -> None:
    path = write_list(
        task / "folds.json",
        training=[entry("a", fold=0), entry("b", fold=1), entry("c", fold=1), entry("d")],
    )
    first = run(path, modality="ct")
    assert splits(first) == {"a.nii.gz": "val", "b.nii.gz": "train", "c.nii.gz": "train", "d.nii.gz": "train"}
    assert {scan.dataset for scan in first.scans} == {"folds"}
    second = run(path, modality="ct", fold=1)
    assert [name for name, split in splits(second).items() if split == "val"] == ["b.nii.gz", "c.nii.gz"]
    with pytest.raises(Dae3dError, match=r"folds\.json: no entry has fold 4; there are: 0, 1"):
        run(path, modality="ct", fold=4)


def test_a_list_that_holds_nothing_out_leaves_the_split_open(task: Path) -> None:
    path = write_list(task / "dataset.json", training=[entry(name) for name in "abcd"])
    sides = list(splits(run(path, modality="ct", val_fraction=1e-9)).values())
    assert sorted(sides) == ["train", "train", "train", "val"]


def test_channels_are_scans_of_one_subject(tmp_path: Path) -> None:
    names = [f"{sequence}_case{number}.nii.gz" for number in range(2) for sequence in ("first", "second")]
    for name in names:
        write_scan(tmp_path / "task" / name)
    path = write_list(
        tmp_path / "task" / "dataset.json",
        modality={"0": "FLAIR", "1": "t1gd"},
        training=[{"image": names[:2]}, {"image": names[2:], "subject": 17}],
    )
    manifest = run(path)
    assert modalities(manifest) == dict(zip(names, ["flair", "t1ce"] * 2, strict=True))
    assert [scan.subject for scan in manifest.scans] == ["task/first_case0"] * 2 + ["17"] * 2


def test_one_file_of_several_channels_has_no_modality(task: Path) -> None:
    path = write_list(
        task / "dataset.json", modality={"0": "T2", "1": "ADC"}, training=[entry("a"), entry("b")]
    )
    with pytest.raises(Dae3dError, match="none of the files found can be used"):
        run(path)


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ({"modality": "T1w"}, "t1"),
        ({"class": "MRI"}, "mr"),
        ({"modality": "FLAIR", "class": "ct"}, "flair"),
        ({"modality": ["PD"]}, "pd"),
        ({"class": 3}, "ct"),
        ({}, "ct"),
    ],
)
def test_an_entrys_word_goes_before_the_lists(task: Path, said: dict, label: str) -> None:
    path = write_list(task / "dataset.json", modality="CT", training=[entry("a", **said)])
    assert modalities(run(path)) == {"a.nii.gz": label}


def test_the_users_word_goes_before_a_lists(task: Path) -> None:
    path = write_list(task / "dataset.json", modality="CT", training=[entry("a"), entry("b")])
    assert modalities(run(path, modality="mr", rule=["imagesTr/b*=t2"])) == {
        "a.nii.gz": "mr",
        "b.nii.gz": "t2",
    }


def test_a_word_that_is_no_label_is_told_unless_the_user_says_it(
    task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    venous = "CT (portal venous)"
    path = write_list(task / "list.json", training=[entry("a", modality=venous), entry("b", modality="MRI")])
    manifest = run(path)
    assert modalities(manifest) == {"b.nii.gz": "mr"}
    assert reasons(manifest) == {"a.nii.gz": f"unknown modality: called '{venous}'"}
    assert "--rule 'task/imagesTr/*=LABEL'" in capsys.readouterr().out
    assert modalities(run(path, rule=["*/a.*=ct"])) == {"a.nii.gz": "ct", "b.nii.gz": "mr"}
    assert modalities(run(path, modality="ct")) == {"a.nii.gz": "ct", "b.nii.gz": "ct"}


def test_a_subject_on_both_sides_is_held_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x_t1", "x_t2", "y_t1", "y_t2"):
        write_scan(tmp_path / "task" / f"{name}.nii.gz")
    path = write_list(
        tmp_path / "task" / "list.json",
        training=["x_t1.nii.gz", "y_t1.nii.gz", "y_t2.nii.gz"],
        validation=["x_t2.nii.gz"],
    )
    manifest = run(path, modality="mr")
    assert splits(manifest) == {
        "x_t1.nii.gz": "val", "y_t1.nii.gz": "train", "y_t2.nii.gz": "train", "x_t2.nii.gz": "val"
    }  # fmt: skip
    assert "held out, because lists have them in both splits: task/x\n" in capsys.readouterr().out


def test_a_list_beside_its_folder_says_more_and_leaks_nothing(tmp_path: Path) -> None:
    for name in ("x_t1", "x_t2", "y_t1"):
        write_scan(tmp_path / "data" / "scans" / f"{name}.nii.gz")
    path = write_list(tmp_path / "data" / "lists" / "val.json", validation=["../scans/x_t1.nii.gz"])
    manifest = run(tmp_path / "data", path, modality="mr", val_fraction=0)
    assert splits(manifest) == {"x_t1.nii.gz": "val", "x_t2.nii.gz": "val", "y_t1.nii.gz": "train"}


def test_two_lists_of_one_file_hold_it_out(task: Path) -> None:
    first = write_list(task / "one.json", training=[entry("a"), entry("b")], validation=[entry("c")])
    second = write_list(task / "two.json", training=[entry("c")], validation=[entry("a")])
    for order in ((first, second), (second, first)):
        sides = splits(run(*order, modality="ct"))
        assert sides == {"a.nii.gz": "val", "b.nii.gz": "train", "c.nii.gz": "val"}


def test_files_outside_the_lists_folder_keep_their_folders_apart(tmp_path: Path) -> None:
    for site in ("north", "south"):
        write_scan(tmp_path / "data" / site / "case1" / "ct.nii.gz")
    path = write_list(
        tmp_path / "lists" / "all.json",
        training=["../data/north/case1/ct.nii.gz", str(tmp_path / "data" / "south" / "case1" / "ct.nii.gz")],
    )
    assert [scan.subject for scan in run(path, modality="ct").scans] == [
        "data/north/case1",
        "data/south/case1",
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not a list of scans: Invalid JSON"),
        ('["a.nii.gz"]', "not a list of scans"),
        ('{"channel_names": {"0": "T2"}}', "neither `training` nor `validation`"),
        ('{"training": [{"label": "a.nii.gz"}]}', r"training\.0\.image: Field required"),
        ('{"training": ["a.nii.gz", {"image": 3}]}', r"training\.1\.image"),
        ('{"training": {"image": "a"}}', "training: "),
        (
            '{"training": [{"image": ["a", "b"], "modality": ["ct"]}]}',
            "entry of a: 1 modalities for 2 images",
        ),
    ],
)
def test_what_is_no_list(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(Dae3dError, match=rf"list\.json: .*{named}"):
        run(path)
