"""Where a NIfTI or Analyze file says its voxels lie, when it says it twice, wrongly or not at all."""

from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.analyze import AnalyzeHeader
from nibabel.orientations import aff2axcodes

from dae3d.errors import ScanError

_SAME_SPACING = 0.01  # relative
# Of the units that a NIfTI header may name, those that are not mm: the code, the word, and mm in one of them.
_UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}


def affine_of(image: Any) -> tuple[np.ndarray, str]:
    """The affine (4, 4) from voxels to RAS+ mm of an image that nibabel loaded, and a remark on it or "".

    The sform counts, else the qform, else the voxel size alone, with axes as Analyze has them (LAS). A form
    marked as unknown (code 0) is taken for absent, and so is an sform that spans no volume where there is a
    qform. Metres and micrometres become mm; a unit that is not said is taken for mm.

    Raises:
        ScanError: where there is no sform, and the voxel size is zero.
    """
    if not isinstance(image.header, AnalyzeHeader):
        return np.asarray(image.affine), ""
    if not isinstance(image.header, nibabel.Nifti1Header):
        _refuse_zero_pixdim(image)
        return np.asarray(image.affine), "Analyze, which does not tell left from right: read as LAS"
    affine, remark = _as_written(image)
    word, mm = unit_of(image.header)
    if mm == 1:
        return affine, remark
    in_mm = np.diag([mm, mm, mm, 1.0]) @ affine
    converted = f"its unit is {word}, taken times {mm:g} for mm"
    return in_mm, "; ".join(filter(None, [remark, converted]))


def unit_of(header: nibabel.Nifti1Header) -> tuple[str, float]:
    """The unit of length that a header names, and how many mm it has; one that is unknown is taken for mm."""
    return _UNITS.get(int(header["xyzt_units"]) & 7, ("millimetres", 1.0))


def _as_written(image: Any) -> tuple[np.ndarray, str]:
    """The affine and the remark, in the header's own unit."""
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
    except ValueError:  # a quaternion that is no rotation
        return None
    return qform if code > 0 and _spans_a_volume(qform) else None


def _spans_a_volume(affine: np.ndarray) -> bool:
    return bool(np.isfinite(affine).all() and np.linalg.matrix_rank(affine[:3, :3]) == 3)


def _disagreement(sform: np.ndarray, qform: np.ndarray | None) -> str:
    """What differs of a scan by its two forms, apart from the place, which nothing depends on."""
    if qform is None:
        return ""
    ours, theirs = _axes(sform), _axes(qform)
    if ours == theirs and np.allclose(voxel_sizes(sform), voxel_sizes(qform), rtol=_SAME_SPACING):
        return ""
    return f"sform ({_described(sform)}) and qform ({_described(qform)}) disagree: the sform counts"


def _axes(affine: np.ndarray) -> str:
    return "".join(axis or "?" for axis in aff2axcodes(affine))


def _described(affine: np.ndarray) -> str:
    return f"{_axes(affine)}, {' x '.join(f'{size:.4g}' for size in voxel_sizes(affine))} mm"


def _refuse_zero_pixdim(image: Any) -> None:
    """Refuse a voxel size of zero, which nibabel takes for 1 mm."""
    header = image.file_map.get("header", image.file_map["image"])
    with header.get_prepare_fileobj("rb") as file:
        pixdim = type(image.header).from_fileobj(file, check=False)["pixdim"][1:4]
    if not (pixdim.all() and np.isfinite(pixdim).all()):
        raise ScanError(f"zero or non-finite spacing: {tuple(map(float, pixdim))}")
