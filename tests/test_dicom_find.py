import shutil
import struct
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path
from time import thread_time

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)

from dae3d.scans.dicom.finder import find_series
from dae3d.scans.dicom.header import is_dicom
from dae3d.scans.dicom.stacks import stacks
from dae3d.scans.manifest import LeftOut
from dicom_files import (
    SAGITTAL,
    along_z,
    edit,
    evenly,
    pixels_of,
    series_tags,
    tilted,
    write_enhanced,
    write_series,
    write_slice,
)
from dicom_found import SALT, find, one_series, reasons
from dicom_made import made

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
    ("varying", "stacks"),
    [
        ([{"EchoTime": 12}, {"EchoTime": 90}], 2),
        ([{"ImageType": ["ORIGINAL", "PRIMARY", part]} for part in "MPRI"], 4),
        ([{"DiffusionBValue": b} for b in (0.0, 1000.0)], 2),
        ([{"DiffusionBValue": 9.0, "DiffusionGradientOrientation": v} for v in ([1, 0, 0], [0, 1, 0])], 2),
        ([{"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}], 2),
        ([{"EchoTime": te, "AcquisitionNumber": n} for te in (3, 9) for n in (1, 2)], 4),
    ],
)
def test_series_of_several_contrasts_is_split(tmp_path, varying, stacks):
    uids = one_series()
    for number, tags in enumerate(varying):
        write_series(tmp_path, evenly(10), "MR", name=f"{number}-{{:02d}}.dcm", **uids, **tags)
    found, left_out = find(tmp_path)
    assert not left_out
    assert sorted("".join(sorted({name[0] for name in one.files})) for one in found) == [*"0123"[:stacks]]
    assert len({one.series for one in found}) == stacks
    assert len({one.study for one in found}) == 1


def test_time_points_are_volumes_of_one_series_in_the_order_of_time(tmp_path):
    uids = one_series()
    for time in (10, 9, 2):
        write_series(
            tmp_path,
            evenly(8),
            "MR",
            name=f"t{time}-{{}}.dcm",
            **uids,
            TemporalPositionIdentifier=time,
        )
    found, _ = find(tmp_path)
    assert [(one.files[0][:2], one.volume, one.volumes) for one in found] == [
        ("t2", 0, 3),
        ("t9", 1, 3),
        ("t1", 2, 3),
    ]


def test_two_acquisitions_between_each_other_are_two_stacks(tmp_path):
    uids = one_series()
    write_series(tmp_path, evenly(20, 5, 0), name="a{}", **uids, AcquisitionNumber=1)
    write_series(tmp_path, evenly(12, 5, 11.3), name="b{}", **uids, AcquisitionNumber=2)
    found, left_out = find(tmp_path)
    assert not left_out
    assert [(one.files[0][0], len(one.files)) for one in found] == [("a", 20), ("b", 12)]


def test_acquisitions_one_after_the_other_are_one_stack(tmp_path):
    write_series(tmp_path, evenly(12), each=lambda number: {"AcquisitionNumber": 1 + number // 4})
    found, _ = find(tmp_path)
    assert [len(one.files) for one in found] == [12]


def test_planes_of_one_series_are_stacks(tmp_path):
    uids = one_series()
    write_series(tmp_path, evenly(10), "MR", name="a{}", **uids)
    across = [[x, 0.0, 0.0] for x in range(10)]
    write_series(tmp_path, across, "MR", name="s{}", **uids, ImageOrientationPatient=SAGITTAL)
    found, left_out = find(tmp_path)
    assert not left_out
    assert sorted(one.header.orientation for one in found) == ["LPS", "PIR"]


def test_slices_each_of_its_own_tilt_are_left_out(tmp_path):
    write_series(tmp_path, evenly(10), each=lambda number: {"ImageOrientationPatient": tilted(2 * number)})
    found, left_out = find(tmp_path)
    assert (found, reasons(left_out)) == ([], {"mixed orientations": 10})


@pytest.mark.parametrize(
    ("sop_class", "reason"),
    [
        ("SecondaryCaptureImageStorage", "secondary capture"),
        ("MultiFrameGrayscaleWordSecondaryCaptureImageStorage", "secondary capture"),
        ("XRayRadiationDoseSRStorage", "dose report"),
        ("EnhancedSRStorage", "structured report"),
        ("SegmentationStorage", "segmentation"),
        ("SurfaceSegmentationStorage", "segmentation"),
        ("RTStructureSetStorage", "radiotherapy object"),
        ("RTDoseStorage", "radiotherapy object"),
        ("RTPlanStorage", "radiotherapy object"),
        ("GrayscaleSoftcopyPresentationStateStorage", "presentation state"),
        ("KeyObjectSelectionDocumentStorage", "structured report"),
        ("EncapsulatedPDFStorage", "document"),
        ("DigitalXRayImageStorageForPresentation", "projection"),
        ("ComputedRadiographyImageStorage", "projection"),
        ("XRayAngiographicImageStorage", "projection"),
        ("DigitalMammographyXRayImageStorageForPresentation", "projection"),
        ("UltrasoundImageStorage", "ultrasound pictures"),
        ("NuclearMedicineImageStorage", "nuclear medicine image"),
        ("RawDataStorage", "not an image volume"),
        ("MRSpectroscopyStorage", "not an image volume"),
        ("MediaStorageDirectoryStorage", "directory of files (DICOMDIR)"),
    ],
)
def test_objects_that_are_no_volumes(tmp_path, sop_class, reason):
    uid = getattr(pydicom.uid, sop_class)
    write_series(tmp_path, evenly(3), SOPClassUID=uid)
    found, left_out = find(tmp_path)
    assert (found, reasons(left_out)) == ([], {f"{reason}: {uid.name}": 3})


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localiser"),
        ({"SeriesDescription": "3-plane Loc"}, "localiser: by its description"),
        ({"ProtocolName": "Topogram_0.6_T20f"}, "localiser: by its description"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "secondary capture"),
        (
            {"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]},
            "projection: intensities of many slices in one",
        ),
        (
            {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]},
            "mosaic: the slices of a time point tiled in one picture",
        ),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour pictures: PALETTE COLOR"),
        ({"SeriesInstanceUID": None}, "no Series Instance UID"),
    ],
)
def test_images_that_are_no_slices(tmp_path, tags, reason):
    write_series(tmp_path, evenly(10), "MR", **tags)
    found, left_out = find(tmp_path)
    assert found == []
    assert {one.reason for one in left_out} == {reason}


def test_colour(tmp_path):
    def picture(number: int) -> np.ndarray:
        return np.full((12, 10, 3), number, np.uint8)

    colours = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    write_series(tmp_path, evenly(4), pixels=picture, **colours)
    assert reasons(find(tmp_path)[1]) == {"colour pictures: RGB": 4}


@pytest.mark.parametrize("description", ["Location of seed", "AX T1 POST", "colloid", "Surveyor"])
def test_words_that_only_begin_like_a_localisers(tmp_path, description):
    write_series(tmp_path, evenly(8), "MR", SeriesDescription=description)
    assert len(find(tmp_path)[0]) == 1


def test_scout_within_a_series_is_left_out_alone(tmp_path):
    uids = one_series()
    write_series(tmp_path, evenly(10), **uids)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": SAGITTAL}
    write_series(tmp_path, evenly(1), **uids, name="scout.dcm", **scout)
    found, left_out = find(tmp_path)
    assert [len(one.files) for one in found] == [10]
    assert left_out == [LeftOut(path=tmp_path / "scout.dcm", reason="localiser")]


def test_copies_are_left_out(tmp_path):
    write_series(tmp_path / "a", evenly(10))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found, left_out = find(tmp_path)
    assert [one.folder for one in found] == [tmp_path / "a"]
    assert left_out == [LeftOut(path=tmp_path / "b", reason="duplicate slice", files=10)]


def test_copies_under_new_identifiers_are_left_out(tmp_path):
    uids = one_series()
    write_series(tmp_path / "a", evenly(10), **uids)
    write_series(tmp_path / "b", evenly(4), **uids)
    found, left_out = find(tmp_path)
    assert [(one.folder, len(one.files)) for one in found] == [(tmp_path / "a", 10)]
    assert left_out == [LeftOut(path=tmp_path / "b", reason="duplicate slice", files=4)]


def test_other_pixels_at_the_same_place_are_not_guessed_about(tmp_path):
    uids = one_series()
    write_series(tmp_path / "a", evenly(10), **uids)
    write_series(tmp_path / "b", evenly(10), pixels=lambda n: pixels_of(n + 100), **uids)
    found, left_out = find(tmp_path)
    assert (found, reasons(left_out)) == ([], {"same position twice with different content": 20})


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_file_that_is_missing(tmp_path, modality):
    files = write_series(tmp_path, evenly(20, 3), modality)
    files[7].unlink()
    assert reasons(find(tmp_path)[1]) == {"missing slices: a gap of 6 mm where slices are 3 mm apart": 19}


def test_a_file_cut_short_leaves_a_gap(tmp_path):
    files = write_series(tmp_path, evenly(20, 3))
    files[7].write_bytes(files[7].read_bytes()[:-100])
    found, left_out = find(tmp_path)
    assert found == []
    assert left_out[0].path == files[7]
    assert left_out[0].reason.startswith("truncated: ")
    assert left_out[1].reason.startswith("missing slices: ")


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


def test_enhanced_file_of_several_volumes(tmp_path):
    write_enhanced(tmp_path / "e", [*evenly(9), *evenly(9)])
    assert reasons(find(tmp_path)[1]) == {"several volumes in one file: 18 frames": 1}


def test_enhanced_localiser_of_several_planes(tmp_path):
    path = write_enhanced(tmp_path / "e", evenly(9), shared=False)
    header = pydicom.dcmread(path)
    for groups in header.PerFrameFunctionalGroupsSequence[:4]:
        groups.PlaneOrientationSequence[0].ImageOrientationPatient = SAGITTAL
    header.save_as(path)
    assert reasons(find(tmp_path)[1]) == {"mixed orientations": 1}


def test_copy_of_an_enhanced_file(tmp_path):
    shutil.copy(write_enhanced(tmp_path / "e", evenly(9)), tmp_path / "f")
    found, left_out = find(tmp_path)
    assert [one.files for one in found] == [("e",)]
    assert left_out == [LeftOut(path=tmp_path / "f", reason="duplicate slice")]


@pytest.mark.parametrize("uid", ["1.2.3", None])
def test_slices_that_an_anonymiser_gave_no_identifiers_of_their_own(tmp_path, uid):
    files = write_series(tmp_path, evenly(8))
    for path in files:
        edit(path, SOPInstanceUID=uid)
    found, left_out = find(tmp_path)
    assert ([len(one.files) for one in found], left_out) == ([8], [])


def test_localiser_of_three_planes_is_called_one(tmp_path):
    planes = [[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], SAGITTAL]
    write_series(
        tmp_path,
        evenly(9),
        "MR",
        each=lambda number: {"ImageOrientationPatient": planes[number // 3]},
        SeriesDescription="3 Plane Loc",
    )
    found, left_out = find(tmp_path)
    assert not found
    assert {one.reason for one in left_out} == {"localiser: by its description"}


def test_slices_without_positions(tmp_path):
    write_series(tmp_path, [None] * 9)
    assert reasons(find(tmp_path)[1]) == {"no position in the header": 9}


def test_uneven_mr_and_pet_are_left_out_but_ct_is_kept(tmp_path):
    for modality in ("CT", "MR", "PT"):
        heights = along_z(0, 4, 8, 12, 14, 18, 22, 26, 30, 34)
        write_series(tmp_path / modality, heights, modality)
    found, left_out = find(tmp_path)
    assert [one.folder.name for one in found] == ["CT"]
    assert [(one.path.name, one.reason.partition(":")[0]) for one in left_out] == [
        ("MR", "uneven slice distances"),
        ("PT", "uneven slice distances"),
    ]


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


def test_report_beside_a_series(tmp_path):
    write_series(tmp_path, evenly(8))
    report = {
        "SOPClassUID": pydicom.uid.XRayRadiationDoseSRStorage,
        "SOPInstanceUID": generate_uid(),
        "Modality": "SR",
        "PatientID": "P-0815",
        "SeriesInstanceUID": generate_uid(),
    }
    write_slice(tmp_path / "report.dcm", report, None)
    found, left_out = find(tmp_path)
    assert len(found) == 1
    assert left_out[0].reason == "dose report: X-Ray Radiation Dose SR Storage"


def spoil(path: Path, content: bytes, put: bytes) -> None:
    """Put other bytes, as many, in the place of those that a file has once."""
    whole = path.read_bytes()
    assert whole.count(content) == 1
    assert len(put) == len(content)
    path.write_bytes(whole.replace(content, put))


# Group and element, value representation and length, as an explicit header in little-endian order has them.
THICKNESS = b"\x18\x00\x50\x00DS\x04\x00"
PIXEL_SPACING = b"\x28\x00\x30\x00DS\x08\x00"
ECHO_TIME = b"\x18\x00\x81\x00DS\x04\x00"
RESCALE_SLOPE = b"\x28\x00\x53\x10DS\x04\x00"
SOP_CLASS = b"\x08\x00\x16\x00UI"


def test_a_malformed_thickness_can_be_done_without(tmp_path):
    for path in write_series(tmp_path, evenly(8)):
        spoil(path, THICKNESS + b"2.5 ", THICKNESS + b"2,5 ")
    found, left_out = find(tmp_path)
    assert ([len(one.files) for one in found], left_out) == ([8], [])


def test_reasons_quote_nothing_of_a_malformed_header(tmp_path):
    for path in write_series(tmp_path / "spacing", evenly(8)):
        spoil(path, PIXEL_SPACING + b"0.8\\0.5 ", PIXEL_SPACING + b"Doe^Jane")
    write_series(tmp_path / "colours", evenly(8), PhotometricInterpretation="DOE JANE")
    write_series(tmp_path / "class", evenly(8), SOPClassUID="1.2.826.0.1.4711")
    assert {(one.reason, one.files) for one in find(tmp_path)[1]} == {
        ("unreadable: PixelSpacing: ValueError", 1),
        ("colour pictures: other", 8),
        ("not an image volume: not a standard SOP class", 8),
    }


def test_a_length_that_takes_in_other_tags(tmp_path):
    """Half a header becomes the SOP class, names and dates among it."""
    files = write_series(tmp_path, evenly(8))
    for path in files:
        content = path.read_bytes()
        at = content.index(SOP_CLASS) + len(SOP_CLASS)
        length = int.from_bytes(content[at : at + 2], "little") + 300
        path.write_bytes(content[:at] + length.to_bytes(2, "little") + content[at + 2 :])
    told = " ".join(reasons(find(tmp_path)[1]))
    assert told
    assert not any(word in told for word in ("Doe", "2020", "P-0815"))


def test_a_header_cut_short(tmp_path):
    (path,) = write_series(tmp_path, evenly(1))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"Doe^Jane") + 2])
    ((left_out,), _) = find(tmp_path)[::-1]
    assert left_out.reason.startswith(("truncated", "unreadable"))
    assert "-" not in left_out.reason


@pytest.mark.filterwarnings("ignore")
def test_nothing_of_pydicom_is_seen(tmp_path):
    for path in write_series(tmp_path, evenly(8), SpecificCharacterSet="ISO_IR 999"):
        spoil(path, b"P-0815", b"P-\xd608\x1b")
    code = (
        "import sys; from pathlib import Path; from dae3d.scans.dicom.finder import find_series; "
        "print(len(list(find_series(sorted(Path(sys.argv[1]).iterdir()), b'salt'))))"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("1\n", "")


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


def test_folders_are_series_where_an_anonymiser_left_one_identifier_for_all(tmp_path):
    same = dict.fromkeys(("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID"), "1.2")
    for name, start in (("a", -100), ("b", -75)):
        write_series(tmp_path / name, evenly(10, start=start), each=lambda number: same)
    found, left_out = find(tmp_path)
    assert not left_out
    assert [(one.folder.name, len(one.files)) for one in found] == [("a", 10), ("b", 10)]


def test_other_pixels_under_the_same_identifier_are_no_copies(tmp_path):
    uids = one_series()
    for name, seed in (("a", 0), ("b", 100), ("c", 100)):
        write_series(
            tmp_path / name,
            evenly(10),
            each=lambda number: {"SOPInstanceUID": f"1.2.{number}"},
            pixels=lambda number, seed=seed: pixels_of(number + seed),
            **uids,
        )
    found, left_out = find(tmp_path)
    assert [one.folder.name for one in found] == ["a", "b"]
    assert left_out == [LeftOut(path=tmp_path / "c", reason="duplicate slice", files=10)]


def test_enhanced_files_under_the_same_identifier(tmp_path):
    """The second has other pixels, the third lies elsewhere, the fourth is a copy."""
    uids = one_series() | {"SOPInstanceUID": "1.2.3"}
    first = write_enhanced(tmp_path / "a", evenly(9), "CT")
    edit(first, **uids)
    header = pydicom.dcmread(first)
    header.PixelData = header.PixelData[::-1]
    header.save_as(tmp_path / "b")
    edit(write_enhanced(tmp_path / "c", evenly(9, start=-98.75), "CT"), **uids)
    shutil.copy(first, tmp_path / "d")
    found, left_out = find(tmp_path)
    assert [(one.files, one.header.shape[2]) for one in found] == [(("a",), 9), (("b",), 9), (("c",), 9)]
    assert len({one.series for one in found}) == 3
    assert left_out == [LeftOut(path=tmp_path / "d", reason="duplicate slice")]


@pytest.mark.parametrize(
    ("modality", "first", "second"),
    [
        ("MR", {"EchoTime": 10}, {"EchoTime": 90}),
        ("MR", {"DiffusionBValue": 0.0}, {"DiffusionBValue": 800.0}),
        ("CT", {"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}),
        ("CT", {"ImageType": ["ORIGINAL", "PRIMARY"]}, {"ImageType": ["DERIVED", "SECONDARY"]}),
        ("CT", {"SliceThickness": 2}, {"SliceThickness": 5}),
        ("CT", {"KVP": 80}, {"KVP": 140}),
    ],
)
@pytest.mark.parametrize("start", [-99.0, -98.7])
def test_contrasts_between_each_others_slices_are_told_apart(tmp_path, modality, first, second, start):
    """Halfway between them, all slices together are even; elsewhere they are not."""
    uids = one_series()
    write_series(tmp_path, evenly(20, 2), modality, name="a{}", **uids, **first)
    write_series(tmp_path, evenly(20, 2, start), modality, name="b{}", **uids, **second)
    found, left_out = find(tmp_path)
    assert not left_out
    assert sorted("".join(sorted({name[0] for name in one.files})) for one in found) == ["a", "b"]


def test_thick_and_thin_slices_between_each_other(tmp_path):
    uids = one_series()
    write_series(tmp_path, evenly(20, 1), name="a{}", **uids, ConvolutionKernel="B30", SliceThickness=1)
    write_series(
        tmp_path, evenly(10, 2, -100.5), name="b{}", **uids, ConvolutionKernel="B70", SliceThickness=2
    )
    found, _ = find(tmp_path)
    assert sorted((one.files[0][0], len(one.files)) for one in found) == [("a", 20), ("b", 10)]


def test_passes_of_one_acquisition_are_one_stack(tmp_path):
    """2-D MR is taken in passes: every second slice, then those between."""
    write_series(tmp_path, evenly(20), "MR", each=lambda number: {"AcquisitionNumber": 1 + number % 2})
    assert [len(one.files) for one in find(tmp_path)[0]] == [20]


@pytest.mark.parametrize(
    "time",
    [
        lambda t: {"FrameReferenceTime": 1000.0 * t, "AcquisitionTime": f"10{t:02d}00"},
        lambda t: {"AcquisitionTime": f"10{t:02d}00.5"},
    ],
)
def test_time_points_by_their_times(tmp_path, time):
    uids = one_series()
    for t in (2, 0, 1):
        pixels = {"pixels": lambda number, t=t: pixels_of(number + 50 * t).astype(np.int16)}
        write_series(tmp_path, evenly(10), "PT", name=f"{t}-{{}}", **pixels, **uids, **time(t))
    found, left_out = find(tmp_path)
    assert not left_out
    assert [(one.files[0][0], one.volume, one.volumes) for one in found] == [
        ("0", 0, 3),
        ("1", 1, 3),
        ("2", 2, 3),
    ]


def test_two_tube_voltages_at_one_place_are_two_scans(tmp_path):
    uids = one_series()
    for kv in (80, 140):
        pixels = {"pixels": lambda number, kv=kv: pixels_of(number + kv)}
        write_series(tmp_path, evenly(10), name=f"{kv}-{{}}", KVP=kv, **pixels, **uids)
    found, left_out = find(tmp_path)
    assert not left_out
    assert [(one.files[0][:2], one.volumes) for one in found] == [("80", 1), ("14", 1)]


def test_echoes_a_hair_aside_of_each_other(tmp_path):
    """Float noise, here 0.015 mm of slices that lie 2.5 mm apart."""
    uids = one_series()
    for echo in (10, 20, 30):
        start = -100 + 0.015 * (echo / 10 - 2)
        write_series(tmp_path, evenly(10, start=start), "MR", name=f"{echo}-{{}}", EchoTime=echo, **uids)
    found, left_out = find(tmp_path)
    assert not left_out
    assert [(one.files[0][:2], one.header.shape[2]) for one in found] == [("10", 10), ("20", 10), ("30", 10)]


def test_thousands_of_orientations_take_no_quadratic_time():
    orientations = [tuple(map(float, tilted(0.05 * number))) for number in range(4000)]
    slices = [made([0, 0, number], orientation) for number, orientation in enumerate(orientations)]
    started = thread_time()
    (stack,) = stacks(slices)  # too few slices of each for planes
    assert len(stack.slices) == 4000
    assert thread_time() - started < 5  # of the CPU, whatever else it does


@pytest.mark.parametrize(
    ("tags", "slices", "kept"),
    [
        ({"SeriesDescription": "Bone survey 2mm"}, 40, True),
        ({"SeriesDescription": "Bone survey 2mm"}, 10, False),
        ({"SeriesDescription": "CHEST 1mm", "ProtocolName": "6.1 Bone Survey WB"}, 10, True),
        ({"ProtocolName": "Scout"}, 10, False),
    ],
)
def test_words_make_a_localiser_of_few_slices_only(tmp_path, tags, slices, kept):
    write_series(tmp_path, evenly(slices), **tags)
    assert bool(find(tmp_path)[0]) is kept


def test_headers_that_lack_what_can_be_supplied(tmp_path):
    for path in write_series(tmp_path, evenly(8)):
        edit(path, PhotometricInterpretation=None, PixelRepresentation=None)
    ((found,), left_out) = find(tmp_path)
    assert (found.header.dtype, left_out) == ("uint16", [])


def test_headers_without_rows(tmp_path):
    for path in write_series(tmp_path, evenly(8)):
        edit(path, Rows=None)
    assert reasons(find(tmp_path)[1]) == {"no rows or columns in the header": 8}


def test_a_malformed_time_of_the_sequence_stops_nothing(tmp_path):
    for path in write_series(tmp_path / "bad", evenly(8), "MR"):
        spoil(path, ECHO_TIME + b"12.0", ECHO_TIME + b"12ms")
    write_series(tmp_path / "good", evenly(8))
    found, left_out = find(tmp_path)
    assert "good" in {one.folder.name for one in found}
    assert all(one.reason.startswith("unreadable") for one in left_out)


def test_planes_a_third_of_a_degree_apart_are_two_stacks(tmp_path):
    """In whichever order their files are read, under the same names."""
    uids = one_series()
    for name, degrees in (("a", 1.0), ("b", 1.3)):
        write_series(
            tmp_path, evenly(10), name=f"{name}{{}}", ImageOrientationPatient=tilted(degrees), **uids
        )
    files = sorted(tmp_path.iterdir())
    for order in (files, files[::-1]):
        found = list(find_series(order, SALT))
        assert sorted((one.files[0][0], len(one.files)) for one in found) == [("a", 10), ("b", 10)]
        names = {one.series for one in found}
        assert len(names) == 2
        assert names == {one.series for one in find_series(files, SALT)}


def test_orientations_with_noise_are_one_plane(tmp_path):
    """A few ten-thousandths between slices, more than a plane's worth between the outermost."""
    noise = np.random.default_rng(0).uniform(0, 9e-4, 40)
    write_series(
        tmp_path,
        evenly(40),
        each=lambda number: {"ImageOrientationPatient": [1, 0, round(float(noise[number]), 6), 0, 1, 0]},
    )
    assert [len(one.files) for one in find(tmp_path)[0]] == [40]


def test_a_copy_that_cannot_be_compared(tmp_path):
    write_series(tmp_path / "a", evenly(8))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in (tmp_path / "b").iterdir():
        spoil(path, RESCALE_SLOPE + b"1.0 ", RESCALE_SLOPE + b"1,0 ")
    found, left_out = find(tmp_path)
    # Taken for another image under the same identifiers; `prepare` finds that it cannot be read.
    assert [one.folder.name for one in found] == ["a", "b"]
    assert not left_out


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"NumberOfFrames": 10**9}, "too large: 240000000000 bytes of pixels, more than 4 GiB"),
        ({"Rows": 65535, "Columns": 65535}, "too large: 8589672450 bytes of pixels, more than 4 GiB"),
        ({"Rows": 30000, "Columns": 30000}, "truncated: "),
        ({"NumberOfFrames": 10**9, "Rows": 0}, "truncated: "),
        ({"NumberOfFrames": 10**9, "BitsAllocated": 0}, "truncated: "),
    ],
)
def test_more_pixels_than_can_be_in_the_file(tmp_path, tags, reason, syntax):
    """Refused by the header, before a list of a thousand million frames is made."""
    (path,) = write_series(tmp_path, evenly(1), "MR")
    header = pydicom.dcmread(path)
    for keyword, value in tags.items():
        setattr(header, keyword, value)
    header.file_meta.TransferSyntaxUID = syntax
    if syntax == JPEG2000Lossless:
        header.PixelData = encapsulate([bytes(500)])
        header["PixelData"].is_undefined_length = True
    header.save_as(path)
    tracemalloc.start()
    found, (left_out,) = find(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found
    assert left_out.reason.startswith(reason)
    assert peak < 10_000_000


@pytest.mark.parametrize("length_said", [True, False])
def test_sequences_in_sequences(tmp_path, length_said):
    """20,000 deep pydicom gives up, and GDCM kills the process; 20 deep there are real ones."""
    files = write_series(tmp_path, evenly(10), "MR")
    for number, path in enumerate(files):
        raw = path.read_bytes()
        place = raw.rindex(b"\xe0\x7f\x10\x00OW")
        path.write_bytes(raw[:place] + nested(20 if number else 20_000, length_said) + raw[place:])
    found, left_out = find(tmp_path)
    assert [len(one.files) for one in found] == [9]
    assert reasons(left_out) == {"unreadable: sequences nested more than a hundred deep": 1}


def nested(depth: int, length_said: bool) -> bytes:
    """A Content Sequence in a Content Sequence in ..., explicit VR."""
    if not length_said:
        start = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        return start * depth + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * depth
    parts, length = [], 0
    for _ in range(depth):
        parts.append(
            b"\x40\x00\x30\xa7SQ\0\0" + struct.pack("<I4sI", length + 8, b"\xfe\xff\x00\xe0", length)
        )
        length += 20
    return b"".join(reversed(parts))
