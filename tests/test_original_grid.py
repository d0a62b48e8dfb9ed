"""Back to the scan's own grid: exact where nothing was resampled, linear where something was."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from nibabel.orientations import aff2axcodes
from scipy.ndimage import map_coordinates

from conftest import smooth_volume
from dae3d.errors import Dae3dError
from dae3d.inference.nifti import write_nifti
from dae3d.inference.original_grid import interpolate_slabs, is_part_of, nearest_classes
from dae3d.inference.sliding import Slab
from dae3d.scans.grids import Grid
from dae3d.scans.readers import Volume, read_volume
from dae3d.store.conform import crop, resample, to_ras
from oriented import ORDERS, affine_of


def grid_of(volume):
    return Grid(volume.array.shape, volume.affine)


def slabs_of(probabilities, axis, cuts):
    """(K, X, Y, Z) cut along `axis`."""
    ends = sorted({c for c in cuts if 0 < c < probabilities.shape[axis + 1]})
    starts = [0, *ends]
    stops = [*ends, probabilities.shape[axis + 1]]
    whole = torch.from_numpy(np.ascontiguousarray(probabilities, dtype=np.float32))
    for start, stop in zip(starts, stops, strict=True):
        yield Slab(axis, start, stop, whole.narrow(axis + 1, start, stop - start))


def back(probabilities, grid, original, axis=0, cuts=()):
    classes = np.zeros(original.shape, np.uint8)
    values = np.full((len(probabilities), *original.shape), np.nan, np.float32)
    interpolate_slabs(slabs_of(probabilities, axis, cuts), grid, original, classes, values)
    return classes, values


@settings(max_examples=40)
@given(order=ORDERS, tilt=st.floats(-0.6, 0.6), shear=st.sampled_from([0.0, 0.3]))
def test_without_resampling_every_voxel_comes_back_where_it_was(order, tilt, shear):
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, (7, 9, 6), dtype=np.uint8)
    scan = Volume(labels, affine_of(order, (0.7, 1.1, 3.0), tilt, shear))
    ras = to_ras(scan)
    assert is_part_of(grid_of(scan), grid_of(ras))
    assert np.array_equal(nearest_classes(ras.array, grid_of(ras), grid_of(scan)), labels)


@settings(max_examples=20)
@given(order=ORDERS)
def test_what_was_cropped_away_is_background(order):
    scan = Volume(np.ones((10, 8, 9), np.uint8), affine_of(order, (1, 2, 3)))
    ras = to_ras(scan)
    box = ((2, 1, 0), (7, 6, 5))
    kept = np.zeros_like(ras.array)
    kept[2:7, 1:6, 0:5] = 1
    expected = nibabel.orientations.apply_orientation(
        kept,
        nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.io_orientation(scan.affine)
        ),
    )
    part = crop(ras, box)
    assert is_part_of(grid_of(scan), grid_of(part))
    assert np.array_equal(nearest_classes(part.array, grid_of(part), grid_of(scan)), expected)
    both = np.stack([1 - part.array, part.array])
    classes, values = back(both, grid_of(part), grid_of(scan), axis=1, cuts=[1, 4])
    assert np.array_equal(classes, expected)
    assert np.array_equal(np.isnan(values[1]), expected == 0)


@settings(max_examples=40)
@given(
    order=ORDERS,
    tilt=st.floats(-0.6, 0.6),
    spacing=st.sampled_from([(1.0, 1.0, 1.0), (2.1, 1.4, 1.7), (0.8, 3.0, 1.5)]),
    axis=st.integers(0, 2),
    cuts=st.lists(st.integers(1, 30), max_size=5),
)
def test_a_linear_function_of_place_comes_back_exactly(order, tilt, spacing, axis, cuts):
    """Linear interpolation repeats a linear function, whatever turns, flips and cuts lie between."""
    scan = Volume(np.zeros((13, 17, 9), np.float32), affine_of(order, (1.3, 0.9, 2.2), tilt))
    scan.array[3:5] = 1
    resampled = resample(to_ras(scan), spacing)
    grid, original = grid_of(resampled), grid_of(scan)
    slope = np.array([0.004, -0.007, 0.003])

    def ramp(where):
        indices = np.moveaxis(np.indices(where.shape), 0, -1)
        value = 0.5 + apply_affine(where.affine, indices) @ slope
        return np.stack([1 - value, value])

    classes, values = back(ramp(grid), grid, original, axis, cuts)
    places = np.moveaxis(np.indices(original.shape), 0, -1)
    in_grid = apply_affine(np.linalg.inv(grid.affine) @ original.affine, places)
    between = ((in_grid > 1e-6) & (in_grid < np.array(grid.shape) - 1 - 1e-6)).all(axis=-1)
    assert between.sum() > 100
    expected = ramp(original)
    np.testing.assert_allclose(values[:, between], expected[:, between], atol=2e-6)
    clear = between & (np.abs(expected[1] - 0.5) > 1e-4)
    assert np.array_equal(classes[clear], expected[1][clear] > 0.5)
    assert not np.isnan(values).any()  # resampling alone leaves no voxel out


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_give_what_the_whole_gives(axis):
    """Compared with SciPy, beyond the outermost centres too."""
    scan = Volume(smooth_volume(1, (24, 20, 15)), affine_of("PIR", (1.0, 1.2, 2.5), 0.2))
    grid, original = (
        grid_of(crop(resample(to_ras(scan), (1.7, 1.9, 1.5)), ((2, 0, 1), (9, 8, 15)))),
        grid_of(scan),
    )
    classes_on_grid = np.random.default_rng(0).dirichlet(np.ones(4), grid.shape)
    probabilities = np.moveaxis(classes_on_grid, -1, 0).astype(np.float32)
    classes, values = back(probabilities, grid, original, axis, cuts=range(1, 40, 3))
    coordinates = apply_affine(
        np.linalg.inv(grid.affine) @ original.affine, np.moveaxis(np.indices(original.shape), 0, -1)
    )
    inside = ~np.isnan(values[0])
    expected = np.stack(
        [map_coordinates(p, np.moveaxis(coordinates, -1, 0), order=1, mode="nearest") for p in probabilities]
    )
    half = (coordinates >= -0.5).all(axis=-1) & (coordinates <= np.array(grid.shape) - 0.5).all(axis=-1)
    assert np.array_equal(inside, half)
    np.testing.assert_allclose(values[:, inside], expected[:, inside], atol=1e-5)
    assert np.array_equal(classes[inside], values[:, inside].argmax(axis=0))
    assert not classes[~inside].any()


def test_nearest_takes_the_class_of_the_closest_centre():
    random = np.random.default_rng(3)
    scan = Volume(np.zeros((6, 7, 5), np.float32), affine_of("LSP", (1.0, 1.3, 2.9), 0.3))
    scan.array[2] = 1
    resampled = resample(to_ras(scan), (2.3, 1.7, 1.1))
    grid, original = grid_of(resampled), grid_of(scan)
    labels = random.integers(1, 9, grid.shape, dtype=np.uint8)
    found = nearest_classes(labels, grid, original)
    centres = apply_affine(grid.affine, np.indices(grid.shape).reshape(3, -1).T)
    for voxel in np.ndindex(*original.shape):
        distance = np.linalg.norm(centres - apply_affine(original.affine, voxel), axis=1)
        first, second = np.sort(distance)[:2]
        if second - first > 1e-6:
            assert found[voxel] == labels.ravel()[distance.argmin()]


def test_only_whole_voxel_maps_need_no_interpolation():
    scan = Volume(np.ones((8, 8, 8), np.float32), affine_of("LPS", (2, 2, 2)))
    scan.array[0] = 0
    ras = to_ras(scan)
    assert is_part_of(grid_of(scan), grid_of(resample(ras, (1, 1, 1))))  # each voxel is one of the finer ones
    assert not is_part_of(grid_of(scan), grid_of(resample(ras, (1.5, 2, 2))))
    assert not is_part_of(grid_of(scan), grid_of(resample(ras, (4, 4, 4))))


# Files -----------------------------------------------------------------------------------------------------


def placed(path, scan):
    volume = read_volume(scan)
    array = np.zeros(volume.array.shape, np.uint8)
    write_nifti(path, array, scan, volume.affine)
    return nibabel.load(path), volume


def test_qform_and_sform_stay_as_they_are_even_where_they_differ(tmp_path):
    source = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    source.header.set_qform(affine_of("LAS", (1, 2, 3), 0.2), 1)
    source.header.set_sform(affine_of("LAS", (1, 2, 3), 0.25, 0.1), 4)
    source.header.set_xyzt_units("mm", "sec")
    source.header["descrip"] = b"Jane Doe"
    source.to_filename(tmp_path / "scan.nii.gz")
    written, _ = placed(tmp_path / "out" / "label.nii.gz", tmp_path / "scan.nii.gz")
    for name in ("get_qform", "get_sform"):
        theirs, code = getattr(nibabel.load(tmp_path / "scan.nii.gz"), name)(coded=True)
        ours, our_code = getattr(written, name)(coded=True)
        assert code == our_code
        assert np.array_equal(ours, theirs)
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert written.header["descrip"] == b""  # nothing of whom the scan is
    assert written.get_data_dtype() == np.uint8


def test_a_scan_with_qform_alone_keeps_it_so(tmp_path):
    source = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    source.header.set_qform(affine_of("RSP", (1, 2, 3), 0.4), 2)
    source.header.set_sform(None, 0)
    source.to_filename(tmp_path / "scan.nii")
    written, volume = placed(tmp_path / "label.nii.gz", tmp_path / "scan.nii")
    assert written.get_sform(coded=True)[0] is None
    assert np.array_equal(written.affine, volume.affine)


def test_probabilities_have_a_fourth_axis(tmp_path):
    scan = tmp_path / "scan.nii.gz"
    nibabel.Nifti1Image(np.zeros((4, 5, 6, 1), np.int16), affine_of("LPI", (1, 2, 3))).to_filename(scan)
    values = np.random.default_rng(0).random((4, 5, 6, 3), np.float32)
    write_nifti(tmp_path / "p.nii.gz", values, scan, read_volume(scan).affine)
    written = nibabel.load(tmp_path / "p.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), values)
    assert np.array_equal(written.affine, nibabel.load(scan).affine)


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path, monkeypatch):
    scan = tmp_path / "scan.nii.gz"
    nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)).to_filename(scan)

    def full_disk(self, filename, **options):
        filename.write_bytes(b"part")
        raise OSError("no space left on device")

    monkeypatch.setattr(nibabel.Nifti1Image, "to_filename", full_disk)
    with pytest.raises(Dae3dError, match=r"l\.nii\.gz: cannot be written: no space"):
        write_nifti(tmp_path / "out" / "l.nii.gz", np.zeros((4, 5, 6), np.uint8), scan, np.eye(4))
    assert not list((tmp_path / "out").iterdir())


REAL = [
    "awkward/sheared_affine_ct_shear.nii.gz",
    "awkward/orientation_AIL.nii.gz",
    "awkward/4d_singleton_sri24_spgr.nii.gz",
    "awkward/bigendian_float32_zstat1.nii.gz",
    "pretrain/niivue/register_T2w.nii.gz",
    "labelled/freesurfer_aseg/niivue_fs/norm.mgz",
]


@pytest.mark.parametrize("name", REAL)
def test_real_scans_keep_their_grid(name, shared_data, tmp_path):
    written, volume = placed(tmp_path / "label.nii.gz", shared_data / name)
    assert written.shape == volume.array.shape
    source = nibabel.load(shared_data / name)
    assert aff2axcodes(written.affine) == aff2axcodes(source.affine)
    np.testing.assert_allclose(written.affine, source.affine, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["awkward/nrrd_FLAIR.nrrd", "awkward/mha_fmri.mha"])
def test_itk_reads_the_nifti_where_it_reads_the_original(name, shared_data, tmp_path):
    placed(tmp_path / "label.nii.gz", shared_data / name)
    ours = sitk.ReadImage(str(tmp_path / "label.nii.gz"))
    theirs = sitk.ReadImage(str(shared_data / name))
    assert ours.GetSize() == theirs.GetSize()
    corner = [side - 1 for side in theirs.GetSize()]
    for index in ([0, 0, 0], corner):
        ours_mm, theirs_mm = (image.TransformIndexToPhysicalPoint(index) for image in (ours, theirs))
        np.testing.assert_allclose(ours_mm, theirs_mm, atol=1e-3)
