"""Where a NIfTI file says its voxels begin and how they are scaled, when it says it wrongly."""

import math
from typing import Any

import nibabel
import numpy as np

from dae3d.errors import ScanError

_FLAG = 4  # bytes between header and extensions, the first of which says whether there are any
_EXTENSION = 16  # what the size of an extension is a multiple of
_LAST_CODE = 100  # kinds of extensions are even numbers, and those that are registered less


def check_voxels(image: Any) -> str:
    """Check what a NIfTI header says of its voxels, and give a remark on it or "".

    Raises:
        ScanError: where `vox_offset` of a single file lies within its header or the extensions of that, whose
            bytes nibabel would take for voxels. What was meant cannot be told: readers that put it right
            differ by 4 bytes.
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
    """How many bytes of extensions there are from `start` on; some files have the flag for them, and none."""
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
    """A remark where an intercept is given without a slope: then, by the standard, neither counts."""
    header = type(image.header)
    with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as file:
        # The image's own header has lost them.
        stored = header(file.read(header.template_dtype.itemsize), image.header.endianness, check=False)
    slope, intercept = float(stored["scl_slope"]), float(stored["scl_inter"])
    if (slope and math.isfinite(slope)) or not (intercept and math.isfinite(intercept)):
        return ""
    return f"scl_inter ({intercept:g}) is ignored because scl_slope is {slope:g}"
