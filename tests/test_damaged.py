"""Files that are damaged, or made to do damage: each is named, and stops no other."""

import csv
import gzip
import os
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import Dataset

import dae3d
from dae3d.errors import ScanError
from dae3d.reporting.data_check import check_scans
from dae3d.scans.dicom.header import read_slices
from dae3d.scans.isolated import isolated
from dae3d.scans.manifest import Manifest
from dae3d.scans.readers import read_header, read_volume
from dae3d.scans.task import TaskCase
from dae3d.scans.text_header import read_text_header
from dae3d.store.case_files import store_case
from dae3d.store.recipe import CaseRecipe
from dicom_files import edit, evenly, write_series
from scan_files import described, phantom, write_manifest, write_nifti

SHAPE = (24, 20, 16)
VOXELS = np.random.default_rng(0).integers(0, 50, SHAPE).astype(np.int16)


def rotten(good: bytes, start: int) -> bytes:
    """With one bit turned over, the deflated data from byte `start` on still inflates to as many bytes."""
    whole = zlib.decompressobj(-15).decompress(good[start:])
    for place in range(start + 100, len(good)):
        bad = bytearray(good)
        bad[place] ^= 0x10
        stream = zlib.decompressobj(-15)
        try:
            content = stream.decompress(bytes(bad[start:]))
        except zlib.error:
            continue
        # The header of the scan is as it was.
        if stream.eof and len(content) == len(whole) and content[:600] == whole[:600] and content != whole:
            return bytes(bad)
    raise AssertionError("no such bit")


def packed(path: Path) -> tuple[Path, int]:
    """Write VOXELS compressed to a file of that suffix; where they lie, and from which byte on deflated."""
    if path.name.endswith((".nii.gz", ".mgz", ".hdr.gz")):
        kind = {".gz": nibabel.Nifti1Image, ".mgz": nibabel.MGHImage}[path.suffix]
        kind = nibabel.Nifti1Pair if path.name.endswith(".hdr.gz") else kind
        nibabel.save(kind(VOXELS, np.diag([1.0, 2.0, 3.0, 1.0])), path)
        # Written by nibabel without a name in the header of 10 bytes.
        return (path.with_name("scan.img.gz"), 10) if path.name.endswith(".hdr.gz") else (path, 10)
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS.T), str(path), True)
    if path.suffix == ".mhd":
        return path.with_suffix(".zraw"), 2
    content = path.read_bytes()
    if path.suffix == ".mha":
        return path, content.index(b"LOCAL\n") + 6 + 2
    return path, content.index(b"\n\n") + 2 + 10


@pytest.mark.parametrize("ending", [".nii.gz", ".mgz", ".hdr.gz", ".nrrd", ".mha", ".mhd"])
def test_compressed_voxels_with_a_wrong_checksum_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    data, start = packed(path)
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)
    data.write_bytes(rotten(data.read_bytes(), start))
    assert read_header(path).shape == SHAPE
    with pytest.raises(ScanError, match=r"unreadable: .*(damaged|data read error)"):
        read_volume(path)


def test_any_volume_of_a_damaged_series_in_time_is_refused(tmp_path: Path) -> None:
    series = np.random.default_rng(0).integers(0, 50, (9, 10, 11, 5)).astype(np.int16)
    path = write_nifti(tmp_path / "series.nii.gz", series)
    np.testing.assert_array_equal(read_volume(path, 3).array, series[..., 3])
    path.write_bytes(rotten(path.read_bytes(), 10))
    with pytest.raises(ScanError, match="content is damaged"):
        read_volume(path, 0)


NIFTI = nibabel.Nifti1Image(VOXELS, np.eye(4)).to_bytes()
PACKED = gzip.compress(NIFTI)
# As `bgzip` writes it: many members, and an empty one at the end.
MEMBERS = b"".join(gzip.compress(NIFTI[start : start + 3000]) for start in range(0, len(NIFTI), 3000))


@pytest.mark.parametrize(
    "content", [MEMBERS + gzip.compress(b""), PACKED + b"garbage at the end", PACKED + b"\0" * 512]
)
def test_what_gzip_takes_for_whole_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)


@pytest.mark.parametrize("content", [PACKED[:-8], PACKED[:-4], PACKED + PACKED[:50], PACKED[:-1] + b"\x7f"])
def test_what_gzip_takes_for_damaged_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    with pytest.raises(ScanError, match="unreadable"):
        read_volume(path)


NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 9 10 11\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\n"
    "encoding: raw\n{}\n"
)
META = (
    "ObjectType = Image\nNDims = {}\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "CompressedData = False\nElementSpacing = 1 1 1\nDimSize = {}\nElementType = MET_SHORT\n"
    "ElementDataFile = {}\n"
)
SMALL = np.arange(990, dtype="<i2").reshape(9, 10, 11)


def mgh(side: int) -> bytes:
    content = bytearray(nibabel.MGHImage(np.zeros((4, 4, 4), np.float32), np.eye(4)).to_bytes())
    content[4:16] = struct.pack(">3i", side, side, side)
    return bytes(content)


# What ends a process is below: here are files that raise, or claim, what no reader should.
BAD = {
    "first_block.nii.gz": PACKED[:12] + b"\xff" * 48 + PACKED[60:],
    "huge.mgh": mgh(2**30),
    "huge.nii": NIFTI[:42] + struct.pack("<3h", 2**15 - 1, 2**15 - 1, 2**15 - 1) + NIFTI[48:],
    "huge.nii.gz": gzip.compress(NIFTI[:42] + struct.pack("<3h", 9999, 9999, 9999) + NIFTI[48:]),
    "backwards.mgh": mgh(-5),
    "long_line.nrrd": NRRD.format("x" * 2_000_000 + "\n").encode() + SMALL.tobytes(),
    "negative.mha": META.format(-3, "9 10 11", "LOCAL").encode() + SMALL.tobytes(),
    "million.mha": META.format(1_000_000, "9 10 11", "LOCAL").encode() + SMALL.tobytes(),
    "short.mha": META.format(3, "900 1000 1100", "LOCAL").encode() + SMALL.tobytes(),
    "below_0.mha": META.format(3, "-9 10 11", "LOCAL").encode() + SMALL.tobytes(),
    "short.nrrd": NRRD.format("").replace("9 10 11", "90000 90000 90000").encode() + SMALL.tobytes(),
    "empty.nii.gz": b"",
    "empty.nrrd": b"",
}
# Teem writes past the end of a buffer for this line, which is shorter than what is refused beforehand.
DEADLY = {"deadly.nrrd": NRRD.format("x" * 2000 + "\n").encode() + SMALL.tobytes()}


def rejected(store: Path) -> dict[str, str]:
    with (store / "rejected.csv").open(newline="") as file:
        return {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}


def test_index_lists_every_bad_file_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    for name, array in (("a.nii", VOXELS), ("z.nii.gz", VOXELS)):
        write_nifti(folder / name, array)
    (folder / "good.mha").write_bytes(META.format(3, "9 10 11", "LOCAL").encode() + SMALL.tobytes())
    (folder / "good.nrrd").write_bytes(NRRD.format("k:=" + "v" * 100_000 + "\n").encode() + SMALL.tobytes())
    for name, content in {**BAD, **DEADLY}.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.nii")
    manifest = dae3d.index(folders=[folder], out=tmp_path / "m.jsonl", modality="t1")
    assert {scan.path.name for scan in manifest.scans} == {"a.nii", "z.nii.gz", "good.mha", "good.nrrd"}
    reasons = {item.path.name: item.reason for item in manifest.left_out}
    assert set(reasons) == {*BAD, *DEADLY, "pipe.nii"}
    assert reasons["deadly.nrrd"] == "unreadable: the process that read it crashed (SIGSEGV)"
    assert reasons["long_line.nrrd"] == "unreadable: a line of its header is longer than 4096 bytes"
    assert reasons["million.mha"] == "unreadable: NDims must be 1 to 10, not 1000000"
    assert reasons["short.mha"] == "unreadable: truncated: 1980 of 1980000000 bytes of voxels"
    assert reasons["huge.mgh"].startswith("unreadable: truncated: ")
    assert "compressed bytes cannot hold 1999400059998 bytes" in reasons["huge.nii.gz"]


def test_check_and_prepare_name_what_went_bad_since_and_go_on(tmp_path: Path, caplog) -> None:
    scans = [described(write_nifti(tmp_path / f"{name}.nii.gz", VOXELS + i)) for i, name in enumerate("abc")]
    scans[1].path.write_bytes(rotten(PACKED, 10))
    deadly = tmp_path / "deadly.nrrd"
    deadly.write_bytes(NRRD.format("").encode() + SMALL.tobytes())
    scans.append(described(deadly))
    deadly.write_bytes(DEADLY["deadly.nrrd"])
    manifest = write_manifest(tmp_path / "m.jsonl", scans)
    store = dae3d.prepare(manifest=manifest, out=tmp_path / "store", workers=1, report=False)
    assert [scan.path.name for scan in store.scans] == ["a.nii.gz", "c.nii.gz"]
    reasons = rejected(tmp_path / "store")
    assert set(reasons) == {"b.nii.gz", "deadly.nrrd"}
    assert "damaged" in reasons["b.nii.gz"]
    assert reasons["deadly.nrrd"] == "its process crashed (SIGSEGV)"
    page = check_scans(Manifest.load(manifest), manifest, 1).read_text()
    assert "damaged" in page
    assert "its process crashed (SIGSEGV)" in page
    assert "2 of 4 scans are rejected, such as" in caplog.text


def nested(depth: int, group: int = 0x0008) -> bytes:
    """A sequence (group,1140) of one item that holds another one, and so on, all of defined length."""
    parts, size = [], 0
    for _ in range(depth):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, size)
        size += 20
        parts.append(struct.pack("<HH2s2xI", group, 0x1140, b"SQ", size - 12) + item)
    return b"".join(reversed(parts))


def test_a_series_that_its_decoder_dies_of_is_named(tmp_path: Path) -> None:
    good = write_series(tmp_path / "scans" / "good", evenly(9))
    bad = write_series(tmp_path / "scans" / "bad", evenly(9))
    # After the pixels, where no header is looked at.
    bad[4].write_bytes(bad[4].read_bytes() + nested(20_000, group=0x7FE1))
    manifest = tmp_path / "m.jsonl"
    assert len(dae3d.index(folders=[tmp_path / "scans"], out=manifest, modality="ct").scans) == 2
    store = dae3d.prepare(manifest=manifest, out=tmp_path / "store", workers=1, report=False)
    assert [scan.path for scan in store.scans] == [good[0].parent]
    ((name, reason),) = rejected(tmp_path / "store").items()
    assert name.startswith("bad")
    assert reason == "its process crashed (SIGSEGV)"


@pytest.mark.parametrize("frames", [10**9, 2000])
def test_more_frames_than_bytes_are_refused(tmp_path: Path, frames: int) -> None:
    (path,) = write_series(tmp_path, evenly(1), pixels=lambda _: np.zeros((20, 24), np.uint16))
    edit(path, Rows=0, Columns=24, NumberOfFrames=frames)
    with pytest.raises(ScanError, match=rf"truncated: 9\d\d bytes for {frames} frames"):
        read_slices(path)


def test_a_series_whose_headers_nobody_foresaw_is_left_out(tmp_path: Path, monkeypatch) -> None:
    write_series(tmp_path / "scans" / "a", evenly(9))
    write_series(tmp_path / "scans" / "b", evenly(9), SeriesDescription="odd")

    def odd(header: Dataset) -> str:
        if header.get("SeriesDescription") == "odd":
            raise ZeroDivisionError
        return "ct"

    monkeypatch.setattr("dae3d.scans.dicom.finder.label_by_header", odd)
    manifest = dae3d.index(folders=[tmp_path / "scans"], out=tmp_path / "m.jsonl", val_fraction=0)
    assert [scan.path.name for scan in manifest.scans] == ["a"]
    assert [(item.path.name, item.reason) for item in manifest.left_out] == [
        ("b", "unreadable: ZeroDivisionError")
    ]


def piped(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def detached(folder: Path, ending: str) -> tuple[Path, Path]:
    """A scan of two files: the header, and what it points to."""
    path = folder / f"scan{ending}"
    if ending == ".hdr":
        nibabel.save(nibabel.Nifti1Pair(VOXELS, np.eye(4)), path)
        return path, path.with_suffix(".img")
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(path))
    return path, path.with_suffix(".raw")


@pytest.mark.parametrize("ending", [".hdr", ".mhd", ".nhdr"])
def test_voxels_in_a_pipe_are_not_waited_for(tmp_path: Path, ending: str) -> None:
    path, data = detached(tmp_path, ending)
    assert read_header(path).dtype == "int16"
    piped(data)
    for read in (read_header, read_volume):
        with pytest.raises(ScanError, match="not a file: a pipe, socket or device"):
            read(path)


def test_pipes_in_lists_cases_and_series_are_not_waited_for(tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "a.nii", VOXELS)
    pipe = piped(tmp_path / "b.nii")
    (tmp_path / "list.json").write_text('{"training": ["a.nii", "b.nii"]}')
    manifest = dae3d.index(folders=[tmp_path / "list.json"], out=tmp_path / "m.jsonl", modality="t1")
    assert {item.path.name: item.reason for item in manifest.left_out} == {
        "b.nii": "unreadable: not a file: a pipe, socket or device"
    }
    recipe = CaseRecipe(modalities=("t1",), labels={0: "background", 1: "body"}, roi=16)
    outcome = store_case(TaskCase("case", (pipe,), image, "case"), recipe, tmp_path / "cases")
    assert outcome.reason == "unreadable: not a file: a pipe, socket or device"
    slices = write_series(tmp_path / "series", evenly(3))
    piped(slices[1])
    with pytest.raises(ScanError, match="a pipe, socket or device"):
        read_slices(slices[1])
    piped(image)
    with pytest.raises(dae3d.errors.Dae3dError, match="none of the 1 scans is usable"):
        dae3d.prepare(manifest=tmp_path / "m.jsonl", out=tmp_path / "store", workers=1, report=False)
    assert rejected(tmp_path / "store") == {"a.nii": "unreadable: not a file: a pipe, socket or device"}


def test_a_scan_larger_than_memory_is_not_begun(tmp_path: Path, monkeypatch) -> None:
    path = write_nifti(tmp_path / "scan.nii", phantom((20, 20, 20)).astype(np.int16))
    monkeypatch.setattr("dae3d.scans.limits.free_memory", lambda: 15_999)
    with pytest.raises(ScanError, match=r"need 16\.0 kB of memory, but only 16\.0 kB is free"):
        read_volume(path)
    monkeypatch.setattr("dae3d.scans.limits.free_memory", lambda: 16_000)
    assert read_volume(path).array.shape == (20, 20, 20)


@pytest.mark.parametrize(
    ("text", "voxels", "compression"),
    [
        ("NRRD0005\n# {} [}:\ntype: unsigned short\nsizes: 3 4 5\nencoding: raw\n\n", 120, ""),
        ("NRRD0005\r\ntype: uint8_t\r\nsizes: 3 4 5\r\nencoding: gz\r\n\r\n", 60, "deflate"),
        ("NRRD0005\ntype: long long int\nsizes: 3 4 5\nencoding: ascii\n\n", 480, "other"),
        ("NRRD0005\ntype: block\nsizes: 3 4 5\nencoding: raw\n\n", 0, ""),
        ("NDims = 3\nDimSize = 3 4 5\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n", 60, ""),
        (
            "ObjectType = Image\nNDims = 3\nCompressedData = True\nDimSize = 3 4 5\n"
            "ElementNumberOfChannels = 2\nElementType = MET_DOUBLE\nElementDataFile = LOCAL\n",
            960,
            "deflate",
        ),
    ],
)
def test_what_a_text_header_says_of_its_voxels(
    tmp_path: Path, text: str, voxels: int, compression: str
) -> None:
    path = tmp_path / "header"
    path.write_bytes(text.encode() + b"ElementType = MET_CHAR\n")
    header = read_text_header(path)
    assert header is not None
    assert (header.voxels, header.compression, header.end) == (voxels, compression, len(text))


def test_a_reader_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="was killed because it took too long"):
        isolated(_hang, tmp_path, 0.2)
    assert isolated(_exists, tmp_path, 60)


def _hang(path: Path) -> None:
    while path.exists():
        pass


def _exists(path: Path) -> bool:
    return path.exists()
