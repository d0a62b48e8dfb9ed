"""The affine of NIfTI, Analyze and MGH files, also if it is given twice, wrongly or not at all."""

from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.analyze import AnalyzeHeader
from nibabel.orientations import aff2axcodes

from dae3d.errors import ScanError

_SAME_SPACING = 0.01  # relative
# The units of a NIfTI header: code, name, and size in mm.
_UNITS = {
    0: ("millimetres", 1.0),  # unspecified
    1: ("metres", 1000.0),
    2: ("millimetres", 1.0),
    3: ("micrometres", 0.001),
}
_GOOD_RAS = 28  # offset of the 2-byte flag in an MGH header that there is an orientation


def affine_of(image: Any) -> tuple[np.ndarray, str]:
    """The affine (4, 4) from voxels to RAS+ mm of an image that nibabel loaded, and a remark on it or "".

    It is the sform, else the qform, else the voxel size alone, with the axes of Analyze (LAS). A form marked
    as unknown (code 0) is treated as absent, and so is a singular sform if there is a qform. Metres and
    micrometres are converted to mm; a missing unit is read as mm.

    Raises:
        ScanError: if there is no sform and the voxel size is zero.
    """
    if not isinstance(image.header, AnalyzeHeader):
        return _of_mgh(image)
    if not isinstance(image.header, nibabel.Nifti1Header):
        _refuse_zero_pixdim(image)
        return np.asarray(image.affine), "Analyze, which does not distinguish left from right: read as LAS"
    affine, remark = _as_written(image)
    word, mm = unit_of(image.header)
    code = _unit_code(image.header)
    converted = ""
    if code not in _UNITS:
        converted = f"its unit code {code} is not in the NIfTI standard: read as mm"
    elif mm != 1:
        affine = np.diag([mm, mm, mm, 1.0]) @ affine
        converted = f"its unit is {word}, multiplied by {mm:g} to get mm"
    return affine, "; ".join(filter(None, [remark, converted]))


def unit_of(header: nibabel.Nifti1Header) -> tuple[str, float]:
    """The unit of length of a header, and its size in mm; an unknown unit is read as mm."""
    return _UNITS.get(_unit_code(header), _UNITS[0])


def _unit_code(header: nibabel.Nifti1Header) -> int:
    return int(header["xyzt_units"]) & 7


def _of_mgh(image: Any) -> tuple[np.ndarray, str]:
    """Without an orientation, FreeSurfer assumes coronal slices; nibabel differs in two axes."""
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        file.seek(_GOOD_RAS)
        if any(file.read(2)):
            return np.asarray(image.affine), ""
    affine = np.eye(4)
    affine[:3, :3] = [[-1, 0, 0], [0, 0, 1], [0, -1, 0]]
    affine[:3, 3] = -affine[:3, :3] @ np.divide(image.shape[:3], 2)
    return affine, "no voxel size and no orientation (goodRASFlag is 0): read as 1 mm, LIA"


def _as_written(image: Any) -> tuple[np.ndarray, str]:
    """The affine in the header's own unit, and a remark."""
    sform, code = image.header.get_sform(coded=True)
    qform = _qform(image)
    if code > 0 and (qform is None or _spans_a_volume(sform)):
        return sform, _disagreement(sform, qform)
    _refuse_zero_pixdim(image)
    if qform is not None:
        return qform, ""
    return image.header.get_base_affine(), "no orientation (neither sform nor qform): read as LAS"


def _qform(image: Any) -> np.ndarray | None:
    try:
        qform, code = image.header.get_qform(coded=True)
    except ValueError:  # a quaternion that is not a rotation
        return None
    return qform if code > 0 and _spans_a_volume(qform) else None


def _spans_a_volume(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all() and np.linalg.matrix_rank(affine[:3, :3]) == 3)


def _disagreement(sform: np.ndarray, qform: np.ndarray | None) -> str:
    """How the two forms differ, apart from the origin, which nothing depends on."""
    if qform is None:
        return ""
    ours, theirs = _axes(sform), _axes(qform)
    if ours == theirs and np.allclose(voxel_sizes(sform), voxel_sizes(qform), rtol=_SAME_SPACING):
        return ""
    return f"sform ({_described(sform)}) and qform ({_described(qform)}) disagree: the sform is used"


def _axes(affine: np.ndarray) -> str:
    return "".join(axis or "?" for axis in aff2axcodes(affine))


def _described(affine: np.ndarray) -> str:
    return f"{_axes(affine)}, {' x '.join(f'{size:.4g}' for size in voxel_sizes(affine))} mm"


def _refuse_zero_pixdim(image: Any) -> None:
    """Refuse a voxel size of zero, which nibabel reads as 1 mm."""
    header = image.file_map.get("header", image.file_map["image"])
    with header.get_prepare_fileobj("rb") as file:
        pixdim = type(image.header).from_fileobj(file, check=False)["pixdim"][1:4]
    if not (pixdim.all() and np.isfinite(pixdim).all()):
        raise ScanError(f"zero or non-finite spacing: {tuple(map(float, pixdim))}")
