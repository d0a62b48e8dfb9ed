"""Lists of labelled cases, in the ways in which data sets and tools write them."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dae3d.errors import Dae3dError
from dae3d.scans.task import Task, read_task
from dae3d.scans.task_labels import parse_labels

LABELS = {"0": "background", "1": "Anterior", "2": "Posterior"}


def write_task(folder: Path, **content: object) -> Path:
    """Write a list, and empty files for all that it names."""
    path = folder / "task.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for name in files_in(content):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return path


def files_in(content: object) -> list[str]:
    if isinstance(content, str):
        return [content] if content.endswith((".nii.gz", ".nii", ".dcm")) else []
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else []
    return [name for part in inner for name in files_in(part)]


def entry(name: str, **more: object) -> dict[str, object]:
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz", **more}


def names(cases) -> list[str]:
    return [case.name for case in cases]


def msd(folder: Path, **changes: object) -> Path:
    """As the Medical Segmentation Decathlon writes dataset.json."""
    content = {
        "name": "Hippocampus",
        "description": "Left and right hippocampus segmentation",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": 2,
        "training": [entry("hippocampus_367"), entry("hippocampus_304")],
        "test": ["./imagesTs/hippocampus_267.nii.gz"],
    } | changes
    return write_task(folder, **{key: value for key, value in content.items() if value is not None})


def test_a_list_of_the_decathlon(tmp_path):
    task = read_task(msd(tmp_path / "Task04"))
    root = tmp_path / "Task04"
    assert (task.name, task.modalities) == ("Hippocampus", ("mr",))
    assert task.labels == {0: "background", 1: "Anterior", 2: "Posterior"}
    assert names(task.training) == ["hippocampus_367", "hippocampus_304"]
    first = task.training[0]
    assert first.images == (root / "imagesTr" / "hippocampus_367.nii.gz",)
    assert first.label == root / "labelsTr" / "hippocampus_367.nii.gz"
    assert (first.subject, first.fold) == ("Task04/imagesTr/hippocampus_367", None)
    (test,) = task.split("test")
    assert (test.name, test.label) == ("hippocampus_267", None)
    # Nothing is said of validation, so one of the two subjects is held out, the same one every time.
    sides = task.split("training"), task.split("validation")
    assert sorted(names((*sides[0], *sides[1]))) == ["hippocampus_304", "hippocampus_367"]
    assert sides == task.sides() == read_task(task.path).sides()


def test_a_split_that_is_empty_is_an_error_that_says_what_there_is(tmp_path):
    task = read_task(msd(tmp_path, test=None, validation=[entry("hippocampus_001")]))
    with pytest.raises(Dae3dError, match=r"no cases under `test`; there are: training \(2\), .* test \(0\)"):
        task.split("test")


def test_a_lone_subject_cannot_be_validated_on(tmp_path):
    task = read_task(msd(tmp_path, training=[entry("hippocampus_367")]))
    with pytest.raises(Dae3dError, match="two subjects"):
        task.sides()


def brats(folder: Path, **more: object) -> Task:
    """As MONAI's BraTS tutorials write folds: four files a case, each case in a folder of its own."""
    cases = [
        {
            "fold": number % 3,
            "image": [f"BraTS_{number}/{sequence}.nii.gz" for sequence in ("flair", "t1ce", "t1", "t2")],
            "label": f"BraTS_{number}/seg.nii.gz",
        }
        for number in range(5)
    ]
    return write_task(folder, training=cases, labels={"0": "background", "1": "edema"}, **more)


def test_channels_and_folds(tmp_path):
    path = brats(tmp_path, modality={"0": "FLAIR", "1": "T1Gd", "2": "T1w", "3": "T2w"})
    task = read_task(path)
    assert task.name == "task"
    assert task.modalities == ("flair", "t1ce", "t1", "t2")
    # Every case's first image is called flair, so a case has its folder's name too.
    assert names(task.training) == [f"BraTS_{number}_flair" for number in range(5)]
    assert {case.subject for case in task.training} == {f"{tmp_path.name}/BraTS_{n}" for n in range(5)}
    assert [file.name for file in task.training[0].images] == [
        "flair.nii.gz", "t1ce.nii.gz", "t1.nii.gz", "t2.nii.gz"
    ]  # fmt: skip
    train, held_out = task.fold(1)
    assert [case.fold for case in train] == [0, 2, 0]
    assert [case.fold for case in held_out] == [1, 1]
    with pytest.raises(Dae3dError, match="has fold 3; there are: 0, 1, 2"):
        task.fold(3)


def test_a_fold_holds_out_the_validation_cases_too(tmp_path):
    path = msd(tmp_path, training=[entry("a", fold=0), entry("b", fold=1)], validation=[entry("c")])
    train, held_out = read_task(path).fold(0)
    assert (names(train), names(held_out)) == (["b"], ["a", "c"])


def test_folds_that_cannot_be(tmp_path):
    with pytest.raises(Dae3dError, match="entries have no `fold`"):
        read_task(msd(tmp_path)).fold(0)
    with pytest.raises(Dae3dError, match="nothing to train on"):
        read_task(msd(tmp_path, training=[entry("a", fold=0)])).fold(0)


def test_modalities_given_go_before_the_lists(tmp_path):
    assert read_task(msd(tmp_path), modality=["T1w"]).modalities == ("t1",)
    assert read_task(brats(tmp_path), modality=["FLAIR", "t1ce", "t1", "t2"]).modalities[0] == "flair"
    with pytest.raises(Dae3dError, match=r"training\[0\] .*: 1 modalities for 4 images"):
        read_task(brats(tmp_path), modality=["ct"])


def test_modalities_in_another_order_are_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        read_task(msd(tmp_path), modality=["mr"])
        assert not caplog.messages
        read_task(msd(tmp_path), modality=["t1"])
    assert "its modalities are MRI, but are treated as t1" in caplog.text


def test_a_modality_that_is_no_label_can_be_given(tmp_path, caplog):
    path = msd(tmp_path, modality={"0": "CT (portal venous)"})
    with pytest.raises(Dae3dError, match=r"'CT \(portal venous\)' is not a modality label.*give --modality"):
        read_task(path)
    with caplog.at_level(logging.WARNING):
        assert read_task(path, modality=["ct"]).modalities == ("ct",)
    assert "its modalities are CT (portal venous), but are treated as ct" in caplog.text


def test_channel_names_of_nnunet_are_modalities(tmp_path):
    path = msd(tmp_path, modality=None, channel_names={"0": "CT"}, labels={"background": 0, "spleen": 1})
    task = read_task(path)
    assert (task.modalities, task.labels) == (("ct",), {0: "background", 1: "spleen"})


def test_equal_names_are_told_apart_by_folders(tmp_path):
    path = msd(
        tmp_path,
        training=[
            {"image": "north/case1.nii.gz", "label": "north/seg1.nii.gz"},
            {"image": "south/case1.nii.gz", "label": "south/seg1.nii.gz"},
        ],
    )
    assert names(read_task(path).training) == ["north_case1", "south_case1"]


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "Anterior", "2": "Posterior"},
        {"2": "Posterior", "1": "Anterior"},
        {0: "background", 2: "Posterior", 1: "Anterior"},
        {"background": 0, "Posterior": 2, "Anterior": 1},
        {"Anterior": "1", "Posterior": "2"},
        ["background", "Anterior", "Posterior"],
    ],
)
def test_ways_to_write_labels(labels):
    parsed = parse_labels(labels)
    assert list(parsed.items()) == [(0, "background"), (1, "Anterior"), (2, "Posterior")]


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (None, r'is missing: .*"labels": \{"0": "background", "1": "spleen"\}'),
        ({}, "is missing"),
        ("spleen", "must map values to names"),
        ({"0": "background"}, "only the background"),
        ({"0": "background", "1": "a", "2": "a"}, "gives the name 'a' to several values"),
        ({"1": "a", "01": "b"}, "has one value twice"),
        ({"background": 0, "a": 1, "b": 1}, "gives one value to several names"),
        ({"background": 0, "whole tumour": [1, 2]}, "region 'whole tumour' of several values"),
        ({"background": 0, "a": 1.5}, "'a': 1.5, and neither is a whole number"),
        ({"-1": "a", "1": "b"}, "'-1': 'a', and neither is a whole number"),
        ({"0": "background", "1": ""}, "must give the value 1 a name, not ''"),
        ({"0": "background", "1": 7}, "must give the value 1 a name, not 7"),
        ({"background": 0, "ignore": 255}, "only the background"),
        ({"0": "background", "1": "a", "2": "ignore", "3": "ignore"}, "the name 'ignore' to one value"),
        ({"ignore": 0, "a": 1}, "'ignore' to one value, which is not 0"),
        ({str(value): f"class {value}" for value in range(256)}, "has 256 classes"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, why):
    with pytest.raises(Dae3dError, match=f"task\\.json: `labels` .*{why}"):
        read_task(msd(tmp_path, labels=labels))


@pytest.mark.parametrize("labels", [{"background": 0, "a": 1, "ignore": 2}, {"2": "ignore", "1": "a"}])
def test_the_value_to_ignore_is_not_a_class(tmp_path, labels):
    task = read_task(msd(tmp_path, labels=labels))
    assert (task.labels, task.ignore) == ({0: "background", 1: "a"}, 2)


@given(st.dictionaries(st.integers(0, 40_000), st.text("abc", min_size=1), min_size=1, max_size=20))
def test_labels_read_the_same_written_either_way(labels):
    """Law: values to names and names to values say the same, however JSON turns them."""
    named = {value: f"{name}{value}" for value, name in labels.items() if value} | {0: "background"}
    if len(named) < 2:
        return
    there = json.loads(json.dumps(named))
    back = json.loads(json.dumps({name: value for value, name in named.items()}))
    assert parse_labels(there) == parse_labels(back) == named
    assert [*parse_labels(back)] == sorted(named)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"training": [], "test": []}, "not a task: none of `training`, `validation`, `test` has entries"),
        ({"training": ["imagesTr/a.nii.gz"]}, r"training\[0\] \(imagesTr/a\.nii\.gz\): has no `label`"),
        ({"validation": [{"image": "a.nii.gz"}]}, r"validation\[0\] .*no `label`; .* for `test`"),
        ({"training": [{"label": "a.nii.gz"}]}, r".*training\.0\.image: Field required"),
        ({"training": [{"image": "a.nii.gz", "label": 3}]}, r".*training\.0\.label"),
        (
            {"training": [entry("a"), entry("b"), entry("a")]},
            r"training\[2\]: .*a\.nii\.gz is .* training\[0\]",
        ),
        ({"validation": [entry("hippocampus_304")]}, r"validation\[0\]: .* is an image of training\[1\]"),
        ({"training": [{"image": "a.dcm", "label": "b.nii"}]}, r"training\[0\]: .*a\.dcm: is not a scan"),
        ({"modality": None}, r"training\[0\] .*its modality is unknown.*--modality"),
        ({"modality": "two words"}, r"training\[0\] .*'two words' is not a modality label"),
        (
            {"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}},
            r"training\[0\] .*: 1 image\(s\), but the list has 4 channels; .*4-D",
        ),
        (
            {"training": [entry("a"), entry("b", modality="CT")]},
            r"training\[1\] .*: modalities ct, .* have mr",
        ),
        (
            {"training": [entry("a"), {"image": ["b.nii", "c.nii"], "label": "d.nii"}]},
            r"training\[1\] .*its modality is unknown",
        ),
    ],
)
def test_what_is_no_task(tmp_path, changes, why):
    path = msd(tmp_path, **changes)
    with pytest.raises(Dae3dError, match=rf"task\.json: {why}"):
        read_task(path)


def test_missing_files_are_named(tmp_path):
    task = read_task(msd(tmp_path, validation=[entry("hippocampus_001")]))
    (tmp_path / "labelsTr" / "hippocampus_304.nii.gz").unlink()
    with pytest.raises(
        Dae3dError,
        match=r"task\.json: training\[1\]: .*/labelsTr/hippocampus_304\.nii\.gz: no such file$",
    ):
        task.split("training")
    (tmp_path / "imagesTr" / "hippocampus_304.nii.gz").unlink()
    with pytest.raises(Dae3dError, match=r"imagesTr/.*304\.nii\.gz: no such file \(and 1 more missing\)"):
        task.split("training")
    with pytest.raises(Dae3dError, match=r"gone\.json: cannot be read: No such file"):
        read_task(tmp_path / "gone.json")


def test_an_entry_held_out_keeps_its_number_in_an_error(tmp_path):
    task = read_task(msd(tmp_path, training=[entry("a", fold=0), entry("b", fold=1)]))
    (tmp_path / "imagesTr" / "b.nii.gz").unlink()
    assert names(task.split("training", fold=1)) == ["a"]
    with pytest.raises(Dae3dError, match=r"training\[1\]: .*/imagesTr/b\.nii\.gz: no such file"):
        task.split("validation", fold=1)


def test_only_the_files_that_are_asked_for_need_be_there(tmp_path):
    """A machine that predicts may have the scans to test on alone, and no label at all."""
    test = ["imagesTs/c.nii.gz", {"image": "imagesTs/d.nii.gz", "label": "labelsTs/d.nii.gz"}]
    path = msd(tmp_path, validation=[entry("hippocampus_001")], test=test)
    for file in [*tmp_path.glob("*Tr/*"), *tmp_path.glob("labels*/*")]:
        file.unlink(missing_ok=True)
    task = read_task(path)
    assert names(task.split("test", labelled=False)) == ["c", "d"]
    with pytest.raises(Dae3dError, match=r"test\[1\]: .*/labelsTs/d\.nii\.gz: no such file$"):
        task.split("test")
    for side in ("training", "validation"):
        with pytest.raises(Dae3dError, match=rf"{side}\[0\]: .*/imagesTr/hippocampus_.*no such file"):
            task.split(side, labelled=False)


def test_a_subject_on_both_sides_is_said(tmp_path, caplog):
    path = msd(tmp_path, training=[entry("a", subject=7)], validation=[entry("b", subject="7")])
    with caplog.at_level(logging.WARNING):
        assert read_task(path).validation[0].subject == "7"
    assert "both in `training` and in `validation`, so results will be too good: 7" in caplog.text


def test_visits_of_a_patient_are_held_out_together(tmp_path, caplog):
    """Patients 01 to 20 of three visits each, told by nothing but their numbers."""
    visits = [entry(f"genius_{patient:02d}{visit:02d}") for patient in range(1, 21) for visit in range(3)]
    with caplog.at_level(logging.INFO, "dae3d"):
        train, held_out = read_task(msd(tmp_path, training=visits)).sides()
    patients = [{case.name[:9] for case in side} for side in (train, held_out)]
    assert len(patients[0] | patients[1]) == 20
    assert not patients[0] & patients[1]
    assert all(patients)
    assert "task.json: similar names are taken as one subject, 20 times: " in caplog.text


def test_the_parts_of_a_list_as_auto3dseg_calls_them(tmp_path, caplog):
    content = {"training": [entry("a"), entry("b")], "val": [entry("c")], "testing": [{"image": "d.nii.gz"}]}
    task = read_task(write_task(tmp_path, modality="CT", labels={"1": "spleen"}, **content))
    assert [names(side) for side in task.sides()] == [["a", "b"], ["c"]]
    assert names(task.test) == ["d"]
    assert "task.json: `val` is read as `validation`" in caplog.text
    read_task(msd(tmp_path, more=[entry("e")]))
    assert "task.json: `more` holds 1 scans but is not read" in caplog.text


NNUNET = {"0": "T2", "1": "ADC"}
NNUNET_LABELS = {"background": 0, "PZ": 1, "TZ": 2}


@pytest.mark.parametrize("version", [1, 2])
def test_a_data_set_of_nnunet(tmp_path, version):
    """The cases of version 1 are listed without their channels, those of version 2 not at all."""
    for case in ("p_00", "p_01", "p_02"):
        folder = "Ts" if case == "p_02" else "Tr"
        for file in (f"images{folder}/{case}_0000", f"images{folder}/{case}_0001", f"labels{folder}/{case}"):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / f"{file}.nii.gz").touch()
    (tmp_path / "labelsTs" / "p_02.nii.gz").unlink()
    content = {"channel_names": NNUNET, "labels": NNUNET_LABELS, "file_ending": ".nii.gz", "numTraining": 2}
    if version == 1:
        content = {
            "modality": NNUNET,
            "labels": {"0": "background", "1": "PZ", "2": "TZ"},
            "training": [entry("p_00"), entry("p_01")],
            "test": ["./imagesTs/p_02.nii.gz"],
        }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    task = read_task(tmp_path / "dataset.json")
    assert (task.modalities, task.labels) == (("t2", "adc"), {0: "background", 1: "PZ", 2: "TZ"})
    assert (names(task.training), names(task.test)) == (["p_00", "p_01"], ["p_02"])
    (first, second), (last,) = task.training, task.test
    assert first.images == tuple(tmp_path / f"imagesTr/p_00_000{channel}.nii.gz" for channel in range(2))
    assert second.label == tmp_path / "labelsTr" / "p_01.nii.gz"
    assert last.images == tuple(tmp_path / f"imagesTs/p_02_000{channel}.nii.gz" for channel in range(2))
    assert len({case.subject for case in task.training}) == 2
    train, held_out = task.split("training"), task.split("validation")
    assert sorted(names([*train, *held_out])) == ["p_00", "p_01"]
    (tmp_path / "imagesTr" / "p_01_0001.nii.gz").unlink()
    with pytest.raises(Dae3dError, match=r"training\[1\]: .*p_01_0001\.nii\.gz: no such file"):
        [task.split(side) for side in ("training", "validation")]


def test_a_list_inside_a_data_set_of_nnunet(tmp_path):
    cases = {
        name: {"images": [f"a/{name}_0000.nii.gz", f"b/{name}_0001.nii.gz"], "label": f"s/{name}.nii.gz"}
        for name in ("x", "y")
    }
    path = write_task(tmp_path, channel_names=NNUNET, labels=NNUNET_LABELS, dataset=cases)
    task = read_task(path)
    assert task.training[1].images == (tmp_path / "a/y_0000.nii.gz", tmp_path / "b/y_0001.nii.gz")
    assert task.training[1].label == tmp_path / "s" / "y.nii.gz"
    assert names(task.training) == ["x", "y"]


def test_what_may_be_a_hospital_or_a_patient_is_said(tmp_path, caplog):
    cases = [entry(f"{site:02d}_{number:03d}") for site in range(2) for number in range(20)]
    assert len({case.subject for case in read_task(msd(tmp_path, training=cases)).training}) == 40
    assert "are taken as different subjects" in caplog.text
    assert "add `subject` to the entries" in caplog.text
    caplog.clear()
    told = [case | {"subject": number} for number, case in enumerate(cases)]
    assert len({case.subject for case in read_task(msd(tmp_path, training=told)).training}) == 40
    assert not caplog.text


def test_a_subject_in_several_folds_is_said(tmp_path, caplog):
    read_task(
        msd(tmp_path, training=[entry("P01_week1", fold=0), entry("P01_week9", fold=1), entry("P02", fold=0)])
    )
    assert "subjects in several folds, so results will be too good: " in caplog.text


def test_a_list_beside_its_data(tmp_path):
    content = {
        "modality": "CT",
        "labels": {"1": "spleen"},
        "training": [{"image": "../data/a/ct.nii.gz", "label": "../data/a/seg.nii.gz"}],
        "test": ["../data/b/ct.nii.gz"],
    }
    task = read_task(write_task(tmp_path / "lists", **content))
    assert task.training[0].label == tmp_path / "data" / "a" / "seg.nii.gz"
    assert [case.name for case in (*task.training, *task.test)] == ["a_ct", "b_ct"]
    assert [case.subject for case in (*task.training, *task.test)] == ["data/a", "data/b"]
