"""Whether a scan that is labelled as CT can be in Hounsfield units at all."""

from dae3d.errors import ScanError
from dae3d.store.padding import HOUNSFIELD
from dae3d.store.statistics import Statistics

# Mean of the foreground where nothing is below 0: soft tissue stored with an offset of 1024 lies at 1000 to
# 1200, a mask of bone at 250 to 700 HU.
_DENSE = 800.0
_SPAN = 10.0  # less than the noise of any scanner
_WHITE = (250.0, 255.0)  # the brightest grey value of a picture


def refuse_no_hounsfield(statistics: Statistics, modality: str) -> None:
    """Raise ScanError where a scan labelled as CT has lost its rescale intercept, or was never in HU.

    The intercept is lost where nothing is below 0 and the foreground is denser than bone; a scan that spans
    less than 10 was normalised; one from 0 to 250 or 255 has the grey values of a picture. What was cut out
    of a CT, such as a brain of 0 to 80 HU, is none of these.
    """
    if modality not in HOUNSFIELD:
        return
    low, high = statistics.minimum, statistics.maximum
    if statistics.percentile(0.5) >= 0 and statistics.foreground_mean > _DENSE:
        why = "is the rescale intercept, often -1024, lost? Write it into the file"
    elif high - low < _SPAN:
        why = "it was normalised, or is a label map; find the original, or exclude it"
    elif low == 0 and _WHITE[0] <= high <= _WHITE[1]:
        why = "grey values of a picture, or a label map; find the original, or exclude it"
    else:
        return
    usual = f"{statistics.percentile(0.5):g} and {statistics.percentile(99.5):g}"
    remedy = "or give it a label of its own, such as ct-raw"
    raise ScanError(f"not in HU: nearly all voxels lie between {usual}; {why}, {remedy}")
