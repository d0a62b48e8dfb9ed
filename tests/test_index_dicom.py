"""The command `index` on DICOM series: found beside files, told by header or rule, named by no identifier."""

import json
import os
import shlex
import tarfile
from pathlib import Path

import pytest

import dae3d
from dae3d.cli import main
from dae3d.errors import Dae3dError
from dae3d.scans.dicom.contradiction import contradiction
from dae3d.scans.manifest import Manifest
from dicom_files import evenly, write_enhanced, write_series
from indexed import reasons, run, write_scan

pytestmark = pytest.mark.slow

SLICES = 9
ODD = {
    "SeriesDescription": "Perfusion [map]",
    "ScanningSequence": "RM",
    "EchoTime": None,
    "RepetitionTime": None,
}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for the user's salt."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CT series without suffixes, an MR series of which no header tells the contrast, and a NIfTI file."""
    root = tmp_path / "hospital"
    write_series(
        root / "a" / "ct", evenly(SLICES), name="IM{:04d}", PatientID="ann", SeriesDescription="Thorax"
    )
    write_series(root / "b" / "odd", evenly(SLICES), "MR", PatientID="bob", **ODD)
    write_scan(root / "sub-c_T1w.nii.gz")
    (root / "a" / "notes.txt").write_text("no DICOM")
    return root


def labels(manifest: Manifest) -> dict[str, str]:
    return {scan.path.name: scan.modality for scan in manifest.scans}


def test_series_are_scans_beside_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = run(folder)
    assert labels(manifest) == {"sub-c_T1w.nii.gz": "t1", "ct": "ct"}
    ct = manifest.scans[1]
    assert ct.path == folder / "a" / "ct"
    assert ct.files == tuple(f"IM{number:04d}" for number in range(SLICES))
    assert (ct.shape, ct.spacing, ct.dataset) == ((10, 12, SLICES), (0.5, 0.8, 2.5), "hospital")
    assert [(item.path.name, item.files, item.reason) for item in manifest.left_out] == [
        ("notes.txt", 1, "not a scan: .txt"),
        ("odd", SLICES, "unknown modality"),
    ]
    assert "--rule 'description:Perfusion [[]map]=LABEL'  (1 of them)" in capsys.readouterr().out


def test_the_printed_rule_works(folder: Path) -> None:
    manifest = run(folder, rule=["description:Perfusion [[]map]=cbv"])
    assert labels(manifest) == {"sub-c_T1w.nii.gz": "t1", "ct": "ct", "odd": "cbv"}


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("description:*PERFUSION*=x", True),
        ("*/odd=x", True),
        ("b/*=x", True),
        ("odd=x", True),
        ("hospital/b/odd/*=x", True),
        ("description:perfusion=x", False),
        ("a/*=x", False),
        ("description:*/odd=x", False),
    ],
)
def test_rules_meet_the_folder_or_the_description(folder: Path, rule: str, told: bool) -> None:
    assert (labels(run(folder, rule=[rule])).get("odd") == "x") is told


def test_a_rule_by_description_meets_no_file(folder: Path) -> None:
    manifest = run(folder, rule=["description:*=x"])
    assert labels(manifest) == {"sub-c_T1w.nii.gz": "t1", "ct": "x", "odd": "x"}


def test_the_users_word_goes_before_the_header(folder: Path) -> None:
    assert labels(run(folder, modality="cbct"))["ct"] == "cbct"
    assert labels(run(folder, exclude=["description:thor*"])) == {"sub-c_T1w.nii.gz": "t1"}
    assert reasons(run(folder, exclude=["a/ct"]))["ct"] == "excluded: a/ct"
    assert (
        reasons(run(folder, min_slices=10))["ct"]
        == "fewer than 10 voxels along an axis (--min-slices): shape 10x12x9"
    )


@pytest.mark.parametrize(
    ("header", "label", "contradicted"),
    [
        ("CT", "t1", True),
        ("CT", "mr", True),
        ("CT", "pet", True),
        ("MR", "ct", True),
        ("MR", "ct-phantom", True),
        ("PT", "ct", True),
        ("PT", "t1ce", True),
        ("CT", "cbct-raw", False),
        ("MR", "t2star", False),
        ("PT", "pet-nac", False),
        ("CT", "angio", False),  # of either scanner
        ("MR", "anything", False),
    ],
)
def test_labels_that_a_header_contradicts(header: str, label: str, contradicted: bool) -> None:
    assert bool(contradiction(label, header)) is contradicted
    assert contradiction(label, "OT") is None  # a header that says nothing


@pytest.mark.parametrize("said", [{"modality": "t1"}, {"rule": ["*=t1"]}])
def test_a_series_that_is_something_else_is_left_out_unless_forced(tmp_path: Path, said: dict) -> None:
    write_series(tmp_path / "d" / "ct", evenly(9), "CT")
    write_series(tmp_path / "d" / "mr", evenly(9), "MR")
    manifest = run(tmp_path / "d", **said)
    assert labels(manifest) == {"mr": "t1"}
    reason = "header contradicts the label: CT, not t1 (--force-modality keeps the label)"
    assert reasons(manifest) == {"ct": reason}
    assert labels(run(tmp_path / "d", **said, force_modality=True)) == {"ct": "t1", "mr": "t1"}


def test_a_header_without_modality_says_it_by_its_class(tmp_path: Path) -> None:
    write_series(tmp_path / "d" / "ct", evenly(9), "CT", Modality=None)
    write_series(tmp_path / "d" / "mr", evenly(9), "MR", Modality=None)
    assert labels(run(tmp_path / "d", modality="t1")) == {"mr": "t1"}


def test_the_folder_given_can_be_the_series(folder: Path) -> None:
    for given in (folder / "a" / "ct", folder / "a"):
        assert labels(run(given)) == {"ct": "ct"}


def test_nothing_identifying_is_written(folder: Path, own_home: Path) -> None:
    manifest = run(folder, rule=["description:*perfusion*=cbv"])
    written = [path for path in folder.parent.iterdir() if path.is_file()]
    assert {path.name for path in written} == {"manifest.json", ".manifest.json.headers"}
    text = b"".join(path.read_bytes() for path in written).lower()
    for word in (b"doe", b"jane", b"ann", b"bob", b"20200229", b"thorax", b"perfusion", b"1.2."):
        assert word not in text.replace(bytes(folder.parent), b"")
    assert len({scan.subject for scan in manifest.scans}) == 3
    assert (own_home / "dae3d" / "salt").stat().st_mode & 0o777 == 0o600


def test_hashes_follow_the_salt(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "salt").write_text("0123456789abcdef")
    names = []
    for settings in ({}, {}, {"salt": tmp_path / "salt"}):
        scan = run(folder / "a", **settings).scans[0]
        names.append((scan.subject, scan.study, scan.series))
    assert names[0] == names[1]
    assert not set(names[0]) & set(names[2])


def test_a_patients_series_are_on_one_side(tmp_path: Path) -> None:
    for number in range(12):
        for series in ("one", "two"):
            write_series(tmp_path / "d" / f"{number}" / series, evenly(SLICES), PatientID=f"P{number}")
    manifest = run(tmp_path / "d", val_fraction=0.3)
    sides = {(scan.subject, scan.split) for scan in manifest.scans}
    assert len(manifest.scans) == 24
    assert len(sides) == len({subject for subject, _ in sides}) == 12
    assert {split for _, split in sides} == {"train", "val"}


def test_subjects_by_regular_expression(folder: Path) -> None:
    assert run(folder / "a", subject="^(c)t/").scans[0].subject == "c"


def test_a_time_series_of_one_series(tmp_path: Path) -> None:
    for time in range(3):
        uid = {"SeriesInstanceUID": "1.2.826.0.1.7", "StudyInstanceUID": "1.2.826.0.1.6"}
        tags = {"AcquisitionNumber": time + 1, "TemporalPositionIdentifier": time + 1}
        write_series(tmp_path / "d" / "perf", evenly(SLICES), "MR", name=f"{time}_{{}}.dcm", **tags, **uid)
    assert len(run(tmp_path / "d", modality="mr", volume="all").scans) == 3
    (middle,) = run(tmp_path / "d", modality="mr", volume="middle").scans
    assert middle.files == tuple(f"1_{number}.dcm" for number in range(SLICES))
    with pytest.raises(Dae3dError, match="none of the files found can be used"):
        run(tmp_path / "d", modality="mr")


def test_a_single_dicom_file_is_read(folder: Path) -> None:
    with pytest.raises(Dae3dError, match="none of the files found can be used"):
        run(folder / "a" / "ct" / "IM0003")
    with pytest.raises(Dae3dError, match=r"notes\.txt: not a folder"):
        run(folder / "a" / "notes.txt")


def test_layouts_of_dicom_sets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_series(folder / "a" / "pet", evenly(SLICES), "PT", PatientID="ann")
    assert labels(run(folder / "a")) == {"ct": "ct", "pet": "pet"}
    manifest = run(folder / "a", layout="hnscc")
    assert labels(manifest) == {"ct": "ct"}
    assert reasons(manifest)["pet"].startswith("pet: ")
    write_scan(folder.parent / "other" / "x.nii.gz")
    with pytest.raises(Dae3dError, match=r"(?s)no scan of HNSCC was found.*expected.*found:.*x\.nii\.gz"):
        run(folder.parent / "other", layout="hnscc")


def test_archives_are_said_to_be_unread(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("more.zip", "b/x.tar.gz"):
        (folder / name).touch()
    run(folder)
    assert "note: archives (.zip, .tar.gz) are not read: 2; unpack" in capsys.readouterr().out


def test_prepared_and_checked(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "m.jsonl"
    arguments = [str(folder), "--out", str(out), "--check", "--workers", "1", "--exclude", "*.nii.gz"]
    assert main(["index", *arguments]) == 0
    assert (out.parent / "data-report.html").is_file()
    store = dae3d.prepare(manifest=out, out=tmp_path / "store", workers=1)
    (stored,) = store.scans
    assert stored.modality == "ct"


def test_real_series(shared_data: Path, tmp_path: Path) -> None:
    archives = [*(shared_data / "dicom").glob("*.tar.gz"), *(shared_data / "awkward/dicom").glob("*.tar.gz")]
    assert len(archives) == 12
    files = 0
    for archive in archives:
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path / "d" / archive.name.partition(".")[0], filter="data")
            files += sum(member.isfile() for member in tar.getmembers())
    manifest = run(tmp_path / "d")
    # A brain MPRAGE of 384 slices and a head CT of 28; by the catalogue the others have 4, or 8 frames.
    big = {(scan.modality, scan.shape) for scan in manifest.scans if scan.files and len(scan.files) > 8}
    assert big == {("t1", (274, 384, 384)), ("ct", (512, 512, 28))}
    counted = sum(len(scan.files) for scan in manifest.scans) + sum(item.files for item in manifest.left_out)
    assert counted == files
    kinds = {item.reason.partition(":")[0] for item in manifest.left_out}
    assert {"missing slices", "mixed orientations", "secondary capture"} <= kinds
    assert json.loads((tmp_path / "manifest.json").read_text().splitlines()[0])["scans"] == len(
        manifest.scans
    )


@pytest.mark.parametrize("name", ["pipe", "pipe.nii", "pipe.dcm"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    os.mkfifo(folder / name)
    assert reasons(run(folder))[name] == "not a file: a pipe, socket or device"
    with pytest.raises(Dae3dError, match="no such folder or file"):
        run(folder / name)


@pytest.mark.parametrize("name", ["{:03d}.nii", "{:03d}.mhd", "{:03d}.nii.gz", "{:03d}.hdr"])
def test_dicom_under_the_name_of_another_format(tmp_path: Path, name: str) -> None:
    write_series(tmp_path / "d" / "x", evenly(SLICES), name=name)
    for _ in range(2):  # the second time by what is written down of headers
        manifest = run(tmp_path / "d")
        assert labels(manifest) == {"x": "ct"}
        assert not manifest.left_out


def test_an_enhanced_file_under_the_name_of_another_format_goes_through_the_same_checks(
    tmp_path: Path,
) -> None:
    write_enhanced(tmp_path / "d" / "a.mhd", evenly(SLICES), "CT")
    write_enhanced(tmp_path / "d" / "b.mha", [*evenly(SLICES), *evenly(SLICES)], "CT")
    manifest = run(tmp_path / "d", modality="ct")
    assert [scan.files for scan in manifest.scans] == [("a.mhd",)]
    assert reasons(manifest) == {"b.mha": f"several volumes in one file: {2 * SLICES} frames"}


def test_a_list_names_no_dicom_files(tmp_path: Path) -> None:
    write_series(tmp_path / "d", evenly(1), name="a{}.nii")
    write_scan(tmp_path / "d" / "b.nii.gz")
    images = [{"image": "d/a0.nii"}, {"image": "d/b.nii.gz"}]
    (tmp_path / "l.json").write_text(json.dumps({"modality": {"0": "CT"}, "training": images}))
    assert reasons(run(tmp_path / "l.json")) == {"a0.nii": "DICOM file, despite its name; index its folder"}


def test_series_of_one_folder_and_identifier_are_all_prepared(tmp_path: Path) -> None:
    for patient in "ab":
        write_series(
            tmp_path / "d", evenly(SLICES), name=patient + "{}", SeriesInstanceUID="1.2", PatientID=patient
        )
    run(tmp_path / "d")
    store = dae3d.prepare(manifest=tmp_path / "manifest.json", out=tmp_path / "store", workers=1)
    assert len({scan.subject for scan in store.scans}) == len(store.scans) == 2


@pytest.mark.filterwarnings("ignore")
def test_a_rule_is_one_line_whatever_a_description_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = "odd\r\nseries \x1b[31m"
    write_series(tmp_path / "d", evenly(SLICES), "MR", **(ODD | {"SeriesDescription": description}))
    with pytest.raises(Dae3dError):
        run(tmp_path / "d")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "--rule" in line]
    rule = shlex.split(line)[1].replace("LABEL", "x")
    assert "\x1b" not in rule
    assert labels(run(tmp_path / "d", rule=[rule])) == {"d": "x"}


def test_a_layout_of_ct_without_any(tmp_path: Path) -> None:
    """Its MR series has no contrast that the header tells, and the user says that all is CT."""
    write_series(tmp_path / "d", evenly(SLICES), "MR", **ODD)
    with pytest.raises(Dae3dError, match=r"(?s)no scan of LIDC-IDRI was found.*expected.*found:.*000\.dcm"):
        run(tmp_path / "d", layout="lidc-idri", modality="ct")


def test_each_folder_of_a_layout_has_to_hold_it(folder: Path) -> None:
    (folder.parent / "other").mkdir()
    with pytest.raises(Dae3dError, match=r"other: no scan of LIDC-IDRI was found"):
        run(folder / "a", folder.parent / "other", layout="lidc-idri")
