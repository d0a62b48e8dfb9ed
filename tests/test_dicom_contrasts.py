"""Slices of several images in one series: what tells them apart, and what does not."""

import numpy as np
import pytest

from dae3d.scans.dicom.volume import read_series
from dicom_files import evenly, item, pixels_of, write_enhanced, write_series
from dicom_found import find, one_series, reasons

pytestmark = pytest.mark.slow

# 20 of 40 places, at random: no block, and no regular steps.
FIRST = set(np.random.default_rng(3).permutation(40)[:20].tolist())


def shape_and_files(found):
    return [(one.header.shape[2], len(one.files)) for one in found]


@pytest.mark.parametrize(
    ("modality", "name", "first", "second"),
    [
        ("MR", "echo", {"EchoTime": 4.92, "EchoNumbers": 1}, {"EchoTime": 7.38, "EchoNumbers": 2}),
        ("MR", "echo", {"EchoTime": None, "EchoNumbers": 1}, {"EchoTime": None, "EchoNumbers": 2}),
        ("MR", "inversion time", {"InversionTime": 300}, {"InversionTime": 2500}),
        ("MR", "flip angle", {"FlipAngle": 5}, {"FlipAngle": 26}),
        ("MR", "repetition time", {"RepetitionTime": 400}, {"RepetitionTime": 2000}),
        ("MR", "b-value", {}, {"DiffusionBValue": 1000.0}),
        (
            "MR",
            "gradient",
            {"DiffusionBValue": 9.0, "DiffusionGradientOrientation": [1, 0, 0]},
            {"DiffusionBValue": 9.0, "DiffusionGradientOrientation": [0, 1, 0]},
        ),
        (
            "MR",
            "image type",
            {"ImageType": ["ORIGINAL", "PRIMARY", "M"]},
            {"ImageType": ["ORIGINAL", "PRIMARY", "P"]},
        ),
        ("MR", "scan options", {"ScanOptions": "PFP"}, {"ScanOptions": ["PFP", "FS"]}),
        ("MR", "contrast agent", {}, {"ContrastBolusAgent": "Gadovist"}),
        ("MR", "temporal position", {"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}),
        ("MR", "acquisition", {"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
        ("CT", "acquisition", {"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
        ("CT", "kernel", {"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B70f"}),
        ("CT", "tube voltage", {"KVP": 80}, {"KVP": 140}),
        (
            "CT",
            "image type",
            {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "VMI"]},
            {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "VUE"]},
        ),
        (
            "CT",
            "phase",
            {"NominalPercentageOfCardiacPhase": 40.0},
            {"NominalPercentageOfCardiacPhase": 75.0},
        ),
        ("PT", "units", {"Units": "BQML"}, {"Units": "CNTS"}),
        ("PT", "corrections", {"CorrectedImage": ["DECY", "ATTN"]}, {"CorrectedImage": ["DECY"]}),
        ("PT", "frame reference time", {"FrameReferenceTime": 1000.0}, {"FrameReferenceTime": 9000.0}),
    ],
)
def test_one_slice_a_place_of_two_images_is_left_out(tmp_path, modality, name, first, second):
    """An archive kept one file for each instance number, of either image."""
    write_series(tmp_path, evenly(40, 2), modality, each=lambda number: first if number in FIRST else second)
    found, left_out = find(tmp_path)
    assert not found
    assert {one.reason for one in left_out} == {f"slices of several images mixed: {name} differs"}


def test_eight_echoes_at_a_dozen_places_are_left_out(tmp_path):
    """Most of them once: too few for stacks of their own, and no one image either."""
    echoes = np.random.default_rng(0).integers(1, 9, 12)
    write_series(tmp_path, evenly(12), "MR", each=lambda number: {"EchoTime": 10 * int(echoes[number])})
    # Neighbours may be of one echo; `index` wants 8 slices.
    assert all(one.header.shape[2] < 4 for one in find(tmp_path)[0])


def test_a_slice_of_another_echo_at_the_end_is_left_out_alone(tmp_path):
    write_series(tmp_path, evenly(20), "MR", each=lambda number: {"EchoTime": 90 if number == 19 else 10})
    found, left_out = find(tmp_path)
    assert shape_and_files(found) == [(19, 19)]
    assert reasons(left_out) == {"a single slice": 1}


@pytest.mark.parametrize("name", ["EchoTime", "RepetitionTime"])
def test_halves_of_two_contrasts_are_two_scans(tmp_path, name):
    write_series(tmp_path, evenly(20), "MR", each=lambda number: {name: 90 if number < 10 else 10})
    found, left_out = find(tmp_path)
    assert (shape_and_files(found), left_out) == ([(10, 10), (10, 10)], [])


def test_halves_of_two_times_are_volumes_of_a_series_in_time(tmp_path):
    write_series(tmp_path, evenly(20), "MR", each=lambda number: {"TemporalPositionIndex": 1 + number // 10})
    assert [(one.volume, one.volumes) for one in find(tmp_path)[0]] == [(0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("modality", "first", "second"),
    [
        ("MR", {"EchoTime": "85"}, {"EchoTime": "85.0"}),
        ("MR", {"EchoTime": "4.92"}, {"EchoTime": "4.9199"}),
        ("MR", {"SliceThickness": "2.5"}, {"SliceThickness": "2.499"}),
        ("MR", {"FlipAngle": "90"}, {"FlipAngle": "9.0e1"}),
        ("MR", {"DiffusionBValue": 1000.0}, {"DiffusionBValue": 1000.0001}),
        ("CT", {"KVP": "120"}, {"KVP": "120.0"}),
        ("CT", {"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B30F "}),
    ],
)
@pytest.mark.parametrize("step", [2, 3])
def test_values_that_are_only_written_otherwise_are_one(tmp_path, modality, first, second, step):
    """As every second slice has it: split, it would be two volumes of twice the slice distance."""
    write_series(tmp_path, evenly(24), modality, each=lambda number: second if number % step else first)
    found, left_out = find(tmp_path)
    assert (shape_and_files(found), left_out) == ([(24, 24)], [])


@pytest.mark.parametrize(
    ("modality", "each"),
    [
        ("PT", lambda number: {"RescaleSlope": 1 + number / 7}),
        (
            "PT",
            lambda number: {
                "FrameReferenceTime": 1000.0 * (number // 8),
                "AcquisitionTime": f"1010{number // 8:02d}",
            },
        ),
        ("CT", lambda number: {"XRayTubeCurrent": 100 + number % 5, "Exposure": number % 3}),
        ("CT", lambda number: {"AcquisitionNumber": 1 + number // 2}),
        ("CT", lambda number: {"WindowCenter": number, "ContentTime": f"1010{number}"}),
        # Slices that were compressed with losses are derived ones.
        ("MR", lambda number: {"ImageType": ["DERIVED" if number in FIRST else "ORIGINAL", "PRIMARY", "M"]}),
        # Another technique between skull base and vertex.
        (
            "CT",
            lambda number: {"KVP": 140 if number < 10 else 120, "ConvolutionKernel": f"H{number // 10}0s"},
        ),
        ("CT", lambda number: {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", *["ADD"] * (number < 10)]}),
        ("MR", lambda number: {"AcquisitionTime": f"1010{(7 * number) % 24:02d}"}),
        ("MR", lambda number: {"AcquisitionTime": f"10101{(7 * number) % 24 // 3}"}),
        ("MR", lambda number: {"TriggerTime": float((7 * number) % 24)}),
        # Under gating the repetition time follows the breath.
        ("MR", lambda number: {"RepetitionTime": 3000 + 211 * ((5 * number) % 7)}),
        ("MR", lambda number: {"TemporalPositionIdentifier": number + 1}),
    ],
)
def test_what_varies_along_one_image_does_not_split_it(tmp_path, modality, each):
    pixels = {"pixels": lambda number: pixels_of(number).astype(np.int16)} if modality == "PT" else {}
    write_series(tmp_path, evenly(24), modality, each=each, **pixels)
    found, left_out = find(tmp_path)
    assert (shape_and_files(found), left_out) == ([(24, 24)], [])


@pytest.mark.parametrize(
    ("said", "volumes"),
    [
        ({"SliceThickness": 5}, 2),
        ({"SliceThickness": 2.5}, 1),
        ({"SliceThickness": 2}, 1),  # with a gap between slices
        ({"SliceThickness": 4, "SpacingBetweenSlices": 5}, 2),
        ({"SliceThickness": 4, "SpacingBetweenSlices": 2.5}, 1),  # slices that overlap
        ({"SliceThickness": None}, 1),
    ],
)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_acquisitions_half_a_step_apart_are_passes_or_volumes(tmp_path, modality, said, volumes):
    """Slices of 5 mm, 5 mm apart, taken once more 2.5 mm aside; or those of 2.5 mm, in two passes."""
    write_series(
        tmp_path, evenly(24), modality, each=lambda number: {"AcquisitionNumber": 1 + number % 2}, **said
    )
    found, left_out = find(tmp_path)
    assert not left_out
    assert [(one.header.shape[2], one.volumes) for one in found] == [(24 // volumes, volumes)] * volumes


@pytest.mark.parametrize(
    ("volumes", "values"),
    [
        # As in a real series of Philips, two of whose 32 directions differ by 0.02 %.
        (3, [{"DiffusionGradientOrientation": [x, -0.2706, -0.707]} for x in (-0.65328, -0.65349, 0.5)]),
        (1, [{"EchoTime": time} for time in (10, 10.05, 20)]),
        (1, [{"RepetitionTime": time} for time in (500, 700, 3000)]),
    ],
)
def test_values_nearly_alike_are_told_apart_at_one_place(tmp_path, volumes, values):
    uids = one_series()
    for number, tags in enumerate(values):
        pixels = {"pixels": lambda i, number=number: pixels_of(i + 50 * number)}
        write_series(tmp_path, evenly(10), "MR", name=f"{number}-{{}}", **pixels, **uids, **tags)
    found, left_out = find(tmp_path)
    assert ([one.volumes for one in found], left_out) == ([volumes] * 3, [])


def diffusion(b_value, direction):
    towards = item(DiffusionGradientOrientation=direction)
    return {"MRDiffusionSequence": item(DiffusionBValue=b_value, DiffusionGradientDirectionSequence=towards)}


def test_files_of_frames_in_time_are_volumes_of_one_series(tmp_path):
    uids = one_series()
    for name, time in (("a", 3), ("b", 1), ("c", 2)):
        write_enhanced(
            tmp_path / name,
            evenly(9),
            pixels=lambda number, time=time: pixels_of(number + 20 * time),
            each=lambda number, time=time: {"FrameContentSequence": item(TemporalPositionIndex=time)},
            **uids,
        )
    found, left_out = find(tmp_path)
    assert not left_out
    assert sorted((one.volume, one.volumes, one.files) for one in found) == [
        (0, 3, ("b",)),
        (1, 3, ("c",)),
        (2, 3, ("a",)),
    ]


def test_files_of_frames_that_nothing_but_their_numbers_tell_apart(tmp_path):
    uids = one_series()
    for name, number in (("a", 2), ("b", 1)):
        pixels = {"pixels": lambda frame, number=number: pixels_of(frame + 20 * number)}
        write_enhanced(tmp_path / name, evenly(9), InstanceNumber=number, **pixels, **uids)
    assert sorted((one.volume, one.volumes, one.files) for one in find(tmp_path)[0]) == [
        (0, 2, ("b",)),
        (1, 2, ("a",)),
    ]


def test_files_of_frames_of_several_b_values_and_echoes(tmp_path):
    """Directions of one b-value are volumes of one series; other b-values and echoes are other images."""
    uids = one_series()
    for name, b_value, direction in (("a", 0, [0, 0, 0]), ("b", 1000, [1, 0, 0]), ("c", 1000, [0, 1, 0])):
        write_enhanced(
            tmp_path / name,
            evenly(9),
            each=lambda number, b=b_value, v=direction: diffusion(b, v),
            **uids,
        )
    write_enhanced(
        tmp_path / "d",
        evenly(9),
        each=lambda number: {"MREchoSequence": item(EffectiveEchoTime=90.0)},
        **uids,
    )
    found, left_out = find(tmp_path)
    assert not left_out
    assert sorted((one.files[0], one.volumes) for one in found) == [("a", 1), ("b", 2), ("c", 2), ("d", 1)]


def test_files_of_frames_at_several_places_are_several_scans(tmp_path):
    uids = one_series()
    for name, start in (("a", -100), ("b", 0)):
        write_enhanced(tmp_path / name, evenly(9, start=start), **uids)
    assert [one.volumes for one in find(tmp_path)[0]] == [1, 1]


def test_two_echoes_mixed_in_one_file_of_frames(tmp_path):
    write_enhanced(
        tmp_path / "e",
        evenly(40, 2),
        each=lambda number: {"MREchoSequence": item(EffectiveEchoTime=5.0 if number in FIRST else 8.0)},
    )
    assert reasons(find(tmp_path)[1]) == {"slices of several images mixed: echo differs": 1}


def concatenation(folder, uids, parts=(1, 2), total=2, positions=evenly, uid="1.2.7"):
    """A volume of 20 slices in two files of 10."""
    for part in parts:
        write_enhanced(
            folder / f"{part}.dcm",
            positions(20)[10 * part - 10 : 10 * part],
            pixels=lambda number, part=part: pixels_of(number + 10 * part - 10),
            ConcatenationUID=uid,
            InConcatenationNumber=part,
            InConcatenationTotalNumber=total,
            **uids,
        )


def test_a_volume_in_several_files_is_joined(tmp_path):
    concatenation(tmp_path, one_series())
    (one,), left_out = find(tmp_path)
    assert (one.files, one.header.shape, left_out) == (("1.dcm", "2.dcm"), (10, 12, 20), [])
    volume = read_series([one.folder / name for name in one.files])
    assert np.array_equal(volume.array, np.stack([pixels_of(number) for number in range(20)]).T)


def test_volumes_in_several_files_are_volumes_of_one_series(tmp_path):
    uids = one_series()
    concatenation(tmp_path / "a", uids)
    concatenation(tmp_path / "b", uids, uid="1.2.8")
    assert [(one.header.shape[2], one.volumes) for one in find(tmp_path)[0]] == [(20, 2), (20, 2)]


@pytest.mark.parametrize(("parts", "total", "there"), [((1,), 2, "1 of the 2"), ((2,), None, "1 of the 2")])
def test_a_volume_of_which_a_file_is_missing(tmp_path, parts, total, there):
    concatenation(tmp_path, one_series(), parts, total)
    assert reasons(find(tmp_path)[1]) == {f"missing files: {there} files of one volume": 1}


def test_several_volumes_in_several_files(tmp_path):
    concatenation(tmp_path, one_series(), positions=lambda count: [*evenly(10), *evenly(10)])
    assert reasons(find(tmp_path)[1]) == {"several volumes in 2 files: 20 frames": 2}
