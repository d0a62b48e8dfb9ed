"""GE's research sequence epi_pepolar, which stores the rows of some volumes in reverse, unlike its header.

Its volumes alternate between forward and backward phase encoding; the backward ones are upside down, whatever
Image Orientation says. Tags and modes are those that dcm2niix uses (its issue 532).
"""

from pydicom import Dataset

from dae3d.scans.dicom.stack_keys import optional_texts

_SEQUENCE, _MODE = (0x0019, 0x109C), (0x0019, 0x10B3)
_VOLUME = "TemporalPositionIdentifier"
POLARITY_TAGS = (_SEQUENCE, _MODE, _VOLUME)

TURNED_OVER = "rows were reversed, because GE's epi_pepolar stores them upside down"
UNTOLD = "no TemporalPositionIdentifier to tell which volumes GE's epi_pepolar stores upside down"


def rows_are_reversed(header: Dataset) -> bool | None:
    """Whether a file's rows are stored in reverse; None if it cannot be told."""
    if "epi_pepolar" not in "".join(optional_texts(header, _SEQUENCE)):
        return False
    mode, volume = _whole(header, _MODE), _whole(header, _VOLUME)
    match mode:
        case 1:  # all backward
            return True
        case 2 | 3:  # backward first, forward first; volumes are counted from 1
            return None if volume is None else volume % 2 == (1 if mode == 2 else 0)
    return False


def _whole(header: Dataset, tag: str | tuple[int, int]) -> int | None:
    """A whole number, None if it is missing or malformed."""
    try:
        return round(float(optional_texts(header, tag)[0]))
    except (IndexError, ValueError):
        return None
