"""A DICOM series as a volume.

GDCM (in SimpleITK) decodes the pixels, in any compression; the geometry comes only from the positions of the
slices. Stacks that are not on a regular grid are resampled onto one.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dae3d.errors import ScanError
from dae3d.scans.dicom.geometry import geometry
from dae3d.scans.dicom.header import Slice, read_slices, reading
from dae3d.scans.dicom.rescale import Rescale, Storage, check_hounsfield, check_stored, read_storage
from dae3d.scans.dicom.straighten import PADDING, straightened
from dae3d.scans.limits import refuse_too_large
from dae3d.scans.readers import Volume

_BYTES = 2  # of a voxel, in most files


def read_series(files: Sequence[Path]) -> Volume:
    """The volume of one stack of slices, whatever the order of its files.

    Axes run along a row, down a column and from slice to slice. Values are stored ones with a common slope
    and intercept, or float32 intensities if slices are rescaled differently or have padding above all other
    values; see `straightened` for stacks that are resampled.

    Raises:
        ScanError: if a file cannot be read or decoded, the slices are not a stack (see `geometry`) or do not
            fit into memory, or a CT is not in HU.
    """
    slices = [one for path in files for one in read_slices(path)]
    refuse_too_large((len(slices), slices[0].facts.rows, slices[0].facts.columns), _BYTES)
    grid = geometry(slices)
    ordered = [slices[i] for i in grid.order]
    with reading():
        stack, slope, intercept = _decoded(ordered)
    volume = Volume(stack, grid.affine, slope, intercept)
    return volume if grid.kind == "regular" else straightened(volume, ordered)


def _decoded(slices: Sequence[Slice]) -> tuple[np.ndarray, float, float]:
    """Values (X, Y, Z) of ordered slices, with their common slope and intercept."""
    planes, storages = _planes(slices)
    rescales = [storage.rescales[one.frame] for one, storage in zip(slices, storages, strict=True)]
    for k in {rescale: k for k, rescale in enumerate(rescales)}.values():
        check_stored(slices[k], planes[k], storages[k])
    planes = [
        plane[::-1] if one.facts.rows_reversed else plane for one, plane in zip(slices, planes, strict=True)
    ]
    is_ct = slices[0].facts.modality == "CT"
    if is_ct:
        least = min(float(p.min()) * r.slope + r.intercept for p, r in zip(planes, rescales, strict=True))
        check_hounsfield(set(rescales), least)
    common = {(rescale.slope, rescale.intercept) for rescale in rescales}
    above = _padding_above(planes, storages)
    if len(common) == 1 and above is None:
        return np.stack(planes).T, *common.pop()
    rescaled = [
        (plane * np.float64(r.slope) + r.intercept).astype(np.float32)
        for plane, r in zip(planes, rescales, strict=True)
    ]
    if above is not None:
        for plane, values in zip(planes, rescaled, strict=True):
            values[plane >= above] = PADDING if is_ct else 0.0
    return np.stack(rescaled).T, 1.0, 0.0


def _padding_above(planes: Sequence[np.ndarray], storages: Sequence[Storage]) -> int | None:
    """The lowest stored value of declared padding above all other values, or None.

    Padding below all others stays, and is found by its intensity (see `dae3d.scans.padding`). A value between
    others is not padding, whatever the header says: some declare 0, which is water.
    """
    declared = {storage.padding for storage in storages}
    padding = declared.pop()
    if declared or padding is None:
        return None
    least, greatest = padding
    return least if least <= max(int(plane.max()) for plane in planes) <= greatest else None


def _planes(slices: Sequence[Slice]) -> tuple[list[np.ndarray], list[Storage]]:
    """The stored values (rows, columns) of each slice, and how its file stores them."""
    files: dict[Path, tuple[np.ndarray, Storage]] = {}
    planes, storages = [], []
    for one in slices:
        path = one.path
        if path not in files:
            storage = read_storage(path)
            files[path] = _stored(path, storage), storage
        frames, storage = files[path]
        planes.append(frames[one.frame])
        storages.append(storage)
    return planes, storages


def _stored(path: Path, storage: Storage) -> np.ndarray:
    """The stored values (frames, rows, columns) of a file."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ScanError(f"unreadable: {path.name}: its pixels cannot be decoded") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise ScanError(f"RGB or vector: {image.GetNumberOfComponentsPerPixel()} values per voxel")
    values = sitk.GetArrayFromImage(image)
    first: Rescale = storage.rescales[0]
    if (first.slope, first.intercept) != (1.0, 0.0):
        # GDCM has rescaled all frames with the values of the first one,
        values = np.rint((values - first.intercept) / first.slope).astype(storage.dtype)
    if storage.inverted:
        # and has converted MONOCHROME1 to MONOCHROME2 by inverting the bits.
        values = (-1 if storage.dtype.kind == "i" else (1 << storage.bits) - 1) - values
    return values
