"""Series of DICOM files are found whatever their names and folders, and told apart by their identifiers."""

import shutil
import tarfile

import pytest
from pydicom.uid import generate_uid

from dae3d.scans.dicom.header import is_dicom
from dicom_files import evenly, series_tags, write_series
from dicom_found import find, one_series, reasons

pytestmark = pytest.mark.slow


def test_real_series(shared_data, tmp_path):
    for archive in [*shared_data.glob("dicom/*.tar.gz"), *shared_data.glob("awkward/dicom/*.tar.gz")]:
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path / archive.name.removesuffix(".tar.gz"), filter="data")
    found, left_out = find(tmp_path)
    assert {
        (one.folder.relative_to(tmp_path).parts[0], one.header.shape, len(one.files)) for one in found
    } == {
        ("mr_t1_datalad", (274, 384, 384), 384),
        ("ct_head_ge_variable_tilt", (512, 512, 28), 28),
        ("failing_gantrytilting", (512, 512, 4), 4),
        ("generic_compressed_j2k", (256, 256, 4), 4),
        ("siemens_multiframe_anatomical", (256, 256, 8), 1),
        ("philips_enhanced_anatomical", (256, 256, 8), 1),
    }
    # The other three compressions hold the same four objects as the first.
    assert reasons(left_out) == {
        "duplicate slice": 12,
        "missing slices: a gap of 10 mm where slices are 5 mm apart": 4,
        "mixed orientations": 4,
        "secondary capture: Secondary Capture Image Storage": 4,
    }
    by_name = {one.folder.relative_to(tmp_path).parts[0]: one for one in found}
    assert by_name["mr_t1_datalad"].description == "anat-T1w"
    assert by_name["ct_head_ge_variable_tilt"].header.dtype == "int16"
    assert by_name["failing_gantrytilting"].header.dtype == "uint16"
    assert by_name["generic_compressed_j2k"].header.orientation == "PIR"


@pytest.mark.parametrize(
    ("archive", "taken", "reason"),
    [
        # Slices of 7 mm, the 20th of them taken away; and of 0.667 mm.
        ("ct_head_ge_variable_tilt", "20.dcm", "missing slices: a gap of 14 mm where slices are 7 mm apart"),
        (
            "mr_t1_datalad",
            "N2D_0200.dcm",
            "missing slices: a gap of 1.33 mm where slices are 0.667 mm apart",
        ),
    ],
)
def test_real_series_of_which_a_file_is_missing(shared_data, tmp_path, archive, taken, reason):
    with tarfile.open(shared_data / f"dicom/{archive}.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    (path,) = tmp_path.rglob(taken)
    path.unlink()
    found, left_out = find(tmp_path)
    assert (found, list(reasons(left_out))) == ([], [reason])


def test_series_are_told_apart_whatever_their_files_are_called_and_wherever_they_lie(tmp_path):
    first = write_series(tmp_path / "first", evenly(12), name="IM{:02d}")
    second = write_series(tmp_path / "second", evenly(9, -3), modality="MR", name="{:02d}.x")
    mixed = tmp_path / "export"
    places = {}
    for number, path in enumerate([*first, *second]):
        folder = mixed / ("disk 1" if path in second else "disk 2") / f"ä{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        places[path] = shutil.move(path, folder / f"{(number * 8) % 21:08d}")
    found, left_out = find(mixed)
    assert not left_out
    by_folder = {one.folder.name: one for one in found}
    assert set(by_folder) == {"disk 1", "disk 2"}
    assert [by_folder["disk 2"].folder / name for name in by_folder["disk 2"].files] == [
        places[path] for path in first
    ]
    # Slices go up along their normal, from the last file written to the first.
    assert [by_folder["disk 1"].folder / name for name in by_folder["disk 1"].files] == [
        places[path] for path in reversed(second)
    ]
    assert by_folder["disk 2"].header.shape == (10, 12, 12)
    assert by_folder["disk 2"].header.spacing == pytest.approx((0.5, 0.8, 2.5))
    assert len({one.subject for one in found}) == 1
    assert len({one.study for one in found}) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not DICOM"), (b"not at all DICOM, a text", "not DICOM"), (b"\0" * 4096, "not DICOM")],
)
def test_a_file_that_is_dicom_by_name_alone(tmp_path, content, reason):
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    assert is_dicom(path)
    ((left_out,), _) = find(tmp_path)[::-1]
    assert left_out.path == path
    assert left_out.files == 1
    assert left_out.reason.startswith(reason)


def test_files_without_preamble(tmp_path):
    for path in write_series(tmp_path, evenly(9)):
        path.write_bytes(path.read_bytes()[132:])
        assert is_dicom(path)
    found, left_out = find(tmp_path)
    assert (len(found), left_out) == (1, [])


def test_is_dicom(tmp_path):
    (slice_,) = write_series(tmp_path, evenly(1), name="no suffix {}")
    (tmp_path / "notes").write_text("DICM")
    assert is_dicom(slice_)
    assert not is_dicom(tmp_path / "notes")
    assert not is_dicom(tmp_path / "nothing here")


def test_names_are_the_same_wherever_a_series_lies_and_tell_nothing(tmp_path):
    tags = series_tags("MR", PatientID="4711", SeriesDescription="t1 mprage Doe")
    shared = {key: tags[key] for key in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")}
    write_series(tmp_path / "a", evenly(8), "MR", **shared, SeriesDescription="t1 mprage Doe")
    (before,), _ = find(tmp_path)
    shutil.move(tmp_path / "a", tmp_path / "z")
    (after,), _ = find(tmp_path, workers=1)
    assert (before.subject, before.study, before.series) == (after.subject, after.study, after.series)
    (other,), _ = find(tmp_path, salt=b"another salt")
    assert not {before.subject, before.study, before.series} & {other.subject, other.study, other.series}
    told = f"{after.subject} {after.study} {after.series} {after.files} {after.header}"
    for secret in ("4711", "Doe", "2020", shared["SeriesInstanceUID"], shared["StudyInstanceUID"]):
        assert secret not in told
    assert after.description == "t1 mprage Doe"


def test_patients_without_identifier_are_told_apart_by_study(tmp_path):
    for name in ("a", "b"):
        write_series(tmp_path / name, evenly(8), PatientID="")
    found, _ = find(tmp_path)
    assert len({one.subject for one in found}) == 2


def test_same_series_identifier_of_two_patients_is_two_series(tmp_path):
    uids = one_series()
    for name in ("a", "b"):
        write_series(tmp_path / name, evenly(8), **uids, PatientID=name)
    found, _ = find(tmp_path)
    assert [one.folder.name for one in found] == ["a", "b"]


def test_studies_with_one_series_identifier_are_two_series(tmp_path):
    """The second lies between the slices of the first, the third goes on where the first ends."""
    uid = generate_uid()
    for name, start in (("a", -100), ("b", -98.75), ("c", -75)):
        write_series(tmp_path / name, evenly(10, start=start), SeriesInstanceUID=uid)
    found, left_out = find(tmp_path)
    assert not left_out
    assert {one.folder.name: len(one.files) for one in found} == {"a": 10, "b": 10, "c": 10}


def test_series_of_one_folder_have_names_of_their_own(tmp_path):
    uid = generate_uid()
    for patient in "ab":
        write_series(tmp_path, evenly(10), name=patient + "{}", SeriesInstanceUID=uid, PatientID=patient)
    study = generate_uid()
    write_series(tmp_path, evenly(10), name="c{}", SeriesInstanceUID=uid, StudyInstanceUID=study)
    found, _ = find(tmp_path)
    assert len({(one.folder, one.series) for one in found}) == len(found) == 3


def test_frames_of_reference_are_told_apart(tmp_path):
    uids = one_series()
    for name, start in (("a", -100), ("b", -75)):
        reference = f"1.2.{ord(name)}"
        write_series(tmp_path / name, evenly(10, start=start), "MR", **uids, FrameOfReferenceUID=reference)
    found, left_out = find(tmp_path)
    assert not left_out
    assert [(one.folder.name, len(one.files), one.volumes) for one in found] == [("a", 10, 1), ("b", 10, 1)]


def test_a_frame_of_reference_for_every_slice_is_none(tmp_path):
    write_series(tmp_path, evenly(10), each=lambda number: {"FrameOfReferenceUID": generate_uid()})
    assert [len(one.files) for one in find(tmp_path)[0]] == [10]
