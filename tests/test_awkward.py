"""Awkward files, real or made as they are met: each is read as is decided, or left out with the reason."""

import gzip
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import dae3d
from dae3d.errors import ScanError
from dae3d.inference.nifti import write_nifti
from dae3d.scans.readers import files_read, read_header, read_volume, volume_count
from dae3d.store.examine import conform
from dae3d.store.scan import Preparation
from dae3d.store.statistics import measure

VOXELS = np.random.default_rng(0).integers(0, 3000, (9, 10, 11), dtype=np.int16)
AFFINE = np.array([[-0.8, 0, 0, 90], [0, 0, 1.2, -110], [0, 2.5, 0, -70], [0, 0, 0, 1]])
PIXDIM_1, PIXDIM_2, QFORM_CODE, SFORM_CODE, QUATERN_B, SROW_Y = 80, 84, 252, 254, 256, 296
XYZT_UNITS = 123


def nifti(voxels: np.ndarray = VOXELS, *fields: tuple[int, str, float]) -> bytes:
    """A NIfTI-1 file with AFFINE in sform and qform, some fields overwritten: (offset, format, value)."""
    image = nibabel.Nifti1Image(voxels, AFFINE)
    image.header.set_qform(AFFINE, 1)
    image.header.set_sform(AFFINE, 1)
    raw = bytearray(image.to_bytes())
    for offset, code, value in fields:
        struct.pack_into(f"<{code}", raw, offset, value)
    return bytes(raw)


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def awkward(shared_data: Path) -> Path:
    return shared_data / "awkward"


def test_one_volume_of_a_real_time_series(awkward: Path) -> None:
    path = awkward / "4d_example4d.nii.gz"
    expected = np.asarray(nibabel.load(path).dataobj)
    assert volume_count(path) == expected.shape[3] == 2
    for volume in range(2):
        assert read_header(path, volume).shape == expected.shape[:3]
        found = read_volume(path, volume)
        np.testing.assert_array_equal(found.intensities(), expected[..., volume].astype(np.float32))
        np.testing.assert_allclose(found.affine, nibabel.load(path).affine)
    for read in (read_header, read_volume):
        with pytest.raises(ScanError, match="4-D: shape 128x96x24x2"):
            read(path)
        for volume in (-1, 2):
            with pytest.raises(ScanError, match=f"no volume {volume}: it has 2, counted from 0"):
                read(path, volume)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mgz", ".mha", ".nrrd"])
def test_one_volume_of_four_in_every_format(tmp_path: Path, ending: str) -> None:
    series = np.stack([VOXELS + number for number in range(4)], axis=3)
    path = tmp_path / f"series{ending}"
    if ending == ".mgz":
        nibabel.save(nibabel.MGHImage(series, AFFINE), path)
    else:
        images = [sitk.GetImageFromArray(series[..., number].T) for number in range(4)]
        sitk.WriteImage(sitk.JoinSeries(images), str(path))
    assert volume_count(path) == 4
    for number in (0, 3):
        np.testing.assert_array_equal(read_volume(path, number).array, VOXELS + number)


def test_a_plain_scan_is_its_own_volume_0(awkward: Path) -> None:
    path = awkward / "4d_singleton_sri24_spgr.nii.gz"
    assert volume_count(path) == 1
    np.testing.assert_array_equal(read_volume(path, 0).array, read_volume(path).array)
    assert volume_count(awkward / "nrrd_FLAIR.nrrd") == 1


def test_a_5d_file_has_no_volumes(tmp_path: Path) -> None:
    path = written(tmp_path / "vectors.nii", nifti(np.zeros((9, 10, 11, 1, 3), np.float32)))
    with pytest.raises(ScanError, match="5-D: shape 9x10x11x1x3"):
        volume_count(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gzipped.nii", gzip.compress(nifti())),
        ("plain.nii.gz", nifti()),
        ("nifti.mha", nifti()),
        ("nifti.nrrd", gzip.compress(nifti())),
        ("nifti.mgz", nifti()),
    ],
)
def test_a_nifti_with_another_extension(tmp_path: Path, name: str, content: bytes) -> None:
    volume = read_volume(written(tmp_path / name, content))
    np.testing.assert_array_equal(volume.array, VOXELS)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def test_predictions_lie_where_a_misnamed_scan_does(tmp_path: Path) -> None:
    scan = written(tmp_path / "gzipped.nii", gzip.compress(nifti()))
    write_nifti(tmp_path / "out.nii.gz", VOXELS, scan, read_volume(scan).affine)
    np.testing.assert_allclose(nibabel.load(tmp_path / "out.nii.gz").affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize(
    ("ending", "wrong"), [(".nrrd", ".nii"), (".mha", ".nii.gz"), (".mha", ".nrrd"), (".mgz", ".nii.gz")]
)
def test_other_formats_with_another_extension(tmp_path: Path, ending: str, wrong: str) -> None:
    path = tmp_path / f"scan{ending}"
    if ending == ".mgz":
        nibabel.save(nibabel.MGHImage(VOXELS, AFFINE), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(VOXELS.T), str(path))
    expected = read_volume(path)
    volume = read_volume(path.rename(tmp_path / f"scan{wrong}"))
    np.testing.assert_array_equal(volume.array, VOXELS)
    np.testing.assert_array_equal(volume.affine, expected.affine)


def test_a_real_analyze_pair(awkward: Path, tmp_path: Path) -> None:
    header = awkward / "analyze75" / "avg152T1.hdr.gz"
    described = read_header(header)
    assert described.shape == (91, 109, 91)
    assert described.spacing == (2, 2, 2)
    assert described.orientation == "LAS"
    assert "left from right" in described.remark
    assert files_read(header) == [header, awkward / "analyze75" / "avg152T1.img.gz"]
    raw = gzip.decompress((awkward / "analyze75" / "avg152T1.img.gz").read_bytes())
    array = np.frombuffer(raw, np.uint8).reshape(91, 109, 91, order="F")
    np.testing.assert_array_equal(read_volume(header).array, array)
    shutil.copy(header, tmp_path)
    with pytest.raises(ScanError, match="unreadable"):
        read_volume(tmp_path / header.name)


def test_a_nifti_pair(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(VOXELS, AFFINE), tmp_path / "scan.img")
    volume = read_volume(tmp_path / "scan.hdr")
    np.testing.assert_array_equal(volume.array, VOXELS)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert read_header(tmp_path / "scan.hdr").remark == ""


def test_the_sform_counts_where_the_qform_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    image = nibabel.Nifti1Image(VOXELS, AFFINE)
    image.header.set_sform(AFFINE, 1)
    image.header.set_qform(np.diag([1.0, 2, 3, 1]), 1)
    nibabel.save(image, path)
    header = read_header(path)
    np.testing.assert_allclose(header.affine, AFFINE, atol=1e-5)
    assert header.remark.startswith("sform (LSA, 0.8 x 2.5 x 1.2 mm) and qform (RAS, ")


def test_forms_that_differ_in_place_alone_do_not_disagree(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS, AFFINE)
    moved = AFFINE.copy()
    moved[:3, 3] = 0
    image.header.set_sform(moved, 4)
    image.header.set_qform(AFFINE, 1)
    nibabel.save(image, tmp_path / "scan.nii")
    assert read_header(tmp_path / "scan.nii").remark == ""


def test_a_singular_sform_gives_way_to_the_qform(tmp_path: Path) -> None:
    flat = [(SROW_Y + 4 * column, "f", 0.0) for column in range(4)]
    path = written(tmp_path / "scan.nii", nifti(VOXELS, *flat))
    np.testing.assert_allclose(read_volume(path).affine, AFFINE, atol=1e-5)


def test_a_qform_that_is_no_rotation_beside_an_sform(tmp_path: Path) -> None:
    path = written(tmp_path / "scan.nii", nifti(VOXELS, (QUATERN_B, "f", 3.0)))
    np.testing.assert_allclose(read_header(path).affine, AFFINE, atol=1e-5)


def test_no_orientation_at_all(tmp_path: Path) -> None:
    path = written(tmp_path / "scan.nii", nifti(VOXELS, (QFORM_CODE, "h", 0), (SFORM_CODE, "h", 0)))
    header = read_header(path)
    assert header.orientation == "LAS"
    assert header.spacing == pytest.approx((0.8, 2.5, 1.2))
    assert header.remark.startswith("no orientation")


def test_parallel_axes_are_refused(tmp_path: Path) -> None:
    parallel = [(SROW_Y - 12, "f", 2.5), (SROW_Y + 20, "f", 0.0)]  # x and z of the second column
    path = written(tmp_path / "scan.nii", nifti(VOXELS, *parallel, (QFORM_CODE, "h", 0)))
    with pytest.raises(ScanError, match="singular"):
        read_header(path)


def test_a_negative_voxel_size_in_nifti_is_its_size(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    path = written(tmp_path / "scan.nii", nifti(VOXELS, (PIXDIM_2, "f", -2.5), (SFORM_CODE, "h", 0)))
    np.testing.assert_allclose(read_header(path).affine, AFFINE, atol=1e-5)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_a_negative_spacing_runs_the_other_way(tmp_path: Path, ending: str) -> None:
    headers = {
        ".mha": "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        "Offset = 4 5 6\nElementSpacing = 0.7 -0.9 2\nDimSize = 9 10 11\nElementType = MET_SHORT\n"
        "ElementDataFile = LOCAL\n",
        ".nrrd": "NRRD0004\ntype: int16\ndimension: 3\nsizes: 9 10 11\nspacings: 0.7 -0.9 2\nendian: little\n"
        "encoding: raw\n\n",
    }
    content = headers[ending].encode() + VOXELS.tobytes(order="F")
    header = read_header(written(tmp_path / f"scan{ending}", content))
    assert header.spacing == pytest.approx((0.7, 0.9, 2))
    # In ITK's world without a direction, axes run to the left, posterior and superior.
    assert header.orientation == "LAS"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bigendian_float32_zstat1.nii.gz", "float32"), ("oblique_uint8_ct_pitch_phantom.nii.gz", "uint8")],
)
def test_real_types_become_native(awkward: Path, name: str, dtype: str) -> None:
    assert read_volume(awkward / name).array.dtype == np.dtype(dtype)
    assert read_volume(awkward / name).array.dtype.isnative


AS_ACQUIRED = Preparation(spacing=None, crop_foreground=False)


@pytest.mark.parametrize("name", ["oblique_uint8_ct_pitch_phantom.nii.gz", "sheared_affine_ct_shear.nii.gz"])
def test_oblique_and_sheared_scans_stay_on_their_grid(awkward: Path, name: str) -> None:
    """Their axes are turned to the nearest of RAS; no voxel is interpolated, and each stays where it was."""
    source = nibabel.as_closest_canonical(nibabel.load(awkward / name))
    volume = conform(read_volume(awkward / name), AS_ACQUIRED, "ct")
    np.testing.assert_allclose(volume.affine, source.affine, atol=1e-5)
    expected = np.asarray(source.dataobj, np.float64).astype(np.float32)
    np.testing.assert_array_equal(volume.intensities(), expected)


def test_resampling_straightens_a_real_gantry_tilt(awkward: Path) -> None:
    volume = read_volume(awkward / "sheared_affine_ct_shear.nii.gz")
    columns = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    assert abs(columns[:, 1] @ columns[:, 2]) > 0.1
    straight = conform(volume, Preparation(spacing=(4, 4, 4), crop_foreground=False), "ct").affine
    np.testing.assert_allclose(straight[:3, :3].T @ straight[:3, :3], 16 * np.eye(3), atol=1e-3)


def test_ten_times_anisotropic_spacing_is_kept_or_resampled(tmp_path: Path) -> None:
    affine = np.diag([0.5, 0.5, 5, 1.0])
    nibabel.save(nibabel.Nifti1Image(VOXELS, affine), tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert conform(volume, AS_ACQUIRED).spacing == (0.5, 0.5, 5)
    resampled = conform(volume, Preparation(spacing=(1, 1, 1), crop_foreground=False))
    # Centres span 4, 4.5 and 50 mm.
    assert resampled.array.shape == (5, 6, 51)


def test_a_stack_of_one_slice_is_no_volume(tmp_path: Path) -> None:
    path = written(tmp_path / "scan.nii", nifti(VOXELS[:, :, :1]))
    with pytest.raises(ScanError, match="2-D: shape 9x10"):
        read_header(path)


def test_a_real_scan_smaller_than_the_crop_is_padded_after_scaling(shared_data: Path, tmp_path: Path) -> None:
    image = shared_data / "labelled/msd_hippocampus/images/hippocampus_001.nii.gz"
    dae3d.index(folders=[image], out=tmp_path / "manifest", modality="t1")
    store = dae3d.prepare(manifest=tmp_path / "manifest", out=tmp_path / "store", workers=1)
    shape = store.scans[0].shape
    assert max(shape) < 96
    crop = store.read_padded(0, (-20, -20, -20), (96, 96, 96))
    inside = tuple(slice(20, 20 + n) for n in shape)
    np.testing.assert_array_equal(crop[inside], store.read_padded(0, (0, 0, 0), shape))
    crop[inside] = 0
    assert not crop.any()


def test_float64_becomes_float32(tmp_path: Path) -> None:
    voxels = VOXELS + np.float64(1) / 3
    volume = conform(read_volume(written(tmp_path / "scan.nii", nifti(voxels))), AS_ACQUIRED)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(np.sort(volume.array, axis=None), np.sort(voxels.astype("f4"), axis=None))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39, -1e300])
def test_values_that_float32_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    voxels = VOXELS.astype(np.float64)
    voxels[3, 4, 5] = voxels[0, 0, 0] = value
    volume = read_volume(written(tmp_path / "scan.nii", nifti(voxels)))
    with pytest.raises(ScanError, match="not finite: 2 of 990 voxels"):
        conform(volume, AS_ACQUIRED)


@pytest.mark.parametrize(
    ("code", "word", "mm"), [(1, "metres", 1000.0), (2, "", 1.0), (3, "micrometres", 0.001), (0, "", 1.0)]
)
@pytest.mark.parametrize("forms", [(1, 1), (0, 1), (1, 0), (0, 0)])
def test_the_unit_of_length_counts(
    tmp_path: Path, code: int, word: str, mm: float, forms: tuple[int, int]
) -> None:
    plain = [(QFORM_CODE, "h", forms[0]), (SFORM_CODE, "h", forms[1])]
    in_mm = read_header(written(tmp_path / "mm.nii", nifti(VOXELS, *plain)))
    path = written(tmp_path / "scan.nii", nifti(VOXELS, *plain, (XYZT_UNITS, "B", code | 8)))
    header = read_header(path)
    np.testing.assert_allclose(header.affine[:3], in_mm.affine[:3] * mm, rtol=1e-6)
    np.testing.assert_allclose(read_volume(path).affine, header.affine)
    assert header.orientation == in_mm.orientation
    assert ("its unit is" in header.remark) == bool(word)
    assert word in header.remark
    assert header.remark.startswith(in_mm.remark)
    # ITK, too, knows the units.
    np.testing.assert_allclose(header.spacing, sitk.ReadImage(str(path)).GetSpacing(), rtol=1e-5)


def test_predictions_lie_where_a_scan_in_micrometres_does(tmp_path: Path) -> None:
    scan = written(tmp_path / "scan.nii", nifti(VOXELS, (XYZT_UNITS, "B", 3)))
    write_nifti(tmp_path / "out.nii.gz", VOXELS, scan, read_volume(scan).affine)
    np.testing.assert_allclose(nibabel.load(tmp_path / "out.nii.gz").affine[:3], AFFINE[:3] / 1000, rtol=1e-6)
    assert nibabel.load(tmp_path / "out.nii.gz").header.get_xyzt_units()[0] == "mm"


def test_a_scale_factor_beyond_float32_is_refused(tmp_path: Path) -> None:
    slope, intercept = 112, 116
    path = written(tmp_path / "scan.nii", nifti(VOXELS, (slope, "f", 1e38), (intercept, "f", 0.0)))
    with pytest.raises(ScanError, match="not finite"):
        conform(read_volume(path), AS_ACQUIRED)


@pytest.mark.parametrize("name", ["rgba_CIT168.nii.gz", "complex64.nii.gz"])
def test_real_colours_and_complex_numbers_are_refused(awkward: Path, name: str) -> None:
    with pytest.raises(ScanError, match="RGB or vector" if "rgba" in name else "complex-valued"):
        read_header(awkward / name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("git_lfs_pointer_T1.nii.gz", "Git LFS pointer"), ("truncated_patient20_T1W.nii.gz", "unreadable: EOF")],
)
def test_real_corrupt_files_are_refused(awkward: Path, name: str, reason: str) -> None:
    with pytest.raises(ScanError, match=reason):
        read_volume(awkward / "corrupt" / name)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_spaces_and_letters_of_any_script_in_paths(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "Müller & Søn (日本) 'x'"
    folder.mkdir()
    path = folder / f"ein é Bild{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS.T), str(path))
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)


@pytest.mark.parametrize("ending", [".nii", ".mha"])
def test_a_path_that_is_not_utf8_is_refused(tmp_path: Path, ending: str) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller" + ending.encode()))
    written(path, nifti())
    with pytest.raises(ScanError, match="not in UTF-8"):
        read_header(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_a_link_to_itself(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    path.symlink_to(path)
    with pytest.raises(ScanError, match="unreadable: Too many levels of symbolic links"):
        read_header(path)


def test_a_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    written(tmp_path / "scans" / "sub-1_T1w.nii", nifti())
    (tmp_path / "scans" / "again").symlink_to(tmp_path / "scans")
    found = dae3d.index(folders=[tmp_path / "scans"], out=tmp_path / "manifest")
    assert [scan.path.name for scan in found.scans] == ["sub-1_T1w.nii"]


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read anything, so be somebody else."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_a_file_that_may_not_be_read(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path / f"scan{ending}", nifti())
    path.chmod(0)
    with without_privileges(), pytest.raises(ScanError, match="unreadable: Permission denied"):
        read_header(path)


def test_every_real_scan_is_measured_or_refused(awkward: Path) -> None:
    for path in sorted(awkward.glob("*.n*")) + sorted(awkward.glob("*.mha")):
        try:
            volume = conform(read_volume(path), AS_ACQUIRED)
        except ScanError:
            continue
        assert np.isfinite(measure(volume).std)
