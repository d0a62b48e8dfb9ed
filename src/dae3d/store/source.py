"""The files a scan comes from: have they changed, and what is their content."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dae3d.scans.limits import refuse_mode


class Stamp(BaseModel):
    """Size and time of last change, by which a changed file is noticed without reading it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Stamp":
        """The stamp of some files together: the sum of their sizes, the latest of their changes.

        Raises:
            OSError: where one cannot be found.
            ScanError: where one is a pipe, a socket or a device.
        """
        stats = [path.stat() for path in paths]
        for stat in stats:
            refuse_mode(stat.st_mode)
        return cls(bytes=sum(s.st_size for s in stats), mtime_ns=max(s.st_mtime_ns for s in stats))


def digest(paths: Iterable[Path]) -> str:
    """Sha256 over the content of some files, one after the other, in hexadecimal."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()
