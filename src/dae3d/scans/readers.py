"""Read scans: headers alone for indexing, whole volumes for preparing.

NIfTI and MGH are read by nibabel, NRRD and MetaImage by SimpleITK.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import aff2axcodes

from dae3d.errors import ScanError

NIBABEL_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
SUFFIXES = NIBABEL_SUFFIXES + ITK_SUFFIXES

# ITK's world is LPS (+x to the patient's left), ours and NIfTI's is RAS.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Source file, line and object address, which say nothing to a user.
_ITK_PREAMBLE = re.compile(
    r"^Exception thrown in SimpleITK .*(?:ITK |sitk::)ERROR: (?:\w+\(0x[0-9a-f]+\): )?"
)


@dataclass(frozen=True)
class Header:
    """What a file says of its scan, without its voxels.

    `shape` is as stored, trailing axes of length 1 removed; `spacing` is in mm along the stored axes;
    `orientation` names the direction each stored axis points to, such as "LPS".
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    dtype: str
    orientation: str
    affine: np.ndarray


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
        x, y, z = nibabel.affines.voxel_sizes(self.affine)
        return float(x), float(y), float(z)

    def intensities(self) -> np.ndarray:
        """The scan in acquired units (HU for CT), float32."""
        if (self.slope, self.intercept) == (1.0, 0.0):
            return self.array.astype(np.float32)
        return (self.array * np.float64(self.slope) + self.intercept).astype(np.float32)


def suffix(path: Path) -> str | None:
    """The suffix by which `path` is read, or None where no reader takes it."""
    name = path.name.lower()
    return next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s)), None)


def scan_stem(path: Path) -> str:
    """The file name without the suffix by which it is read: "sub-01_T1w.nii.gz" -> "sub-01_T1w"."""
    return path.name[: len(path.name) - len(suffix(path) or "")]


def read_header(path: Path) -> Header:
    """Read what `path` says of its scan, and none of its voxels.

    Raises:
        ScanError: with the reason, where it cannot be read, holds no plain 3-D scan (4-D, 2-D, RGB,
            complex), or has zero or non-finite spacing.
    """
    try:
        return _itk_header(path) if suffix(path) in ITK_SUFFIXES else _nibabel_header(path)
    except ScanError:
        raise
    except Exception as error:
        raise ScanError(f"unreadable: {_why(path, error)}") from error


def read_volume(path: Path) -> Volume:
    """Read a whole scan.

    Raises:
        ScanError: as `read_header`, and where the voxels cannot be read (a truncated gzip).
    """
    read_header(path)
    try:
        volume = _itk_volume(path) if suffix(path) in ITK_SUFFIXES else _nibabel_volume(path)
    except ScanError:
        raise
    except Exception as error:
        raise ScanError(f"unreadable: {_why(path, error)}") from error
    return volume


def _nibabel_header(path: Path) -> Header:
    image: Any = nibabel.load(path)
    dtype = image.get_data_dtype()
    _refuse_non_scalar(dtype)
    _refuse_zero_pixdim(image)
    return _header(image.shape, nibabel.affines.voxel_sizes(image.affine), dtype, image.affine)


def _nibabel_volume(path: Path) -> Volume:
    image: Any = nibabel.load(path)
    proxy = image.dataobj
    slope, intercept = float(getattr(proxy, "slope", 1.0)), float(getattr(proxy, "inter", 0.0))
    array = proxy.get_unscaled() if hasattr(proxy, "get_unscaled") else np.asanyarray(proxy)
    native = np.asarray(array).astype(array.dtype.newbyteorder("="), copy=False)
    return Volume(native.reshape(_squeezed(native.shape)), np.asarray(image.affine), slope, intercept)


def _itk_reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetNumberOfComponents() != 1:
        raise ScanError(f"RGB or vector: {reader.GetNumberOfComponents()} values per voxel")
    return reader


def _itk_affine(reader: sitk.ImageFileReader) -> np.ndarray:
    dimensions = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(reader.GetSpacing())[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    return _LPS_TO_RAS @ affine


def _itk_header(path: Path) -> Header:
    reader = _itk_reader(path)
    if reader.GetDimension() < 3:
        raise ScanError(f"2-D: shape {_times(reader.GetSize())}")
    dtype = sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).dtype
    _refuse_non_scalar(dtype)
    return _header(reader.GetSize(), reader.GetSpacing(), dtype, _itk_affine(reader))


def _itk_volume(path: Path) -> Volume:
    reader = _itk_reader(path)
    affine = _itk_affine(reader)
    # SimpleITK's array axes run (Z, Y, X).
    array = sitk.GetArrayFromImage(reader.Execute()).T
    return Volume(array.reshape(_squeezed(array.shape)), affine)


def _header(shape: Sequence[int], spacing: Sequence[float], dtype: np.dtype, affine: np.ndarray) -> Header:
    kept = _squeezed(shape)
    if len(kept) != 3:
        raise ScanError(f"{'4-D' if len(kept) > 3 else '2-D'}: shape {_times(kept)}")
    if 0 in kept:
        raise ScanError(f"empty: shape {_times(kept)}")
    x, y, z = (float(s) for s in spacing[:3])
    if not (np.isfinite(affine).all() and min(x, y, z) > 0):
        raise ScanError(f"zero or non-finite spacing: {(x, y, z)}")
    return Header(
        shape=(kept[0], kept[1], kept[2]),
        spacing=(x, y, z),
        dtype=dtype.newbyteorder("=").name,
        orientation="".join(axis or "?" for axis in aff2axcodes(affine)),
        affine=affine,
    )


def _refuse_non_scalar(dtype: np.dtype) -> None:
    if dtype.fields is not None:
        raise ScanError(f"RGB or vector: voxels of type {dtype}")
    if dtype.kind == "c":
        raise ScanError("complex-valued")


def _refuse_zero_pixdim(image: Any) -> None:
    """Refuse a NIfTI without sform whose voxel size is zero; nibabel would take it for 1 mm."""
    if not isinstance(image.header, nibabel.Nifti1Header) or image.header["sform_code"] > 0:
        return
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        pixdim = type(image.header).from_fileobj(file, check=False)["pixdim"]
    if not pixdim[1:4].all():
        raise ScanError(f"zero or non-finite spacing: {tuple(map(float, pixdim[1:4]))}")


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    kept = list(shape)
    while len(kept) > 2 and kept[-1] == 1:
        kept.pop()
    return tuple(int(n) for n in kept)


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _why(path: Path, error: Exception) -> str:
    """The gist of a reader's error, in one line and the same every time."""
    if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(_LFS_POINTER):
        return "a Git LFS pointer in place of the file; `git lfs pull` fetches it"
    text = _ITK_PREAMBLE.sub("", " ".join(str(error).split())).replace(str(path), path.name)
    kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
    return f"{kind}{text}"[:300]
