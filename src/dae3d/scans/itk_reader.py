"""NRRD and MetaImage files as SimpleITK reads them, with what it does not tell added from their text."""

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dae3d.errors import ScanError
from dae3d.scans.itk_header import ItkHeader
from dae3d.scans.meta_header import MetaHeader
from dae3d.scans.nrrd_header import NrrdHeader

# Its warnings name no file. What matters of them is in `readers.Header.remark`, or a reason for a ScanError.
sitk.ProcessObject.SetGlobalWarningDisplay(False)

# ITK's world is LPS (+x to the patient's left), ours and NIfTI's is RAS.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Source file, line, object address and call chain, which tell a user nothing; and the last error of the
# system, which MetaIO gives as a reason.
_PREAMBLE = re.compile(
    r"^Exception thrown in SimpleITK .*(?:ITK |s?itk::)ERROR: (?:\w+\(0x[0-9a-f]+\): )?"
    r"(?:.*\[nrrd\] (?:\w+: )?)?"
    r"| Reason: .*$"
)


def itk_text(path: Path) -> ItkHeader | None:
    """The text of a NRRD or MetaImage header; None for other files.

    Raises:
        OSError: if the file cannot be opened.
    """
    with path.open("rb") as file:
        if file.read(4) == b"NRRD":
            return NrrdHeader.read(path)
    header = MetaHeader.read(path)
    return header if header.fields.keys() & {"ObjectType", "NDims"} else None


def open_itk(path: Path, whole: bool = False) -> tuple[sitk.ImageFileReader, ItkHeader]:
    """A reader that has read the header, and the header's text, checked; the voxels too if `whole`.

    Raises:
        RuntimeError: if it is neither NRRD nor MetaImage, or ITK cannot read it.
        ScanError: if a check fails (see `ItkHeader.check`), or a voxel has several values.
    """
    header = itk_text(path)
    if header is None:
        raise RuntimeError("neither NRRD nor MetaImage")
    header.check(whole)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(header.image_io)
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetNumberOfComponents() != 1:
        raise ScanError(f"RGB or vector: {reader.GetNumberOfComponents()} values per voxel")
    return reader, header


def itk_affine(reader: sitk.ImageFileReader, header: ItkHeader) -> tuple[np.ndarray, str]:
    """The affine (4, 4) from voxels to RAS+ mm, and a remark on it or ""."""
    dimensions = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(reader.GetSpacing())[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    factors, remark = header.placing(affine)
    return _LPS_TO_RAS @ np.diag([*factors, 1.0]) @ affine, remark


def without_preamble(message: str) -> str:
    """An error message of ITK's on one line, without the parts that tell a user nothing."""
    return _PREAMBLE.sub("", message)
