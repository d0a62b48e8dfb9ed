"""NRRD and MetaImage headers: units, sizes and orientation said, not said or said twice; damaged voxels."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import dae3d
from dae3d.errors import ScanError
from dae3d.scans.readers import files_read, read_header, read_volume

SHAPE = (9, 10, 11)
VOXELS = np.random.default_rng(0).integers(0, 3000, SHAPE, dtype="<i2")
RAW = VOXELS.tobytes(order="F")
LPS = "space: left-posterior-superior\n"
IDENTITY = "TransformMatrix = 1 0 0 0 1 0 0 0 1\n"


def nrrd(folder: Path, lines: str, voxels: bytes = RAW, name: str = "scan.nrrd") -> Path:
    sized = "" if "dimension: 4" in lines else "dimension: 3\nsizes: 9 10 11\n"
    encoding = "" if "encoding" in lines else "encoding: raw\n"
    text = f"NRRD0005\ntype: short\n{sized}endian: little\n{encoding}{lines}\n"
    path = folder / name
    path.write_bytes(text.encode() + voxels)
    return path


def meta(folder: Path, lines: str, voxels: bytes = RAW, name: str = "scan.mha", data: str = "LOCAL") -> Path:
    head = "ObjectType = Image\nNDims = 3\n" + ("" if "BinaryData" in lines else "BinaryData = True\n")
    path = folder / name
    text = f"{head}{lines}DimSize = 9 10 11\nElementType = MET_SHORT\nElementDataFile = {data}\n"
    path.write_bytes(text.encode() + voxels)
    return path


def directions(x: float = 2, y: float = 3, z: float = 4) -> str:
    return f"space directions: ({x},0,0) (0,{y},0) (0,0,{z})\nspace origin: (10,20,30)\n"


@pytest.mark.parametrize(
    ("words", "spacing", "origin", "remark"),
    [
        ('"mm" "mm" "mm"', (2, 3, 4), (-10, -20, 30), ""),
        ('"" "" ""', (2, 3, 4), (-10, -20, 30), ""),
        (
            '"um" "um" "um"',
            (0.002, 0.003, 0.004),
            (-0.01, -0.02, 0.03),
            "its unit is micrometres, multiplied by",
        ),
        ('"microns" "µm" "\\xb5m"', (0.002, 0.003, 0.004), (-0.01, -0.02, 0.03), "its unit is micrometres"),
        (
            '"cm" "cm" "cm"',
            (20, 30, 40),
            (-100, -200, 300),
            "its unit is centimetres, multiplied by 10 to get mm",
        ),
        (
            '"mm" "mm" "cm"',
            (2, 3, 40),
            (-10, -20, 300),
            "millimetres, millimetres, centimetres, multiplied by 1",
        ),
        ('"voxels" "voxels" "voxels"', (2, 3, 4), (-10, -20, 30), "called 'voxels', which is not a length"),
    ],
)
def test_units_of_nrrd(tmp_path: Path, words: str, spacing: tuple, origin: tuple, remark: str) -> None:
    path = nrrd(tmp_path, LPS + directions() + f"space units: {words}\n")
    path.write_bytes(path.read_bytes().replace(b"\\xb5", b"\xb5"))
    header = read_header(path)
    assert header.spacing == pytest.approx(spacing)
    assert header.orientation == "LPS"
    np.testing.assert_allclose(header.affine[:3, 3], origin)
    np.testing.assert_allclose(read_volume(path).affine, header.affine)
    assert remark in header.remark
    assert bool(remark) == bool(header.remark)


def test_units_of_nrrd_axes_without_a_space(tmp_path: Path) -> None:
    header = read_header(nrrd(tmp_path, 'spacings: 20 30 4\nunits: "um" "um" "mm"\n'))
    assert header.spacing == pytest.approx((0.02, 0.03, 4))
    assert "no orientation" in header.remark
    assert "micrometres, micrometres, millimetres" in header.remark


@pytest.mark.parametrize(
    ("lines", "remark"),
    [
        ("", "no voxel size and no orientation: read as 1 mm, LPS"),
        ("spacings: 2 3 4\n", "no orientation (no space directions): read as LPS"),
        ("space: scanner-xyz\n" + directions(), "no anatomical orientation (space scanner-xyz): read as LPS"),
        (
            "space dimension: 3\n" + directions(),
            "no anatomical orientation (space without a name): read as LPS",
        ),
        (LPS + directions() + "measurement frame: (0,1,0) (1,0,0) (0,0,1)\ncenterings: cell cell cell\n", ""),
    ],
)
def test_what_nrrd_leaves_unsaid_is_remarked(tmp_path: Path, lines: str, remark: str) -> None:
    header = read_header(nrrd(tmp_path, lines))
    assert header.remark == remark
    assert header.orientation == "LPS"
    assert header.spacing == ((2, 3, 4) if lines else (1, 1, 1))


@pytest.mark.parametrize(
    ("space", "orientation"),
    [
        ("left-posterior-superior", "LPS"),
        ("LPS", "LPS"),
        ("right-anterior-superior", "RAS"),
        ("RAS", "RAS"),
        ("left-anterior-superior", "LAS"),
        ("LAS", "LAS"),
    ],
)
@pytest.mark.parametrize("time", [False, True])
def test_anatomical_spaces_of_nrrd(tmp_path: Path, space: str, orientation: str, time: bool) -> None:
    lines = f"space: {space}\n{directions()}"
    if time:
        lines = (
            f"space: {space}{'-time' if '-' in space else 'T'}\ndimension: 4\nsizes: 9 10 11 2\n"
            "space directions: (2,0,0,0) (0,3,0,0) (0,0,4,0) (0,0,0,5)\nspace origin: (10,20,30,0)\n"
        )
    header = read_header(nrrd(tmp_path, lines, RAW + RAW), 0 if time else None)
    assert (header.orientation, header.spacing, header.remark) == (orientation, (2, 3, 4), "")
    signs = np.array([1 if a == b else -1 for a, b in zip(orientation, "RAS", strict=True)])
    np.testing.assert_allclose(header.affine[:3, 3], signs * (10, 20, 30))


@pytest.mark.parametrize(
    "lines",
    [
        LPS + "space directions: (2,0,0) (0,3,0) (nan,nan,nan)\n",
        LPS + "space directions: (2,0,0) (0,3,0) none\n",
        LPS + "space directions: (2,0,0) (0,3,0) (0,0,0)\n",
        "spacings: 2 3 nan\n",
    ],
)
def test_an_axis_of_nrrd_without_a_size_is_no_axis_of_space(tmp_path: Path, lines: str) -> None:
    for read in (read_header, read_volume):
        with pytest.raises(ScanError, match="zero or non-finite spacing"):
            read(nrrd(tmp_path, lines))


def test_a_nrrd_axis_of_one_component_needs_no_direction(tmp_path: Path) -> None:
    lines = (
        "dimension: 4\nsizes: 1 9 10 11\nkinds: vector space space space\n"
        + LPS
        + directions().replace("directions:", "directions: none")
    )
    path = nrrd(tmp_path, lines)
    assert read_header(path).spacing == (2, 3, 4)
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)


@pytest.mark.parametrize(
    ("lines", "spacing", "remark"),
    [
        (IDENTITY + "ElementSpacing = 2 3 4\n", (2, 3, 4), ""),
        (
            IDENTITY + "ElementSpacing = 2 3 4\nDistanceUnits = mm\nAnatomicalOrientation = RAI\n",
            (2, 3, 4),
            "",
        ),
        (IDENTITY + "ElementSpacing = 2 3 4\nAnatomicalOrientation = LPS\n", (2, 3, 4), ""),
        ("ElementSpacing = 2 3 4\nAnatomicalOrientation = RAI\n", (2, 3, 4), ""),
        (IDENTITY + "ElementSize = 2 3 4\n", (2, 3, 4), ""),
        (
            IDENTITY + "ElementSpacing = 2 3 4\nDistanceUnits = um\n",
            (0.002, 0.003, 0.004),
            "micrometres, multiplied",
        ),
        (
            IDENTITY + "ElementSpacing = 2 3 4\nDistanceUnits = cm\n",
            (20, 30, 40),
            "centimetres, multiplied by 10",
        ),
        (IDENTITY, (1, 1, 1), "no voxel size: read as 1 mm"),
        (IDENTITY + "elementspacing = 2 3 4\n", (1, 1, 1), "no voxel size: read as 1 mm"),
        ("ElementSpacing = 2 3 4\n", (2, 3, 4), "no orientation (no TransformMatrix): read as LPS"),
        (
            IDENTITY + "ElementSpacing = 2 3 4\nElementSize = 2 3 5\n",
            (2, 3, 4),
            "ElementSpacing and ElementSize disagree",
        ),
        (
            IDENTITY + "ElementSpacing = 2 3 4\nAnatomicalOrientation = LPI\n",
            (2, 3, 4),
            "AnatomicalOrientation (LPI) and TransformMatrix (LPS) disagree",
        ),
        (
            "ElementSpacing = 2 3 4\nAnatomicalOrientation = LPI\n",
            (2, 3, 4),
            "AnatomicalOrientation (LPI) is ignored without TransformMatrix",
        ),
        (
            "TransformMatrix = 2 0 0 0 1 0 0 0 1\nElementSpacing = 2 3 4\n",
            (4, 3, 4),
            "TransformMatrix is not a rotation (2 x 1 x 1)",
        ),
    ],
)
def test_what_metaimage_says_of_size_and_orientation(
    tmp_path: Path, lines: str, spacing: tuple, remark: str
) -> None:
    path = meta(tmp_path, lines)
    header = read_header(path)
    assert header.spacing == pytest.approx(spacing)
    assert header.orientation == "LPS"
    np.testing.assert_allclose(read_volume(path).affine, header.affine)
    assert remark in header.remark
    assert bool(remark) == bool(header.remark)


def test_real_headers_need_no_remark(shared_data: Path) -> None:
    for name in ("awkward/nrrd_FLAIR.nrrd", "awkward/mha_fmri.mha", "pretrain/elastix/3DCT_lung.mha"):
        header = read_header(shared_data / name)
        assert header.remark == ""
        np.testing.assert_allclose(header.spacing, sitk.ReadImage(str(shared_data / name)).GetSpacing())


PACKED = zlib.compress(RAW)
SIZE = f"CompressedData = True\nCompressedDataSize = {len(PACKED)}\n"
ASCII = " ".join(map(str, VOXELS.ravel(order="F"))).encode()
TEXT = "BinaryData = False\n"


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(("lines", "voxels"), [(SIZE, PACKED), (TEXT, ASCII + b"\n"), ("", RAW + b"more")])
def test_metaimage_voxels_in_every_way(tmp_path: Path, lines: str, voxels: bytes) -> None:
    np.testing.assert_array_equal(read_volume(meta(tmp_path, lines, voxels)).array, VOXELS)


@pytest.mark.parametrize(
    ("lines", "voxels", "why"),
    [
        ("", RAW[:1000], "truncated: 1000 of 1980 bytes of voxels"),
        ("", b"", "truncated: 0 of 1980 bytes"),
        (SIZE, PACKED[:500], "compressed voxels are cut short"),
        (SIZE, flipped(PACKED, 700), "compressed content is damaged"),
        (SIZE, flipped(PACKED, len(PACKED) - 1), "compressed content is damaged"),
        ("CompressedData = True\n", PACKED, "CompressedData without CompressedDataSize"),
        ("CompressedData = True\nCompressedDataSize = 9\n", RAW, "compressed content is damaged"),
        (SIZE, zlib.compress(RAW[:1000]), "truncated: 1000 of 1980 bytes"),
        (TEXT, ASCII[:100], r"truncated: \d+ of 990 values"),
        (TEXT, ASCII, "without a blank or line end after the last one"),
        ("TransformMatrix = 1 0 0 0 1\n", RAW, "TransformMatrix has 5 of 9 numbers"),
        (SIZE.replace("True", "Tr\ne"), PACKED, "a line that is not a field"),
        ("NDims = 4\n", RAW, "DimSize has 3 numbers, but NDims is different"),
        (SIZE.replace("Size = ", "Size = 1\nComment = "), PACKED, "compressed voxels are cut short"),
        ("ElementSpacing = 1 x 1\n", RAW, "could not convert string to float: 'x'"),
    ],
)
def test_the_true_reason_why_metaimage_is_not_read(
    tmp_path: Path, lines: str, voxels: bytes, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = meta(tmp_path, lines, voxels)
    with pytest.raises(ScanError, match=f"^unreadable: .*{why}"):
        read_volume(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"ObjectType = Image\nNDims = 3\nBinaryData = True\n", "its header has no DimSize; is it cut short"),
        (b"", "neither NRRD nor MetaImage"),
        (bytes(500), "neither NRRD nor MetaImage"),
        (b"words\n" * 50, "neither NRRD nor MetaImage"),
        (b"NRRD0004\ntype: short\ndimension: 3\n", 'hit end of header, but no "data file" given'),
    ],
)
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_a_header_that_is_none(
    tmp_path: Path, ending: str, content: bytes, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"scan{ending}"
    path.write_bytes(content)
    with pytest.raises(ScanError, match=f"^unreadable: {why}"):
        read_header(path)
    assert capfd.readouterr().err == ""


def test_the_gist_of_what_is_wrong_with_a_nrrd(tmp_path: Path) -> None:
    with pytest.raises(
        ScanError, match=r"^unreadable: nrrd_\w+: field \"foot\" not recognized|^unreadable: .*foot"
    ):
        read_volume(nrrd(tmp_path, LPS + directions() + "foot: 1\n", RAW))


def slices(folder: Path) -> list[Path]:
    """The voxels, a file each slice."""
    paths = [folder / f"s{number:02d}.raw" for number in range(1, 12)]
    for number, path in enumerate(paths):
        path.write_bytes(VOXELS[..., number].tobytes(order="F"))
    return paths


LIST = "LIST\n" + "\n".join(f"s{number:02d}.raw" for number in range(1, 12))
DETACHED: list[tuple[str, Callable[[Path, str], Path]]] = [
    (".nhdr", lambda folder, data: nrrd(folder, f"data file: {data}", b"", "scan.nhdr")),
    (".nrrd", lambda folder, data: nrrd(folder, f"DataFile: {data}", b"", "scan.nrrd")),
    (".mhd", lambda folder, data: meta(folder, "", b"", "scan.mhd", data)),
    (".mha", lambda folder, data: meta(folder, "", b"", "scan.mha", data)),
]


@pytest.mark.parametrize(("ending", "header"), DETACHED, ids=[ending for ending, _ in DETACHED])
@pytest.mark.parametrize("data", ["all of them.raw", "in/all.raw", "s%02d.raw 1 11 1", LIST])
def test_every_file_that_a_header_names_is_a_source(
    tmp_path: Path, ending: str, header: Callable[[Path, str], Path], data: str
) -> None:
    paths = slices(tmp_path)
    if ".raw" in data and not data.startswith(("s%", "LIST")):
        paths = [tmp_path / data]
        paths[0].parent.mkdir(exist_ok=True)
        paths[0].write_bytes(RAW)
    path = header(tmp_path, data)
    assert files_read(path) == [path, *paths]
    np.testing.assert_array_equal(read_volume(path).array, VOXELS)
    paths[-1].unlink()
    assert files_read(path) == [path, *paths[:-1]]
    with pytest.raises(ScanError, match=f"^unreadable: its data file {paths[-1].name} is missing"):
        read_header(path)


def test_slices_too_few_for_a_metaimage(tmp_path: Path) -> None:
    slices(tmp_path)
    with pytest.raises(ScanError, match="truncated: 1800 of 1980 bytes of voxels"):
        read_volume(meta(tmp_path, "", b"", "scan.mhd", "s%02d.raw 1 10 1"))


@pytest.mark.parametrize("header", [header for _, header in DETACHED[::2]], ids=["nrrd", "metaimage"])
def test_a_scan_is_prepared_again_when_one_of_its_slices_changes(
    tmp_path: Path, header: Callable[[Path, str], Path]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    paths = slices(folder)
    header(folder, LIST)
    manifest, store = tmp_path / "manifest", tmp_path / "store"
    dae3d.index(folders=[folder], out=manifest, modality="t1")
    dae3d.prepare(manifest=manifest, out=store, workers=1, report=False)
    times = paths[4].stat()
    paths[4].write_bytes(bytes(180))
    os.utime(paths[4], ns=(times.st_atime_ns, times.st_mtime_ns - 10**9))  # as copied from elsewhere
    dae3d.index(folders=[folder], out=manifest, modality="t1")
    prepared = dae3d.prepare(manifest=manifest, out=store, workers=1, report=False)
    # LPS as read, RAS as stored.
    stored = prepared.read(0, (0, 0, 0), SHAPE)[::-1, ::-1]
    assert not stored[..., 4].any()
    np.testing.assert_array_equal(np.delete(stored, 4, 2), np.delete(VOXELS, 4, 2))
