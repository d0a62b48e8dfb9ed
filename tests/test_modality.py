"""Modality labels and subjects from names: what is read, and what is not guessed."""

from pathlib import Path

import pytest

from dae3d.scans.modality import (
    Rule,
    label_by_bids,
    label_by_rules,
    label_in_list,
    matches,
    parse_label,
    parse_rule,
)
from dae3d.scans.subjects import sequence_at_end, subject_in_path


@pytest.mark.parametrize(
    ("stem", "label"),
    [
        ("sub-01_T1w", "t1"),
        ("sub-01_ses-2_acq-mprage_run-1_T1w", "t1"),
        ("sub-01_ce-gadolinium_T1w", "t1ce"),
        ("sub-01_ce-gd_FLAIR", "flair"),
        ("sub-01_inplaneT1", "t1"),
        ("sub-01_inplaneT2", "t2"),
        ("sub-01_T2w", "t2"),
        ("sub-01_T2starw", "t2star"),
        ("sub-01_PDw", "pd"),
        ("sub-01_FLAIR", "flair"),
        ("sub-strokecase0009_ses-0001_flair", "flair"),
        ("sub-strokecase0009_ses-0001_dwi", "dwi"),
        ("sub-strokecase0009_ses-0001_adc", "adc"),
        ("sub-spleen2_ct", "ct"),
        ("sub-01_trc-FDG_pet", "pet"),
        # A label, a mask, a phase image, and names that only look like BIDS:
        ("sub-strokecase0009_ses-0001_msk", None),
        ("sub-spleen2_ct_seg-manual", None),
        ("sub-01_T1w_dseg", None),
        ("sub-01_mod-T1w_defacemask", None),
        ("sub-01_part-phase_T1w", None),
        ("sub-01_part-mag_T1w", "t1"),
        ("sub-01", None),
        ("sub-_T1w", None),
        ("sub-01_", None),
        ("sub-01T1w", None),
        ("sub-01_brain_T1w", None),
        ("xsub-01_T1w", None),
        ("patient03_study2_FLAIR", None),
        ("T1w", None),
        ("t1_crop", None),
        ("BraTS2021_00001_t1", None),
    ],
)
def test_bids_names(stem: str, label: str | None) -> None:
    assert label_by_bids(stem) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [("CT", "ct"), ("T1w", "t1"), ("t1gd", "t1ce"), ("T2w", "t2"), ("FLAIR", "flair"), ("MRI", "mr"),
     ("MR", "mr"), ("ADC", "adc"), ("CBCT", "cbct"), ("my-sequence", "my-sequence")],
)  # fmt: skip
def test_labels_of_lists_are_brought_to_one_spelling(text: str, label: str) -> None:
    assert label_in_list(text) == label


def test_a_users_label_stays_as_written_in_lower_case() -> None:
    assert parse_label(" T1Gd ") == "t1gd"
    assert parse_rule("*a=b*=CBCT") == Rule("*a=b*", "cbct")


@pytest.mark.parametrize("text", ["", "=ct", "scans", "*=", "*=two words", "*=a/b", "*=-x"])
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(ValueError, match=r"GLOB=LABEL|modality label"):
        parse_rule(text)


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.nii.gz", True),
        ("scan.nii.gz", True),
        ("site/*", True),
        ("site/case1/scan.nii.gz", True),
        ("*/case1/*", True),
        ("dataset1/site/*", True),
        ("dataset1/*", True),
        ("*/site/*", False),
        ("case1/*", False),
        ("dataset1/scan.nii.gz", False),
        ("*SITE*", False),
        ("*t1*", False),
        ("dataset*", False),
    ],
)
def test_globs_meet_the_name_or_the_path_from_the_folder(glob: str, expected: bool) -> None:
    assert matches(glob, "site/case1/scan.nii.gz", "dataset1") is expected


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("case1/*", True),
        ("*/ct", True),
        ("*/ct/*", True),
        ("ct", True),
        ("hospital/case1/ct", True),
        ("description:ax t1*", True),
        ("description:brain protocol", True),
        ("description:*t2*", False),
        ("description:case1/*", False),
        ("AX T1 POST", False),
    ],
)
def test_globs_meet_the_folder_of_a_series_or_what_describes_it(glob: str, expected: bool) -> None:
    assert matches(glob, "case1/ct/", "hospital", "AX T1 POST", "Brain Protocol") is expected


def test_no_glob_for_descriptions_meets_what_has_none() -> None:
    assert not matches("description:*", "case1/ct/", "hospital", "", "")
    assert not matches("description:*", "scan.nii.gz", "hospital")


def test_the_first_rule_counts() -> None:
    rules = [Rule("*_t1ce*", "t1ce"), Rule("*_t1*", "t1")]
    assert label_by_rules(rules, "a/x_t1ce.nii", "d") == "t1ce"
    assert label_by_rules(rules[::-1], "a/x_t1ce.nii", "d") == "t1"
    assert label_by_rules(rules, "a/x_t2.nii", "d") is None


def subject(path: str, *roots: str) -> str:
    return subject_in_path(Path(path), {Path(root) for root in roots})


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        # BIDS: one subject all over the folder, sessions and derivatives included.
        ("/d/ds/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "/d/ds", "ds/sub-01"),
        ("/d/ds/derivatives/x/sub-01/sub-01_desc-a_T1w.nii.gz", "/d/ds", "ds/sub-01"),
        ("/d/ds/sub-01_ct.nii.gz", "/d/ds", "ds/sub-01"),
        ("/d/ds/sub-01/anat/T1.nii.gz", "/d/ds", "ds/sub-01"),
        ("/d/ds/sub-01/anat/sub-01_T1w.nii.gz", "/d/ds/sub-01/anat", "ds/sub-01"),
        # A folder above the one given is nobody's subject.
        ("/home/sub-zero/ds/case1.nii.gz", "/home/sub-zero/ds", "ds/case1"),
        # Sisters by name.
        ("/d/b/BraTS2021_00001/BraTS2021_00001_t1.nii.gz", "/d/b", "b/BraTS2021_00001/BraTS2021_00001"),
        ("/d/b/BraTS2021_00001/BraTS2021_00001_t1ce.nii.gz", "/d/b", "b/BraTS2021_00001/BraTS2021_00001"),
        ("/d/b/patient07/T1POST.nii.gz", "/d/b", "b/patient07"),
        ("/d/b/patient07/FLAIR.nii.gz", "/d/b", "b/patient07"),
        ("/d/b/patient03_study2_T1W.nii.gz", "/d/b", "b/patient03_study2"),
        ("/d/b/x-FLAIR.mha", "/d/b", "b/x"),
        ("/d/b/x.ct.nrrd", "/d/b", "b/x"),
        ("/d/b/IXI-T1/IXI002-T1.nii.gz", "/d/b", "b/IXI/IXI002"),
        ("/d/b/T1/case1.nii.gz", "/d/b", "b/case1"),
        ("/d/IXI-T2/IXI002-T2.nii.gz", "/d/IXI-T2", "IXI/IXI002"),
        # One sequence name goes, and only a whole one.
        ("/d/b/x_t1_t2.nii.gz", "/d/b", "b/x_t1"),
        ("/d/b/xt1.nii.gz", "/d/b", "b/xt1"),
        ("/d/b/t1_crop.nii.gz", "/d/b", "b/t1_crop"),
        # Folders of other names keep their cases apart.
        ("/d/b/site1/case1.nii.gz", "/d/b", "b/site1/case1"),
        ("/d/b/site2/case1.nii.gz", "/d/b", "b/site2/case1"),
        # Nothing but sequence names.
        ("/d/T1/T1.nii.gz", "/d/T1", "T1/T1"),
    ],
)
def test_subjects_by_place(path: str, root: str, expected: str) -> None:
    assert subject(path, root) == expected


def test_the_outermost_folder_given_counts() -> None:
    assert subject("/d/b/lists/a/x_t1.nii", "/d/b", "/d/b/lists") == "b/lists/a/x"
    assert subject("/elsewhere/a/x_t1.nii", "/d/b") == "a/x"


def test_channel_numbers_count_where_there_is_a_channel_0000(tmp_path: Path) -> None:
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz", "b_0002.nii.gz"):
        (tmp_path / name).touch()
    found = [subject_in_path(path, {tmp_path}) for path in sorted(tmp_path.iterdir())]
    assert found == [f"{tmp_path.name}/{case}" for case in ("a", "a", "b_0001", "b_0002")]


def test_sequence_at_end() -> None:
    assert sequence_at_end("patient03_study2_FLAIR") == "FLAIR"
    assert sequence_at_end("T1") == "T1"
    assert sequence_at_end("lidc_0314") is None
