"""A table that says whose scans files are."""

from pathlib import Path

import pytest

import dae3d
from dae3d.errors import Dae3dError
from dae3d.scans.manifest import Manifest
from dicom_files import evenly, write_series
from indexed import write_scan


def table(folder: Path, text: str, name: str = "subjects.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def run(folder: Path, **settings) -> Manifest:
    return dae3d.index(folders=[folder / "d"], out=folder / "m.jsonl", modality="ct", **settings)


def subjects(manifest: Manifest) -> dict[str, str]:
    return {scan.path.relative_to(scan.path.parents[1]).as_posix(): scan.subject for scan in manifest.scans}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/x.nii.gz", "a/y.nii.gz", "b/x.nii.gz", "c/late 2.nii.gz"):
        write_scan(tmp_path / "d" / name)
    return tmp_path


@pytest.mark.parametrize("tabs", [False, True])
def test_paths_of_files_and_folders(folder: Path, tabs: bool) -> None:
    text = f"subject,path\nann,a\nbob,./a/y.nii.gz\nann,{folder}/d/c/late 2.nii.gz\nbob,b/\n"
    path = table(folder, text.replace(",", "\t"), "s.tsv") if tabs else table(folder, text)
    told = subjects(run(folder, subjects=path))
    assert told == {"a/x.nii.gz": "ann", "a/y.nii.gz": "bob", "b/x.nii.gz": "bob", "c/late 2.nii.gz": "ann"}


def test_what_table_and_pattern_leave_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(folder, "path,subject\na/x.nii.gz,ann\nz/x.nii.gz,zoe\n")
    told = subjects(run(folder, subjects=path, subject="^([bc])/"))
    # The table goes before the pattern, and names tell the rest.
    assert told == {"a/x.nii.gz": "ann", "a/y.nii.gz": "d/a/y", "b/x.nii.gz": "b", "c/late 2.nii.gz": "c"}
    said = " ".join(capsys.readouterr().out.split())
    assert "--subject and --subjects gives no subject for 1 of the 4 scans, such as" in said
    assert "paths in" in said
    assert "subjects.csv that belong to no scan: z/x.nii.gz" in said


def test_the_folder_of_a_dicom_series(tmp_path: Path) -> None:
    write_series(tmp_path / "d" / "case1" / "ct", evenly(8))
    manifest = run(tmp_path, subjects=table(tmp_path, "path,subject\ncase1,ann\n"))
    assert [scan.subject for scan in manifest.scans] == ["ann"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            "file,subject\na,b\n",
            r"subjects\.csv: not a table of subjects: .*lacks path \(commas between them\)",
        ),
        ("path;subject\na;b\n", r"lacks path and subject"),
        ("", r"lacks path and subject"),
        ("path,subject\na,ann\nb,\n", r"subjects\.csv: line 3: has no subject"),
        ("path,subject\n,ann\n", r"line 2: has no path"),
        ("path,subject\na,ann\na/,bob\n", r"line 3: a has another subject in an earlier line"),
    ],
)
def test_what_is_no_table(folder: Path, text: str, named: str) -> None:
    with pytest.raises(Dae3dError, match=named):
        run(folder, subjects=table(folder, text))


def test_a_missing_table(folder: Path) -> None:
    with pytest.raises(Dae3dError, match=r"gone\.csv: cannot be read"):
        run(folder, subjects=folder / "gone.csv")
