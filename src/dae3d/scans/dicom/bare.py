"""DICOM files without preamble, from before PS3.10: data elements from the first byte on."""

import struct

from pydicom.valuerep import VR

# The groups that such files begin with: file meta information, and identification of the image.
_GROUPS = (0x0002, 0x0008)
_ELEMENTS = 3  # in a row; other formats do not begin with as many by chance
# Value representations with two reserved bytes and a 4-byte length, and all of them.
_LONG = (b"OB", b"OF", b"OW", b"SQ", b"UN", b"UT")
_VRS = tuple(member.value.encode() for member in VR if len(member.value) == 2)
_LONGEST = 256  # bytes of the first elements, which are names, dates and codes


def begins_with_elements(head: bytes) -> bool:
    """Whether the first bytes of a file are data elements of the standard's first groups.

    They may be little or big endian, with implicit or explicit VR. Tags must ascend, and each length must
    lead to the next element.
    """
    return any(_elements(head, order, explicit) for order in "<>" for explicit in (False, True))


def _elements(head: bytes, order: str, explicit: bool) -> bool:
    place, last = 0, (0, -1)
    for number in range(_ELEMENTS):
        if len(head) < place + 12:
            return False
        tag = struct.unpack_from(f"{order}HH", head, place)
        if tag <= last or (tag[0] not in _GROUPS if number == 0 else tag[0] > 0x0010):
            return False
        vr = head[place + 4 : place + 6]
        if explicit and vr not in _VRS:
            return False
        if not explicit:
            (length,), start = struct.unpack_from(f"{order}I", head, place + 4), 8
        elif vr in _LONG:
            (length,), start = struct.unpack_from(f"{order}I", head, place + 8), 12
        else:
            (length,), start = struct.unpack_from(f"{order}H", head, place + 6), 8
        if length > _LONGEST or length % 2:
            return False
        place, last = place + start + length, tag
    return True
