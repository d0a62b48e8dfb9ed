"""Series of several images, which are split into stacks, and what does not split them."""

from time import thread_time

import numpy as np
import pytest

from dae3d.scans.dicom.finder import find_series
from dae3d.scans.dicom.stacks import stacks
from dicom_files import SAGITTAL, evenly, pixels_of, tilted, write_series
from dicom_found import SALT, find, one_series
from dicom_made import made

pytestmark = pytest.mark.slow


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
