import tarfile
from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dae3d.errors import ScanError
from dae3d.scans.dicom.geometry import geometry
from dae3d.scans.dicom.header import read_slices
from dicom_files import SAGITTAL, along_z, edit, evenly, tilted, write_enhanced, write_series
from dicom_made import made

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def slices_of(files):
    return [one for path in files for one in read_slices(path)]


@pytest.mark.parametrize(
    ("archive", "kind", "shape", "tilt"),
    [
        ("dicom/mr_t1_datalad", "regular", (274, 384, 384), 0),
        ("dicom/ct_head_ge_variable_tilt", "uneven", (512, 512, 28), 18.5),  # its Gantry/Detector Tilt
        ("awkward/dicom/failing_gantrytilting", "tilted", (512, 512, 4), 14),
        ("awkward/dicom/generic_compressed_j2k", "regular", (256, 256, 4), 0),
        ("awkward/dicom/siemens_multiframe_anatomical", "regular", (256, 256, 8), 0),
        ("awkward/dicom/philips_enhanced_anatomical", "regular", (256, 256, 8), 0),
    ],
)
def test_geometry_of_real_series(shared_data, tmp_path, archive, kind, shape, tilt):
    files = unpacked(shared_data / f"{archive}.tar.gz", tmp_path)
    grid = geometry(slices_of(files))
    assert (grid.kind, grid.shape) == (kind, shape)
    assert grid.tilt == pytest.approx(tilt, abs=0.01)
    if kind == "regular":
        ordered = [files[i] for i in grid.order] if len(files) > 1 else files
        assert np.allclose(grid.affine, affine_of_itk(ordered), atol=2e-3)


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        ("failing_sliceincrement", "missing slices: a gap of 10 mm where slices are 5 mm apart"),
        ("failing_sliceorientation", "mixed orientations"),
    ],
)
def test_real_series_that_fit_no_grid(shared_data, tmp_path, archive, reason):
    files = unpacked(shared_data / f"awkward/dicom/{archive}.tar.gz", tmp_path)
    with pytest.raises(ScanError, match=reason):
        geometry(slices_of(files))


def unpacked(archive, folder):
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def affine_of_itk(files):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in files])
    image = reader.Execute() if len(files) > 1 else sitk.ReadImage(str(files[0]))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


@settings(max_examples=60)
@given(
    turn=st.tuples(*[st.floats(-180, 180)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    size=st.tuples(*[st.floats(0.2, 5)] * 3),
    count=st.integers(2, 40),
    seed=st.integers(0, 9999),
)
def test_every_voxel_is_where_the_standard_puts_it(tmp_path_factory, turn, origin, size, count, seed):
    axes = Rotation.from_euler("xyz", turn, degrees=True).as_matrix().T
    positions = [np.array(origin) + axes[2] * size[2] * k for k in range(count)]
    shuffled = np.random.default_rng(seed).permutation(count)
    slices = [made(positions[k], (*axes[0], *axes[1]), (size[0], size[1])) for k in shuffled]
    grid = geometry(slices)
    assert grid.kind == "regular"
    assert [int(shuffled[i]) for i in grid.order] == list(range(count))
    for column, row, k in [(0, 0, 0), (9, 0, 0), (0, 11, 0), (9, 11, count - 1)]:
        # PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1; the first pixel spacing is that between rows.
        place = positions[k] + axes[0] * size[1] * column + axes[1] * size[0] * row
        mapped = grid.affine @ [column, row, k, 1]
        assert np.allclose(mapped[:3], place * [-1, -1, 1], atol=1e-6)
    assert np.linalg.det(grid.affine[:3, :3]) > 0
    assert np.allclose(grid.spacing, (size[1], size[0], size[2]))


def test_tilt_of_a_gantry_shears_the_affine():
    slices = [made(place, tilted(20), modality="CT") for place in evenly(10, 5)]
    grid = geometry(slices)
    assert grid.kind == "tilted"
    assert grid.tilt == pytest.approx(20)
    # The table moves along z, whichever way the gantry leans.
    assert np.allclose(grid.affine[:3, 2], [0, 0, 5])
    assert grid.spacing == pytest.approx((0.5, 0.8, 5))


def test_rounded_direction_cosines_are_no_tilt():
    angle = np.radians(7)
    exact = [1, 0, 0, 0, np.cos(angle), -np.sin(angle)]
    normal = np.cross(exact[:3], exact[3:])
    slices = [made(normal * 3 * k, [round(x, 3) for x in exact]) for k in range(40)]
    assert geometry(slices).kind == "regular"


def test_positions_rounded_to_a_tenth_are_even():
    assert (
        geometry([made(place) for place in along_z(*(round(1.25 * k, 1) for k in range(80)))]).kind
        == "regular"
    )


def test_fine_positions_written_to_a_tenth_are_even():
    """CBCT: 0.45 mm is written 0, 0.5 (or 0.4), 0.9, ...; a tenth is more than a tenth of the distance."""
    heights = [round(0.45 * k, 1) for k in range(60)]
    assert {round(b - a, 1) for a, b in pairwise(heights)} == {0.4, 0.5}
    assert geometry([made(place) for place in along_z(*heights)]).kind == "regular"


@pytest.mark.parametrize("distance", [0.1, 0.2, 0.45])
@pytest.mark.parametrize("missing", [1, 30, 58])
def test_a_fine_slice_that_is_missing_is_not_passed_over(distance, missing):
    heights = [round(distance * k, 1) for k in range(60)]
    del heights[missing]
    with pytest.raises(ScanError, match="missing slices"):
        geometry([made(place) for place in along_z(*heights)])


# A head: 5 mm slices at the base, 10 mm ones above.
HEAD = [0, 5, 10, 15, 20, 30, 40, 50, 60]
THICK = [5, 5, 5, 5, 10, 10, 10, 10, 10]


def test_ct_of_thin_and_thick_slices_is_uneven():
    slices = [made(place, thickness=t, modality="CT") for place, t in zip(along_z(*HEAD), THICK, strict=True)]
    grid = geometry(slices)
    assert grid.kind == "uneven"
    assert grid.spacing[2] == pytest.approx(60 / 8)


@pytest.mark.parametrize(
    ("slices", "reason"),
    [
        ([made([0, 0, 0])], "a single slice"),
        (
            [made(place, thickness=5, modality="CT") for place in along_z(*HEAD)],
            "missing slices: a gap of 10 mm",
        ),
        (
            [made(place) for place in along_z(0, 5, 10, 20, 25, 30)],
            "missing slices: a gap of 10 mm .* 5 mm apart",
        ),
        (
            [made(place, modality="CT") for place in along_z(0, 1, 2, 3, 23, 24, 25)],
            "missing slices: a gap of 20 mm",
        ),
        ([made(place) for place in along_z(0, 5, 11, 15, 20, 27, 30)], "uneven slice distances: 3 to 7 mm"),
        ([made(place) for place in along_z(0, 5, 5, 10)], "same position twice"),
        ([made(place) for place in along_z(0, 0, 0, 0)], "same position twice"),
        ([made([0, 0, 0]), made([0, 0, 5], SAGITTAL)], "mixed orientations"),
        ([made([0, 0, 0]), made([0, 0, 5], shape=(24, 10))], "mixed sizes"),
        ([made([0, 0, 0]), made([0, 0, 5], spacing=(0.8, 0.8))], "mixed sizes"),
        ([made([0, 0, 0]), made([0, 9, 5]), made([0, 0, 10])], "not in line: up to 9 mm off"),
        ([made([0, 0, 0]), made(None)], "no position"),
        ([made([0, 0, 0]), made([0, 0, float("nan")])], "no position"),
        ([made([0, 0, k], spacing=(0.0, 0.0)) for k in range(3)], "zero or non-finite spacing"),
        ([made([0, 0, k], spacing=None) for k in range(3)], "zero or non-finite spacing: none"),
        ([made([0, 0, k], [0] * 6) for k in range(3)], "no orientation"),
        ([made([0, 0, k], [1, 0, 0, 1, 0, 0]) for k in range(3)], "no orientation"),
    ],
)
def test_slices_that_fit_no_grid(slices, reason):
    with pytest.raises(ScanError, match=reason):
        geometry(slices)


@pytest.mark.parametrize("shared", [True, False])
def test_frames_of_an_enhanced_file(tmp_path, shared):
    path = write_enhanced(tmp_path / "e.dcm", evenly(9, -1.5), orientation=tilted(0), shared=shared)
    grid = geometry(read_slices(path))
    assert (grid.kind, grid.shape) == ("regular", (10, 12, 9))
    assert grid.order == tuple(range(8, -1, -1))
    assert grid.spacing == pytest.approx((0.5, 0.8, 1.5))


def test_header_without_orientation(tmp_path):
    files = write_series(tmp_path, evenly(3), ImageOrientationPatient=None)
    with pytest.raises(ScanError, match="no orientation in the header"):
        geometry(slices_of(files))


@pytest.mark.parametrize("text", ["1\\0\\0", ""])
def test_malformed_orientation_counts_as_none(tmp_path, text):
    (path,) = write_series(tmp_path, evenly(1))
    edit(path, ImageOrientationPatient=text.split("\\") if text else "")
    assert read_slices(path)[0].facts.orientation is None
