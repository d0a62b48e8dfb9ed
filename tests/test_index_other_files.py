"""The command `index` on what is not a scan by its name: read where it is one by content, else counted."""

import bz2
import gzip
import lzma
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.filewriter import write_dataset

import dae3d
from dae3d.errors import Dae3dError
from dae3d.scans.dicom.bare import begins_with_elements
from dae3d.scans.manifest import Manifest
from dae3d.scans.readers import read_header, read_volume
from dicom_files import evenly, write_series

VOXELS = np.random.default_rng(0).integers(0, 900, (16, 17, 18)).astype(np.int16)
NIFTI = nibabel.Nifti1Image(VOXELS, np.diag([1.0, 2, 3, 1])).to_bytes()


def run(folder: Path) -> Manifest:
    return dae3d.index(folders=[folder], out=folder.parent / "manifest", modality="ct")


def written(path: Path, content: bytes = b"words\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def counts(manifest: Manifest) -> dict[str, int]:
    return {item.reason: item.files for item in manifest.left_out}


@pytest.mark.parametrize(
    "name", ["scan.nii.bz2", "SCAN.NII.BZ2", "called_otherwise.nii", "called_otherwise.nii.gz"]
)
def test_bzip2_is_read(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, bz2.compress(NIFTI))
    assert read_header(path).spacing == (1, 2, 3)
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)


def test_a_bzip2_pair_is_read(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(VOXELS, np.eye(4)), tmp_path / "x.hdr.bz2")
    np.testing.assert_array_equal(read_volume(tmp_path / "x.hdr.bz2").array, VOXELS)


def test_every_file_is_accounted_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    written(folder / "a.nii.gz", gzip.compress(NIFTI))
    written(folder / "b.nii.xz", lzma.compress(NIFTI))
    written(folder / "c.nii.zst", bytes.fromhex("28b52ffd") + bytes(64))
    for number in range(10):
        written(folder / f"d/{number}.dcm.gz", gzip.compress(bytes(128) + b"DICM"))
        written(folder / f"1.2.3.{number}")
    for number in range(3):
        written(folder / f"e{number}.img", bytes(4000))
        written(folder / f"notes {number}.TXT")
    written(folder / "f.zip")
    written(folder / "f.tar.gz", gzip.compress(b""))
    written(folder / "README")
    manifest = run(folder)
    assert [scan.path.name for scan in manifest.scans] == ["a.nii.gz"]
    assert counts(manifest) == {
        "compressed in a way that is not read: .nii.xz; unpack it": 1,
        "compressed in a way that is not read: .nii.zst; unpack it": 1,
        "compressed in a way that is not read: .dcm.gz; unpack it": 10,
        "image without its header: no .hdr beside it": 3,
        "not a scan: .txt": 3,
        "archive that is not read: .zip": 1,
        "archive that is not read: .tar.gz": 1,
        "not a scan: no ending that is known": 11,
    }
    assert len(manifest.scans) + sum(item.files for item in manifest.left_out) == sum(
        path.is_file() for path in folder.rglob("*")
    )
    assert "not a scan" in capsys.readouterr().out


def test_names_without_end_make_no_long_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    written(folder / "a.nii.gz", gzip.compress(NIFTI))
    for number in range(300):
        written(folder / f"file.x{number}")
    manifest = run(folder)
    assert len(manifest.left_out) == 101
    assert sum(item.files for item in manifest.left_out) == 300


def test_what_is_read_with_a_header_is_not_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    image = sitk.GetImageFromArray(VOXELS.T)
    sitk.WriteImage(image, str(folder / "a.mhd"))
    sitk.WriteImage(image, str(folder / "b.nhdr"))
    nibabel.save(nibabel.Nifti1Pair(VOXELS, np.eye(4)), folder / "c.hdr")
    nibabel.save(nibabel.Nifti1Pair(VOXELS, np.eye(4)), folder / "d.hdr.gz")
    for number in range(18):
        written(folder / f"parts/{number}.bin", VOXELS[..., number].tobytes(order="F"))
    text = (folder / "a.mhd").read_text().replace("a.raw", "parts/../parts/%d.bin 0 17 1")
    (folder / "e.mhd").write_text(text)
    written(folder / "alone.raw")
    manifest = run(folder)
    assert len(manifest.scans) == 5
    assert counts(manifest) == {"not a scan: .raw": 1}


def test_a_folder_without_scans_is_said_to_have_none(tmp_path: Path) -> None:
    written(tmp_path / "data" / "notes.txt")
    with pytest.raises(Dae3dError, match="no scans in"):
        run(tmp_path / "data")


def bare(path: Path, implicit: bool, little: bool) -> bytes:
    """A DICOM file without preamble and file meta information."""
    header = pydicom.dcmread(path)
    header.decompress() if header.file_meta.TransferSyntaxUID.is_compressed else None
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = little, implicit
    write_dataset(buffer, header)
    return buffer.getvalue()


@pytest.mark.parametrize("implicit", [True, False])
def test_dicom_without_preamble_and_suffix(tmp_path: Path, implicit: bool) -> None:
    folder = tmp_path / "data"
    write_series(folder / "x", evenly(10), name="IM{:04d}")
    expected = run(folder).scans[0]
    voxels = dae3d.prepare(manifest=tmp_path / "manifest", out=tmp_path / "a", workers=1, report=False)
    for path in (folder / "x").iterdir():
        path.write_bytes(bare(path, implicit, little=True))
    manifest = run(folder)
    (scan,) = manifest.scans
    assert (scan.shape, scan.spacing, scan.modality) == (expected.shape, expected.spacing, "ct")
    again = dae3d.prepare(manifest=tmp_path / "manifest", out=tmp_path / "b", workers=1, report=False)
    box = (0, 0, 0), tuple(voxels.scans[0].shape)
    np.testing.assert_array_equal(again.read(0, *box), voxels.read(0, *box))


def test_what_begins_like_dicom(tmp_path: Path) -> None:
    write_series(tmp_path, evenly(1), name="x")
    for implicit, little in ((True, True), (False, True), (False, False)):
        assert begins_with_elements(bare(tmp_path / "x", implicit, little)[:512])
    whole = (tmp_path / "x").read_bytes()
    assert begins_with_elements(whole[132:644])  # the meta information, without what is before it
    for other in (b"", bytes(512), b"\x08\0" * 256, NIFTI[:512], gzip.compress(NIFTI)[:512], b"words " * 80):
        assert not begins_with_elements(other)
    random = np.random.default_rng(0)
    for _ in range(1000):
        assert not begins_with_elements(b"\x08\0" + random.bytes(510))
