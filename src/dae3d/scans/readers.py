"""Read scans: headers alone for indexing, whole volumes for preparing.

NIfTI, Analyze and MGH are read by nibabel, NRRD and MetaImage by SimpleITK. The format is that of the suffix,
or, if it cannot be read as that, that of the content.
"""

import logging
import math
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.affines import voxel_sizes
from nibabel.fileslice import fileslice
from nibabel.openers import ImageOpener
from nibabel.orientations import aff2axcodes
from nibabel.volumeutils import array_from_file

from dae3d.errors import ScanError
from dae3d.scans.compressed import GZIP_SUFFIXES, GzipContent, voxel_file
from dae3d.scans.content import renamed, suffix_by_content
from dae3d.scans.isolated import isolated
from dae3d.scans.itk_reader import itk_affine, itk_text, open_itk, without_preamble
from dae3d.scans.limits import refuse_irregular, refuse_no_utf8, refuse_too_large, refuse_truncated
from dae3d.scans.nifti_affine import affine_of
from dae3d.scans.nifti_voxels import check_voxels
from dae3d.scans.text_header import TextHeader, read_text_header

NIBABEL_SUFFIXES = (".nii", ".nii.gz", ".nii.bz2", ".hdr", ".hdr.gz", ".hdr.bz2", ".mgz", ".mgh")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
SUFFIXES = NIBABEL_SUFFIXES + ITK_SUFFIXES

Result = TypeVar("Result")

# Headers whose voxels are in separate files.
_DETACHED = (".mhd", ".nhdr")
_PAIRS = {".hdr": ".img", ".hdr.gz": ".img.gz", ".hdr.bz2": ".img.bz2"}

# Warnings of nibabel name no file, and go to the screen. What matters of them is in `Header.remark`, or in
# the reason why a file is left out.
nibabel.imageglobals.logger.setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="nibabel")

# Seconds, for a header and for a scan; files may have to be fetched from tape.
_HEADER_PATIENCE, _PATIENCE = 600.0, 3600.0

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Header:
    """The header of a scan file.

    `shape` is as stored, trailing axes of length 1 removed; `spacing` is in mm along the stored axes;
    `orientation` names the direction each stored axis points to, such as "LPS"; `remark` is a note for the
    user on how the header was interpreted, or "".
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    dtype: str
    orientation: str
    affine: np.ndarray
    remark: str = ""


@dataclass(frozen=True)
class Volume:
    """A scan's voxels: intensity = `array` * `slope` + `intercept`.

    `array` (X, Y, Z) has the file's own type; `affine` (4, 4) maps voxel indices to RAS+ mm.
    """

    array: np.ndarray
    affine: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the array's axes."""
        x, y, z = voxel_sizes(self.affine)
        return float(x), float(y), float(z)

    def intensities(self) -> np.ndarray:
        """The scan in acquired units (HU for CT), float32."""
        if (self.slope, self.intercept) == (1.0, 0.0):
            return self.array.astype(np.float32)
        return (self.array * np.float64(self.slope) + self.intercept).astype(np.float32)


def suffix(path: Path) -> str | None:
    """The suffix by which `path` is read, or None if it is not known."""
    name = path.name.lower()
    return next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s)), None)


def scan_stem(path: Path) -> str:
    """The file name without the suffix by which it is read: "sub-01_T1w.nii.gz" -> "sub-01_T1w"."""
    return path.name[: len(path.name) - len(suffix(path) or "")]


def files_read(path: Path) -> list[Path]:
    """The file itself, and the existing files that belong to it or that it names (Analyze, MetaImage, NRRD).

    Raises:
        ScanError: if one of them is a pipe, a socket or a device.
        OSError: if there is no such file.
    """
    refuse_irregular(path)
    ending = suffix(path)
    data: list[Path] = []
    if ending in _PAIRS:
        # Analyze as SPM writes it has its affine in a .mat.
        endings = (_PAIRS[ending], _PAIRS[ending].upper(), ".mat")
        data = [path.with_name(scan_stem(path) + end) for end in endings]
    elif ending in ITK_SUFFIXES:
        header = itk_text(path)
        with suppress(ScanError):  # reading it later reports why
            data = header.data_files() if header else []
    there = [file for file in data if file.exists()]
    for file in there:
        refuse_irregular(file)
    return [path, *(file for file in there if file.is_file())]


def volume_count(path: Path) -> int:
    """The number of volumes along the fourth axis of `path`: 1 if it is 3-D.

    Raises:
        ScanError: if it cannot be read, or is neither 3-D nor 4-D.
    """
    shape = _squeezed(_read(path, _itk_shape, _nibabel_shape, _HEADER_PATIENCE))
    if len(shape) > 4:
        raise ScanError(f"{len(shape)}-D: shape {_times(shape)}")
    return shape[3] if len(shape) == 4 else 1


def read_header(path: Path, volume: int | None = None) -> Header:
    """Read the header of `path`, without its voxels.

    Args:
        path: file with one of `SUFFIXES`.
        volume: the index of the scan in a 4-D file, from 0.

    Raises:
        ScanError: with the reason, if it cannot be read, is not a plain 3-D scan (4-D without `volume`,
            2-D, RGB, complex), or has zero or non-finite spacing.
    """
    by_itk, by_nibabel = partial(_itk_header, volume=volume), partial(_nibabel_header, volume=volume)
    return _read(path, by_itk, by_nibabel, _HEADER_PATIENCE)


def read_volume(path: Path, volume: int | None = None) -> Volume:
    """Read a whole scan; of a 4-D file, only the `volume` asked for, numbered from 0.

    Raises:
        ScanError: as `read_header`; if the voxels cannot be read or their checksum is wrong; or if they do
            not fit into memory.
    """
    header = read_header(path, volume)
    refuse_too_large(header.shape, np.dtype(header.dtype).itemsize)
    by_itk, by_nibabel = partial(_itk_volume, volume=volume), partial(_nibabel_volume, volume=volume)
    return _read(path, by_itk, by_nibabel, _PATIENCE)


def load_nifti(path: Path) -> Any:
    """The nibabel image of a NIfTI, Analyze or MGH file, whatever its suffix; None for other formats.

    Raises:
        ScanError: if it cannot be read.
    """
    return None if suffix(path) in ITK_SUFFIXES else _read(path, _nothing, nibabel.load, _HEADER_PATIENCE)


def _nothing(path: Path) -> None:
    """The result for files that nibabel does not read."""


def _read(
    path: Path, by_itk: Callable[[Path], Result], by_nibabel: Callable[[Path], Result], seconds: float
) -> Result:
    """Read `path` in the format of its suffix, else in that of its content.

    ITK runs in a separate process, because some files crash it.
    """
    refuse_no_utf8(path)
    try:
        files = files_read(path)
        if suffix(path) not in ITK_SUFFIXES:
            return by_nibabel(path)
        header, text = read_text_header(path), itk_text(path)
        if header is not None and text is not None:
            text.check(whole=False)
            _refuse_absent_voxels(header, files)
        return isolated(by_itk, path, seconds)
    except ScanError:
        raise
    except Exception as error:
        found = _suffix_by_content(path)
        if found is None or suffix(path) in (found, *_DETACHED):
            raise ScanError(f"unreadable: {_why(path, error)}") from error
    with renamed(path, found) as link:
        return _read(link, by_itk, by_nibabel, seconds)


def _refuse_absent_voxels(header: TextHeader, files: Sequence[Path]) -> None:
    """Refuse voxels that need more bytes than their files have; if these are unknown, ITK reports it."""
    header_file, *data = files
    if header.compression == "other" or not (data or suffix(header_file) not in _DETACHED):
        return
    there = sum(file.stat().st_size for file in data) if data else header_file.stat().st_size - header.end
    refuse_truncated(header.voxels, there, header.compression == "deflate")


def _suffix_by_content(path: Path) -> str | None:
    try:
        return suffix_by_content(path)
    except OSError:
        return None


def _load(path: Path) -> Any:
    """The nibabel image of a file, with enough bytes for its voxels."""
    with np.errstate(over="ignore"):
        image: Any = nibabel.load(path)
    proxy, data = image.dataobj, Path(image.file_map["image"].filename)
    voxels, there = math.prod(map(int, proxy.shape)) * proxy.dtype.itemsize, data.stat().st_size
    if data.suffix.lower() in GZIP_SUFFIXES:
        refuse_truncated(voxels, there, deflated=True)
    elif data.suffix.lower() not in ImageOpener.compress_ext_map:
        refuse_truncated(voxels, there - proxy.offset)
    return image


def _nibabel_shape(path: Path) -> tuple[int, ...]:
    return _load(path).shape


def _nibabel_header(path: Path, volume: int | None) -> Header:
    image = _load(path)
    dtype = image.get_data_dtype()
    _refuse_non_scalar(dtype)
    shape = _shape_of(image.shape, volume)
    affine, remark = affine_of(image)
    return _header(shape, dtype, affine, "; ".join(filter(None, [remark, check_voxels(image)])))


def _nibabel_volume(path: Path, volume: int | None) -> Volume:
    image = _load(path)
    proxy = image.dataobj
    slope, intercept = float(getattr(proxy, "slope", 1.0)), float(getattr(proxy, "inter", 0.0))
    with voxel_file(image.file_map["image"]) as file:
        if volume is None or len(_squeezed(image.shape)) == 3:
            mapped = not isinstance(file, GzipContent)
            array = array_from_file(proxy.shape, proxy.dtype, file, proxy.offset, proxy.order, mapped)
        else:
            chosen = (..., volume, *[0] * (len(proxy.shape) - 4))
            array = fileslice(file, chosen, proxy.shape, proxy.dtype, proxy.offset, proxy.order)
    if "header" in image.file_map:
        with voxel_file(image.file_map["header"]):
            pass
    native = np.asarray(array).astype(array.dtype.newbyteorder("="), copy=False)
    return Volume(native.reshape(_squeezed(native.shape)), affine_of(image)[0], slope, intercept)


def _itk_shape(path: Path) -> tuple[int, ...]:
    return open_itk(path)[0].GetSize()


def _itk_header(path: Path, volume: int | None) -> Header:
    reader, text = open_itk(path)
    shape = _shape_of(reader.GetSize(), volume)
    dtype = sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).dtype
    _refuse_non_scalar(dtype)
    return _header(shape, dtype, *itk_affine(reader, text))


def _itk_volume(path: Path, volume: int | None) -> Volume:
    reader, text = open_itk(path, whole=True)
    affine, _ = itk_affine(reader, text)
    if volume is not None and reader.GetDimension() == 4:
        reader.SetExtractIndex([0, 0, 0, volume])
        reader.SetExtractSize([*reader.GetSize()[:3], 0])
    # SimpleITK's array axes run (Z, Y, X).
    array = sitk.GetArrayFromImage(reader.Execute()).T
    return Volume(array.reshape(_squeezed(array.shape)), affine)


def _shape_of(stored: Sequence[int], volume: int | None) -> tuple[int, int, int]:
    """The shape of the only volume of a file, or of the one chosen."""
    shape = _squeezed(stored)
    if len(shape) == 4 and volume is not None:
        if not 0 <= volume < shape[3]:
            raise ScanError(f"no volume {volume}: it has {shape[3]}, counted from 0")
        shape = shape[:3]
    if len(shape) != 3:
        raise ScanError(f"{len(shape)}-D: shape {_times(shape)}")
    if min(shape) < 1:
        raise ScanError(f"empty: shape {_times(shape)}")
    return shape[0], shape[1], shape[2]


def _header(shape: tuple[int, int, int], dtype: np.dtype, affine: np.ndarray, remark: str = "") -> Header:
    # A negative spacing reverses its axis in the affine.
    x, y, z = (float(size) for size in voxel_sizes(affine))
    if not (np.isfinite(affine).all() and min(x, y, z) > 0):
        raise ScanError(f"zero or non-finite spacing: {(x, y, z)}")
    axes = aff2axcodes(affine)
    if None in axes:
        raise ScanError("affine is singular: its axes do not span three dimensions")
    return Header(
        shape=shape,
        spacing=(x, y, z),
        dtype=dtype.newbyteorder("=").name,
        orientation="".join(axes),
        affine=affine,
        remark=remark,
    )


def _refuse_non_scalar(dtype: np.dtype) -> None:
    if dtype.fields is not None:
        raise ScanError(f"RGB or vector: voxels of type {dtype}")
    if dtype.kind == "c":
        raise ScanError("complex-valued")


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    kept = list(shape)
    while len(kept) > 2 and kept[-1] == 1:
        kept.pop()
    return tuple(int(n) for n in kept)


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _why(path: Path, error: Exception) -> str:
    """A reader's error in one short line that is the same every time."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
    except OSError as refused:
        return str(refused.strerror)
    if head == _LFS_POINTER:
        return "a Git LFS pointer in place of the file; `git lfs pull` fetches it"
    text = without_preamble(" ".join(str(error).split())).replace(str(path), path.name)
    kind = "" if isinstance(error, RuntimeError | zlib.error) else f"{type(error).__name__}: "
    return f"{kind}{text}"[:300]
