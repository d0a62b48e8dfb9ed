"""NIfTI and MGH headers that say wrongly where voxels begin, how they are scaled, or how large they are."""

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dae3d.errors import ScanError
from dae3d.scans.readers import read_header, read_volume

VOXELS = np.random.default_rng(0).integers(0, 3000, (9, 10, 11), dtype="<i2")
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])
VOX_OFFSET, SLOPE, UNITS, FLAG, MAGIC = 108, 112, 123, 348, 344
GOOD_RAS = 28


def written(path: Path, raw: bytes) -> Path:
    path.write_bytes(gzip.compress(raw) if path.suffix in (".gz", ".mgz") else raw)
    return path


def nifti(extension: bytes = b"", kind: type[nibabel.Nifti1Image] = nibabel.Nifti1Image) -> bytearray:
    image = kind(VOXELS, AFFINE)
    if extension:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", extension))
    return bytearray(image.to_bytes())


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("offset", [0, -16, 340, 348])
def test_voxels_do_not_begin_in_the_header(
    tmp_path: Path, ending: str, offset: int, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = nifti()
    struct.pack_into("<f", raw, VOX_OFFSET, offset)
    path = written(tmp_path / f"scan{ending}", raw)
    for read in (read_header, read_volume):
        with pytest.raises(ScanError, match=rf"vox.offset {offset}"):
            read(path)
    assert capfd.readouterr().err == ""


def test_voxels_do_not_begin_in_the_header_of_nifti_2(tmp_path: Path) -> None:
    raw = nifti(kind=nibabel.Nifti2Image)
    assert struct.unpack_from("<q", raw, 168) == (544,)
    struct.pack_into("<q", raw, 168, 0)
    with pytest.raises(ScanError, match="vox_offset 0: voxels of a single file begin at 544 or later"):
        read_header(written(tmp_path / "scan.nii", raw))


def test_the_header_of_a_pair_in_a_single_file(tmp_path: Path) -> None:
    raw = nifti()
    raw[MAGIC : MAGIC + 4] = b"ni1\0"
    struct.pack_into("<f", raw, VOX_OFFSET, 0)
    with pytest.raises(ScanError, match="vox_offset 0"):
        read_header(written(tmp_path / "scan.nii", raw))


def test_voxels_do_not_begin_in_an_extension(tmp_path: Path) -> None:
    raw = nifti(b"a comment " * 12)
    path = written(tmp_path / "scan.nii", raw)
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)
    # 120 bytes of text and 8 of its head.
    assert struct.unpack_from("<f", raw, VOX_OFFSET) == (352 + 128,)
    struct.pack_into("<f", raw, VOX_OFFSET, 352)
    with pytest.raises(ScanError, match="vox_offset 352: voxels of a single file begin at 480 or later"):
        read_header(written(path, raw))


def test_a_flag_for_extensions_of_which_there_are_none(tmp_path: Path) -> None:
    raw = nifti()
    raw[FLAG] = 1
    np.testing.assert_array_equal(read_volume(written(tmp_path / "scan.nii", raw)).array, VOXELS)


@pytest.mark.parametrize("offset", [352, 360, 513])
def test_voxels_may_begin_later_and_in_a_pair_at_0(tmp_path: Path, offset: int) -> None:
    raw = nifti()
    struct.pack_into("<f", raw, VOX_OFFSET, offset)
    raw[352:352] = bytes(offset - 352)
    np.testing.assert_array_equal(read_volume(written(tmp_path / "scan.nii", raw)).array, VOXELS)
    nibabel.save(nibabel.Nifti1Pair(VOXELS, AFFINE), tmp_path / "pair.hdr")
    assert struct.unpack_from("<f", (tmp_path / "pair.hdr").read_bytes(), VOX_OFFSET) == (0,)
    np.testing.assert_array_equal(read_volume(tmp_path / "pair.hdr").array, VOXELS)


def test_voxels_beyond_the_end(tmp_path: Path) -> None:
    raw = nifti()
    struct.pack_into("<f", raw, VOX_OFFSET, 1e6)
    with pytest.raises(ScanError, match="unreadable: truncated: 0 of 1980 bytes of voxels"):
        read_volume(written(tmp_path / "scan.nii", raw))


@pytest.mark.parametrize(
    ("slope", "intercept", "remark", "applied"),
    [
        (1, -1024, "", -1024),
        (2, 0, "", 0),
        (0, 0, "", 0),
        (np.nan, np.nan, "", 0),
        (0, -1024, "scl_inter (-1024) is ignored because scl_slope is 0", 0),
        (np.nan, -1024, "scl_inter (-1024) is ignored because scl_slope is nan", 0),
    ],
)
def test_an_intercept_without_a_slope(
    tmp_path: Path, slope: float, intercept: float, remark: str, applied: float
) -> None:
    raw = nifti()
    struct.pack_into("<ff", raw, SLOPE, slope, intercept)
    path = written(tmp_path / "scan.nii.gz", raw)
    assert read_header(path).remark == remark
    expected = VOXELS.astype(np.float32) * (2 if slope == 2 else 1) + applied
    np.testing.assert_array_equal(read_volume(path).intensities(), expected)


@pytest.mark.parametrize("code", [4, 5, 6, 7])
def test_a_unit_that_nifti_has_not(tmp_path: Path, code: int) -> None:
    raw = nifti()
    raw[UNITS] = code | 8
    header = read_header(written(tmp_path / "scan.nii", raw))
    assert header.spacing == (2, 3, 4)
    assert header.remark.startswith(f"its unit code {code} is not in the NIfTI standard")


@pytest.mark.parametrize("ending", [".mgh", ".mgz"])
def test_mgh_without_orientation_is_read_as_freesurfer_does_and_remarked(tmp_path: Path, ending: str) -> None:
    raw = bytearray(nibabel.MGHImage(VOXELS, AFFINE).to_bytes())
    assert read_header(written(tmp_path / f"scan{ending}", raw)).remark == ""
    raw[GOOD_RAS : GOOD_RAS + 2] = b"\0\0"
    header = read_header(written(tmp_path / f"scan{ending}", raw))
    # FreeSurfer's coronal slices: x to the left, y downwards, z to the front.
    assert (header.spacing, header.orientation) == ((1, 1, 1), "LIA")
    assert header.remark == "no voxel size and no orientation (goodRASFlag is 0): read as 1 mm, LIA"
