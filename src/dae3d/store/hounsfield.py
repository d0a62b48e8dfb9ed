"""Whether a scan that is labelled as CT can be in Hounsfield units at all, and whether another one is."""

from dae3d.errors import ScanError
from dae3d.scans.kinds import machine
from dae3d.store.padding import HOUNSFIELD
from dae3d.store.statistics import Statistics

# Mean of the foreground where nothing is below 0: soft tissue stored with an offset of 1024 lies at 1000 to
# 1200, a mask of bone at 250 to 700 HU.
_DENSE = 800.0
_SPAN = 10.0  # less than the noise of any scanner
_WHITE = (250.0, 255.0)  # the brightest grey value of a picture
# Where the air of a CT lies, or what is written around its field of view.
_AIR = (-1100.0, -900.0)
_FILLINGS = (-3100.0, -900.0)
# What is brightest of a body in HU, but for metal.
_BRIGHT = (100.0, 4000.0)


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


def strange_values(statistics: Statistics, modality: str) -> str | None:
    """What of a scan's values speaks against its label, where that is of CT or MR; None where nothing does.

    A hint: an MR scan may have been shifted to have its background at -1000.
    """
    low, high = statistics.percentile(0.5), statistics.percentile(99.5)
    if modality in HOUNSFIELD:
        if statistics.minimum < 0:
            return None
        return f"no voxel is below 0, as air is in HU: is it {modality}, or was it cut out?"
    padding = statistics.padding
    air = _AIR[0] <= low <= _AIR[1] or (padding is not None and _FILLINGS[0] <= padding <= _FILLINGS[1])
    if machine(modality) == "mr" and air and _BRIGHT[0] <= high <= _BRIGHT[1]:
        return f"its values, {statistics.minimum:g} to {statistics.maximum:g}, are like the HU of a CT"
    return None
