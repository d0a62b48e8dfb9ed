"""Series and files that are left out: images that are not slices of a volume, localisers, gaps."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from dae3d.scans.manifest import LeftOut
from dicom_files import SAGITTAL, along_z, evenly, tilted, write_enhanced, write_series, write_slice
from dicom_found import find, one_series, reasons

pytestmark = pytest.mark.slow


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
