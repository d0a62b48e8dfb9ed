"""Readers against what the files were written from, by hand or by the other library."""

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from dae3d.errors import ScanError
from dae3d.scans.readers import read_header, read_volume, scan_stem, suffix

SHAPE = (9, 10, 11)
VOXELS = np.random.default_rng(0).integers(-1000, 3000, SHAPE, dtype=np.int16)
# Columns: 0.8 mm to the left, 2.5 mm up, 1.2 mm to the front: LSA.
LSA = np.array([[-0.8, 0, 0, 90], [0, 0, 1.2, -110], [0, 2.5, 0, -70], [0, 0, 0, 1]])
ANGLE = np.deg2rad(20)
OBLIQUE = np.array(
    [
        [0.9 * np.cos(ANGLE), -1.1 * np.sin(ANGLE), 0, -30],
        [0.9 * np.sin(ANGLE), 1.1 * np.cos(ANGLE), 0, 12],
        [0, 0, 3, 5],
        [0, 0, 0, 1],
    ]
)
AFFINES = {
    "RAS": np.diag([1.0, 2.0, 3.0, 1.0]),
    "LPS": np.diag([-1.0, -2.0, 3.0, 1.0]),
    "LSA": LSA,
    "oblique": OBLIQUE,
}
AXES = {"RAS": "RAS", "LPS": "LPS", "LSA": "LSA", "oblique": "RAS"}


def by_itk(affine: np.ndarray) -> sitk.Image:
    """VOXELS as an ITK image that lies as `affine` (RAS) says, in ITK's LPS world."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(VOXELS.transpose(2, 1, 0))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def in_ras_mm(image: sitk.Image, index: tuple[int, int, int]) -> np.ndarray:
    x, y, z = image.TransformIndexToPhysicalPoint(index)
    return np.array([-x, -y, z])


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_format_gives_voxels_and_place(tmp_path: Path, ending: str, name: str) -> None:
    affine = AFFINES[name]
    path = tmp_path / f"scan{ending}"
    if ending in (".mgz", ".mgh"):
        nibabel.save(nibabel.MGHImage(VOXELS, affine), path)
    else:
        sitk.WriteImage(by_itk(affine), str(path))
    header, volume = read_header(path), read_volume(path)
    assert header.shape == SHAPE
    assert header.dtype == "int16"
    assert header.orientation == AXES[name]
    assert header.spacing == pytest.approx(np.linalg.norm(affine[:3, :3], axis=0), rel=1e-6)
    assert np.array_equal(volume.array, VOXELS)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(volume.affine, header.affine)


@pytest.mark.parametrize("name", AFFINES)
def test_a_nifti_by_nibabel_lies_where_itk_puts_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(VOXELS, AFFINES[name]), path)
    other = sitk.ReadImage(str(path))
    affine = read_header(path).affine
    for index in ((0, 0, 0), (3, 5, 7), (8, 9, 10)):
        np.testing.assert_allclose(affine[:3, :3] @ index + affine[:3, 3], in_ras_mm(other, index), atol=1e-3)
    assert np.array_equal(read_volume(path).array, sitk.GetArrayFromImage(other).transpose(2, 1, 0))


def test_slope_and_intercept_are_kept_apart_and_applied(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    image = nibabel.Nifti1Image(VOXELS, np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nibabel.save(image, path)
    # nibabel divides the values by the slope when it writes through this header, so write the bytes too.
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[352:] = VOXELS.tobytes(order="F")
    path.write_bytes(gzip.compress(bytes(raw)))
    volume = read_volume(path)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, VOXELS)
    assert (volume.slope, volume.intercept) == (0.5, -1024.0)
    np.testing.assert_array_equal(volume.intensities(), VOXELS.astype(np.float32) / 2 - 1024)
    np.testing.assert_array_equal(
        volume.intensities(), sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0)
    )


def test_big_endian_becomes_native(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">f4")
    path = tmp_path / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(VOXELS.astype(">f4"), np.eye(4), header), path)
    assert path.read_bytes()[:4] == struct.pack(">i", 348)
    assert read_header(path).dtype == "float32"
    volume = read_volume(path)
    assert volume.array.dtype == np.dtype("=f4")
    assert np.array_equal(volume.array, VOXELS.astype(np.float32))


def test_trailing_axes_of_length_one_go(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(VOXELS[..., None, None], LSA), tmp_path / "five.nii")
    sitk.WriteImage(sitk.JoinSeries([by_itk(LSA)]), str(tmp_path / "four.mha"))
    for name in ("five.nii", "four.mha"):
        assert read_header(tmp_path / name).shape == SHAPE
        volume = read_volume(tmp_path / name)
        assert np.array_equal(volume.array, VOXELS)
        np.testing.assert_allclose(volume.affine, LSA, atol=1e-4)


@pytest.mark.parametrize(
    ("space", "signs"), [("left-posterior-superior", (-1, -1, 1)), ("right-anterior-superior", (1, 1, 1))]
)
def test_a_sheared_nrrd_written_by_hand(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    text = (
        f"NRRD0004\ntype: int16\ndimension: 3\nspace: {space}\nsizes: 9 10 11\n"
        "space directions: (0.5,0,0) (0,0.5,0) (0,1,3)\nkinds: domain domain domain\n"
        "endian: little\nencoding: raw\nspace origin: (5,6,7)\n\n"
    )
    path = tmp_path / "scan.nrrd"
    path.write_bytes(text.encode() + VOXELS.astype("<i2").tobytes(order="F"))
    expected = np.array([[0.5, 0, 0, 5], [0, 0.5, 1, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    expected[:3] *= np.array(signs)[:, None]
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine, expected, atol=1e-6)
    assert volume.spacing == pytest.approx((0.5, 0.5, np.sqrt(10)))
    assert np.array_equal(volume.array, VOXELS)


def test_a_metaimage_pair_written_by_hand(tmp_path: Path) -> None:
    (tmp_path / "scan.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 4 5 6\nElementSpacing = 0.7 0.7 2\n"
        "DimSize = 9 10 11\nElementType = MET_SHORT\nElementDataFile = voxels.raw\n"
    )
    (tmp_path / "voxels.raw").write_bytes(VOXELS.astype("<i2").tobytes(order="F"))
    volume = read_volume(tmp_path / "scan.mhd")
    np.testing.assert_allclose(
        volume.affine, [[-0.7, 0, 0, -4], [0, -0.7, 0, -5], [0, 0, 2, 6], [0, 0, 0, 1]]
    )
    assert np.array_equal(volume.array, VOXELS)


def nifti_bytes(*fields: tuple[int, str, float]) -> bytes:
    """A NIfTI-1 file with some header fields overwritten: (offset, struct format, value)."""
    image = nibabel.Nifti1Image(VOXELS, np.eye(4))
    image.header.set_sform(np.eye(4), code=1)
    raw = bytearray(image.to_bytes())
    for offset, code, value in fields:
        struct.pack_into(f"<{code}", raw, offset, value)
    return bytes(raw)


PIXDIM_2, QFORM_CODE, SFORM_CODE, SFORM_YY = 84, 252, 254, 300


@pytest.mark.parametrize(
    "raw",
    [
        nifti_bytes((PIXDIM_2, "f", 0.0), (QFORM_CODE, "h", 0), (SFORM_CODE, "h", 0)),
        nifti_bytes((PIXDIM_2, "f", 0.0), (QFORM_CODE, "h", 1), (SFORM_CODE, "h", 0)),
        nifti_bytes((SFORM_YY, "f", 0.0)),
        nifti_bytes((SFORM_YY, "f", np.nan)),
    ],
    ids=["pixdim", "qform", "sform", "nan"],
)
def test_zero_or_no_spacing_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "scan.nii"
    path.write_bytes(raw)
    with pytest.raises(ScanError, match="zero or non-finite spacing"):
        read_header(path)
    with pytest.raises(ScanError, match="zero or non-finite spacing"):
        read_volume(path)


def test_a_zero_pixdim_beside_an_sform_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti_bytes((PIXDIM_2, "f", 0.0)))
    assert read_header(path).spacing == (1.0, 1.0, 1.0)


def rgb_nifti(path: Path) -> None:
    pixel = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, pixel), np.eye(4)), path)


def four_mgh(path: Path) -> None:
    nibabel.save(nibabel.MGHImage(np.zeros((*SHAPE, 2), np.float32), LSA), path)


def nifti(voxels: np.ndarray):
    return lambda path: nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def itk(image: sitk.Image):
    return lambda path: sitk.WriteImage(image, str(path))


SCALAR = by_itk(LSA)
COLOURS = sitk.Compose([sitk.Cast(SCALAR, sitk.sitkUInt8)] * 3)


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("rgb.nii", rgb_nifti, "RGB"),
        ("rgb.mha", itk(COLOURS), "RGB"),
        ("rgb.nrrd", itk(COLOURS), "RGB"),
        ("complex.nii", nifti(np.zeros(SHAPE, np.complex64)), "complex"),
        ("four.nii", nifti(np.zeros((*SHAPE, 2), np.float32)), "4-D: shape 9x10x11x2"),
        ("five.nii", nifti(np.zeros((*SHAPE, 1, 3), np.float32)), "5-D: shape 9x10x11x1x3"),
        ("four.nrrd", itk(sitk.JoinSeries([SCALAR, SCALAR])), "4-D: shape 9x10x11x2"),
        ("four.mgz", four_mgh, "4-D: shape 9x10x11x2"),
        ("two.nii", nifti(np.zeros((9, 10), np.float32)), "2-D: shape 9x10"),
        ("two.mha", itk(SCALAR[:, :, 3]), "2-D: shape 9x10"),
        ("slice.mha", itk(SCALAR[:, :, 3:4]), "2-D: shape 9x10"),
        ("empty.nii.gz", lambda path: path.touch(), "unreadable"),
        ("empty.nrrd", lambda path: path.touch(), "unreadable"),
        ("missing.nii.gz", lambda path: None, "unreadable"),
        ("text.mha", lambda path: path.write_text("hello"), "unreadable"),
    ],
)
def test_what_is_no_plain_volume_is_refused_by_reason(tmp_path: Path, name: str, write, reason: str) -> None:
    path = tmp_path / name
    write(path)
    for read in (read_header, read_volume):
        with pytest.raises(ScanError) as error:
            read(path)
        assert str(error.value).startswith(reason)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.mgz", "scan.mha"])
def test_a_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:8de5\nsize 4000000\n")
    with pytest.raises(ScanError, match="Git LFS pointer"):
        read_header(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd", ".mhd"])
def test_voxels_cut_short_are_found(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(SCALAR, str(path))
    whole = path.with_suffix(".raw") if ending == ".mhd" else path
    whole.write_bytes(whole.read_bytes()[:-200])
    if ending == ".nii.gz":
        assert read_header(path).shape == SHAPE
    else:
        with pytest.raises(ScanError, match="unreadable: truncated: 1780 of 1980 bytes of voxels"):
            read_header(path)
    with pytest.raises(ScanError, match="unreadable"):
        read_volume(path)


def test_reasons_do_not_change_from_call_to_call(tmp_path: Path) -> None:
    path = tmp_path / "scan.mha"
    sitk.WriteImage(SCALAR, str(path))
    path.write_bytes(path.read_bytes()[:-200])
    reasons = set()
    for _ in range(3):
        with pytest.raises(ScanError) as error:
            read_volume(path)
        reasons.add(str(error.value))
    assert len(reasons) == 1
    assert str(tmp_path) not in reasons.pop()


@pytest.mark.parametrize(
    ("name", "expected", "stem"),
    [
        ("a.b.nii.gz", ".nii.gz", "a.b"),
        ("A.NII.GZ", ".nii.gz", "A"),
        ("a.nii", ".nii", "a"),
        ("a.mhd", ".mhd", "a"),
        ("a.raw", None, "a.raw"),
        ("a.img", None, "a.img"),
        ("a.hdr.gz", ".hdr.gz", "a"),
        ("a.tar.gz", None, "a.tar.gz"),
        ("nii.gz", None, "nii.gz"),
    ],
)
def test_suffixes(name: str, expected: str | None, stem: str) -> None:
    assert suffix(Path("folder.nii.gz", name)) == expected
    assert scan_stem(Path(name)) == stem
