"""Series of DICOM files to find."""

from dae3d.scans.dicom.header import STACK_KEYS, Slice, SliceFacts
from dicom_files import AXIAL

NO_KEYS = ("",) * len(STACK_KEYS)


def made(position, orientation=AXIAL, spacing=(0.8, 0.5), thickness=2.5, modality="MR", shape=(12, 10)):
    numbers = tuple(float(x) for x in orientation)
    facts = SliceFacts("", modality, "", "", "", "", *shape, 1, "", (), numbers, spacing, thickness)
    return Slice(None, "", 0, 0, 1, None if position is None else tuple(map(float, position)), facts, NO_KEYS)
