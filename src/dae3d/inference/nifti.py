"""Write NIfTI files on the grid of another scan, atomically."""

from pathlib import Path

import nibabel
import numpy as np

from dae3d.files import whole_file
from dae3d.scans.nifti_affine import unit_of
from dae3d.scans.readers import load_nifti, suffix
from dae3d.scans.task_labels import IGNORED
from dae3d.store.recipe import CaseRecipe

_SPATIAL_FIELDS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)
_SCANNER = 1


def write_nifti(path: Path, array: np.ndarray, scan: Path, affine: np.ndarray) -> None:
    """Write `array` on the grid of `scan`.

    For NIfTI scans in mm, qform, sform, their codes and the units are copied. For other scans, `affine` is
    written as both qform and sform, in scanner coordinates.

    Args:
        path: `.nii.gz` file.
        array: (X, Y, Z) or (X, Y, Z, K), of the shape of the scan; written unscaled in its own data type.
        affine: (4, 4) from voxels to RAS+ mm, as returned by `read_volume`.

    Raises:
        Dae3dError: if the file cannot be written.
    """
    kind, header = _spatial_header(scan, affine)
    header.set_data_dtype(array.dtype)
    with whole_file(path) as temporary:
        kind(array, affine, header).to_filename(temporary)


def _spatial_header(scan: Path, affine: np.ndarray) -> tuple[type[nibabel.Nifti1Image], nibabel.Nifti1Header]:
    """A header with the geometry of the scan and no patient data."""
    source = load_nifti(scan) if suffix(scan) else None
    if not isinstance(source, nibabel.Nifti1Image) or unit_of(source.header)[1] != 1:
        header = nibabel.Nifti1Header()
        header.set_qform(affine, _SCANNER)
        header.set_sform(affine, _SCANNER)
        header.set_xyzt_units("mm")
        return nibabel.Nifti1Image, header
    header = type(source.header)()
    for field in _SPATIAL_FIELDS:
        header[field] = source.header[field]
    header["pixdim"][:4] = source.header["pixdim"][:4]
    return type(source), header


def label_values(recipe: CaseRecipe) -> np.ndarray:
    """The value in label files of each class index, and of `IGNORED`, in the smallest type of viewers."""
    values = [*recipe.label_values]
    if recipe.ignore is not None:
        values += [0] * (IGNORED - len(values)) + [recipe.ignore]
    kind = next(k for k in (np.uint8, np.int16, np.int32) if max(values) <= np.iinfo(k).max)
    return np.array(values, kind)
