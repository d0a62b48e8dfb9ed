"""Compressed voxels, read to the end to check the checksum there, which other readers do not reach."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isal import isal_zlib
from isal.igzip_lib import IsalError
from nibabel.fileholders import FileHolder

from dae3d.errors import ScanError

GZIP_SUFFIXES = (".gz", ".mgz")

_MAGIC = b"\x1f\x8b"
_ISAL_ERROR: Any = IsalError  # a class, but its stub declares an instance
_BLOCK = 1 << 20  # bytes
# Deflated data with a header of gzip's (31), or of zlib's or gzip's (47).
_GZIP, _ZLIB_OR_GZIP = 31, 47
_CUT_SHORT = "Compressed file ended before the end-of-stream marker was reached"


class GzipContent(io.RawIOBase):
    """The content of a gzip file of one or more members.

    Bytes after the last member, such as zeros, are ignored, as `gzip` does. Reading past the end of a member
    checks it.

    Raises:
        EOFError: if it is cut short.
        ScanError: if it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._start()

    def _start(self) -> None:
        self._file.seek(0)
        self._place = 0
        self._waiting = b""
        self._member: Any = isal_zlib.decompressobj(_GZIP)

    def readable(self) -> bool:
        """Always true."""
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or less of it at the end of the content."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view):
            part = self._next(min(len(view) - filled, _BLOCK))
            if not part:
                break
            view[filled : filled + len(part)] = part
            filled += len(part)
        self._place += filled
        return filled

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place counted from the start, by reading everything before it."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("seek that is not from the start")
        if place < self._place:
            self._start()
        while self._place < place and self.read(min(place - self._place, _BLOCK)):
            pass
        return self._place

    def tell(self) -> int:
        """The place, counted from the start."""
        return self._place

    def read_on(self) -> None:
        """Read the rest, so that all of it is checked."""
        buffer = bytearray(_BLOCK)
        while self.readinto(buffer):
            pass

    def _next(self, most: int) -> bytes:
        """The next bytes, at most `most`; empty at the end."""
        while True:
            if self._member.eof and not self._next_member():
                return b""
            compressed = self._waiting or self._file.read(_BLOCK)
            part = _decompressed(self._member, compressed, most)
            self._waiting = self._member.unconsumed_tail
            if part:
                return part
            if not compressed and not self._member.eof:
                raise EOFError(_CUT_SHORT)

    def _next_member(self) -> bool:
        """Go on to the next member, if there is one."""
        rest = self._member.unused_data
        rest += self._file.read(max(0, len(_MAGIC) - len(rest)))
        if not rest.startswith(_MAGIC):
            return False
        self._member, self._waiting = isal_zlib.decompressobj(_GZIP), rest
        return True


@contextmanager
def voxel_file(holder: FileHolder) -> Iterator[Any]:
    """Open a file of an image that nibabel loaded, decompressed; on exit the rest is read too.

    Raises:
        EOFError, ScanError: if it is cut short or damaged.
    """
    path = Path(str(holder.filename))
    if path.suffix.lower() in GZIP_SUFFIXES:
        with GzipContent(path) as content:
            yield content
            content.read_on()
        return
    with holder.get_prepare_fileobj("rb") as file:
        yield file
        if path.suffix.lower() in file.compress_ext_map:
            while file.read(_BLOCK):
                pass


def check_deflated(path: Path, start: int, packed: int, size: int) -> None:
    """Check the zlib or gzip stream that a file has from byte `start` on.

    Args:
        path: the file.
        start: where the stream begins.
        packed: its length in bytes; 0 for the rest of the file.
        size: least number of bytes after decompression.

    Raises:
        ScanError: if it is damaged or cut short.
    """
    stream: Any = isal_zlib.decompressobj(_ZLIB_OR_GZIP)
    total, left = 0, packed or path.stat().st_size
    with path.open("rb") as file:
        file.seek(start)
        waiting = b""
        while not stream.eof:
            compressed = waiting
            if not compressed:
                compressed = file.read(min(left, _BLOCK))
                left -= len(compressed)
            part = _decompressed(stream, compressed, _BLOCK)
            waiting = stream.unconsumed_tail
            total += len(part)
            if not (compressed or part or stream.eof):
                raise ScanError("unreadable: its compressed voxels are cut short")
    if total < size:
        raise ScanError(f"unreadable: truncated: {total} of {size} bytes of voxels")


def _decompressed(stream: Any, compressed: bytes, most: int) -> bytes:
    try:
        return stream.decompress(compressed, most)
    except (_ISAL_ERROR, ValueError) as error:
        raise ScanError(f"unreadable: its compressed content is damaged ({error})") from None
