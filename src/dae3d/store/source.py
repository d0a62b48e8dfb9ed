"""The source files of a scan: stamps and digests to notice changes."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dae3d.scans.limits import refuse_mode
from dae3d.scans.readers import files_read


class Stamp(BaseModel):
    """Size and modification time, to notice a changed file without reading it.

    For several files, the sum of sizes, the latest modification, and a digest of `each` (missing in early
    versions), because a file may be replaced by one that is older than the rest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    mtime_ns: int
    each: str | None = None

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Stamp":
        """The stamp of several files, in any order.

        Raises:
            OSError: if one does not exist.
            ScanError: if one is a pipe, a socket or a device.
        """
        found = [path.stat() for path in paths]
        for stat in found:
            refuse_mode(stat.st_mode)
        stats = sorted((stat.st_size, stat.st_mtime_ns) for stat in found)
        each = hashlib.blake2b(repr(stats).encode(), digest_size=8).hexdigest() if len(stats) > 1 else None
        return cls(bytes=sum(size for size, _ in stats), mtime_ns=max(time for _, time in stats), each=each)

    def __eq__(self, other: object) -> bool:
        """Whether both stamps agree, in `each` only if both have it."""
        if not isinstance(other, Stamp):
            return NotImplemented
        same = (self.bytes, self.mtime_ns) == (other.bytes, other.mtime_ns)
        return same and (self.each == other.each or None in (self.each, other.each))

    def __hash__(self) -> int:
        return hash((self.bytes, self.mtime_ns))


def digest(paths: Iterable[Path]) -> str:
    """Sha256 of the concatenated content of several files, in hexadecimal."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def contents_of(images: Iterable[Path]) -> list[str]:
    """Sha256 of each image of a case, by which weights record what they were trained on.

    Raises:
        OSError: if one cannot be read.
    """
    return [digest(files_read(image)) for image in images]
