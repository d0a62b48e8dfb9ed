"""Whether a scan that is labelled as CT can be in Hounsfield units at all."""

from dae3d.errors import ScanError
from dae3d.store.padding import HOUNSFIELD
from dae3d.store.statistics import Statistics

# HU that a twentieth of a scan cannot reach: soft tissue stored with an offset of 1024 does.
_DENSE = 900.0
_GREY = 255.0  # the brightest grey value of a picture


def refuse_no_hounsfield(statistics: Statistics, modality: str) -> None:
    """Raise ScanError where a scan labelled as CT has neither air, fat nor noise below 0 HU, and looks wrong.

    It does where soft tissue is as dense as bone, or with the grey values of a picture, 0 to 1 or 0 to 255.
    """
    if modality not in HOUNSFIELD or statistics.percentile(0.5) < 0:
        return
    low, high = statistics.percentile(0.5), statistics.percentile(99.5)
    found = f"not in HU: its voxels lie between {low:g} and {high:g}"
    remedy = f"; give it a label of its own, such as {modality}-raw"
    if statistics.percentile(95.0) > _DENSE:
        raise ScanError(
            f"{found}, none near air (-1000); is the rescale intercept, often -1024, lost? Write it into the "
            f"file{remedy}"
        )
    if high <= _GREY:
        raise ScanError(f"{found}, grey values of a picture; find the original{remedy}")
