"""The files a scan comes from: have they changed, and what is their content."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dae3d.scans.readers import files_read


class Stamp(BaseModel):
    """Size and time of last change, by which a changed file is noticed without reading it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Stamp":
        """The stamp of some files together: the sum of their sizes, the latest of their changes."""
        stats = [path.stat() for path in paths]
        return cls(bytes=sum(s.st_size for s in stats), mtime_ns=max(s.st_mtime_ns for s in stats))


def digest(paths: Iterable[Path]) -> str:
    """Sha256 over the content of some files, one after the other, in hexadecimal."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def contents_of(images: Iterable[Path]) -> list[str]:
    """Sha256 of the content of each image of a case, by which weights know what they were trained on.

    Raises:
        OSError: where one cannot be read.
    """
    return [digest(files_read(image)) for image in images]
