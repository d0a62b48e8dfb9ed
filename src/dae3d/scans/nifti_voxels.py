"""Checks of where a NIfTI file's voxels begin and how they are scaled."""

import math
from typing import Any

import nibabel
import numpy as np

from dae3d.errors import ScanError

_FLAG = 4  # bytes between header and extensions; the first is a flag that there are extensions
_EXTENSION = 16  # the size of an extension is a multiple of this
_LAST_CODE = 100  # codes of extensions are even, and registered ones are below this


def check_voxels(image: Any) -> str:
    """Check the voxel offset and scaling of a NIfTI header; returns a remark or "".

    Raises:
        ScanError: if `vox_offset` of a single file lies within its header or extensions, whose bytes nibabel
            would read as voxels. It cannot be corrected: readers that try differ by 4 bytes.
    """
    if not isinstance(image, nibabel.Nifti1Pair):
        return ""
    if "header" not in image.file_map:
        proxy: Any = image.dataobj
        offset, least = proxy.offset, image.header.single_vox_offset
        if offset >= least:
            least += _extensions(image, least)
        if offset < least:
            raise ScanError(f"vox_offset {offset}: voxels of a single file begin at {least} or later")
    return _on_scaling(image)


def _extensions(image: Any, start: int) -> int:
    """The size of the extensions from `start` on; some files have their flag, but none of them."""
    total = 0
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        file.seek(start - _FLAG)
        flag = file.read(_FLAG)
        while flag[:1] not in (b"", b"\0") and len(head := file.read(8)) == 8:
            size, code = np.frombuffer(head, f"{image.header.endianness}i4").tolist()
            if size < _EXTENSION or size % _EXTENSION or code % 2 or not 0 <= code < _LAST_CODE:
                break
            total += size
            file.seek(start + total)
    return total


def _on_scaling(image: Any) -> str:
    """A remark on an intercept without a slope; by the standard, neither applies then."""
    header = type(image.header)
    with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as file:
        # nibabel's header of the image no longer has them.
        stored = header(file.read(header.template_dtype.itemsize), image.header.endianness, check=False)
    slope, intercept = float(stored["scl_slope"]), float(stored["scl_inter"])
    if (slope and math.isfinite(slope)) or not (intercept and math.isfinite(intercept)):
        return ""
    return f"scl_inter ({intercept:g}) is ignored because scl_slope is {slope:g}"
