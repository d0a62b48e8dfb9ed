"""The voxel data in NRRD and MetaImage files by their headers, which are text.

SimpleITK reads these files. This checks before it is called whether a header could crash it, and how many
bytes the voxels need.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from dae3d.errors import ScanError

# Bytes. On a longer line, Teem writes its error message past the end of its buffer.
_MOST_LINE = 4096
_MOST_HEADER = 1 << 24
# MetaIO has space for this many axes, and writes past it.
_MOST_AXES = 10

# Lines of a NRRD header that may be long: comments, pairs of key and value, and the free text `content`.
_FREE = re.compile(rb"#|[^:]*:=|content:", re.IGNORECASE)
_NRRD_TYPE = re.compile(
    r"(?:signed |unsigned |u)?(?:(char|short|longlong|long long|int|float|double)(?: int)?"
    r"|int(8|16|32|64)(?:_t)?)"
)
_META_TYPE = re.compile(r"MET_U?(CHAR|SHORT|INT|LONG|LONG_LONG|FLOAT|DOUBLE)(?:_ARRAY)?")
_BYTES = {"char": 1, "short": 2, "int": 4, "long": 4, "longlong": 8, "float": 4, "double": 8}

Compression = Literal["", "deflate", "other"]


@dataclass(frozen=True)
class TextHeader:
    """The voxel data of a header.

    `voxels` is their size in bytes, 0 if it is not known; `compression` is "" without compression. Voxels in
    the same file begin at byte `end`.
    """

    voxels: int
    compression: Compression
    end: int


def read_text_header(path: Path) -> TextHeader | None:
    """The voxel data by the NRRD or MetaImage header of a file; None for other files.

    Raises:
        ScanError: if it could crash a reader.
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start == b"NRRD":
            return _nrrd(file)
        return _meta(file) if start in (b"Obje", b"NDim", b"Comm") else None


def _nrrd(file: BinaryIO) -> TextHeader:
    fields = {}
    while (line := file.readline(_MOST_HEADER)).strip(b"\r\n"):
        if _FREE.match(line):
            continue
        _refuse_long(line)
        name, _, value = line.partition(b":")
        fields[_text(name).lower()] = _text(value)
        if file.tell() > _MOST_HEADER:
            raise ScanError("unreadable: its header does not end")
    encoding = fields.get("encoding", "").lower()
    kind = _NRRD_TYPE.fullmatch(fields.get("type", "").lower())
    each = 0
    if kind:
        each = int(kind[2]) // 8 if kind[2] else _BYTES[kind[1].replace(" ", "")]
    compression: Compression = "deflate" if encoding in ("gzip", "gz") else "other"
    return TextHeader(
        voxels=each * _product(fields.get("sizes", "")),
        compression="" if encoding == "raw" else compression,
        end=file.tell(),
    )


def _meta(file: BinaryIO) -> TextHeader:
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields and (line := file.readline(_MOST_LINE)):
        _refuse_long(line)
        name, _, value = line.partition(b"=")
        fields[_text(name)] = _text(value)
        if name.strip() == b"NDims" and not 1 <= _whole(value) <= _MOST_AXES:
            raise ScanError(f"unreadable: NDims must be 1 to {_MOST_AXES}, not {_text(value)[:20]}")
    kind = _META_TYPE.fullmatch(fields.get("ElementType", ""))
    each = _BYTES[kind[1].lower().replace("_", "")] if kind else 0
    channels = _product(fields.get("ElementNumberOfChannels", "1"))
    binary = fields.get("BinaryData", "True").lower().startswith(("t", "1"))
    deflated = fields.get("CompressedData", "False").lower().startswith(("t", "1"))
    compression: Compression = "deflate" if deflated else "" if binary else "other"
    return TextHeader(
        voxels=each * channels * _product(fields.get("DimSize", "")),
        compression=compression,
        end=file.tell(),
    )


def _refuse_long(line: bytes) -> None:
    if len(line) >= _MOST_LINE:
        raise ScanError(f"unreadable: a line of its header is longer than {_MOST_LINE} bytes")


def _product(sizes: str) -> int:
    """The product of whole numbers; 0 if they are not."""
    try:
        numbers = [int(word) for word in sizes.split()]
    except ValueError:
        return 0
    if min(numbers, default=1) < 0:
        raise ScanError(f"unreadable: a negative size: {sizes[:80]}")
    return math.prod(numbers) if numbers else 0


def _whole(value: bytes) -> int:
    try:
        return int(value)
    except ValueError:
        return 0


def _text(value: bytes) -> str:
    return value.decode(errors="replace").strip()
