"""One prepared scan: its metadata, and the Blosc2 file with its voxels and metadata."""

import hashlib
import math
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import blosc2
import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict

from dae3d.errors import Dae3dError
from dae3d.files import whole_file
from dae3d.scans.manifest import Scan, Split
from dae3d.store.source import Stamp
from dae3d.store.statistics import Statistics

# Folders of a store: stored files, and incomplete files, which may be deleted.
SCANS, PARTIAL = "scans", ".dae3d-partial"
# The table of scans that could not be prepared.
REJECTED = "rejected.csv"
CHUNK, BLOCK = 64, 32
# Measured on CT and MR: LZ4HC decodes two to four times as fast as zstd, with files a fifth larger. Level 9
# makes them 1 % smaller, but takes up to four times as long to write.
_LEVEL = 5
# Entries of a stored file: the scan's metadata, and the checksum of voxels and metadata.
METADATA, CHECKSUM = "dae3d", "dae3d-crc32"


def _plain_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"must be the name of a file or folder in the store, not {name!r}")
    return name


# File names in a store's metadata must not lead out of it.
PlainName = Annotated[str, AfterValidator(_plain_name)]
AffineRow = tuple[float, float, float, float]


class Preparation(BaseModel):
    """How a scan was prepared; if it changes, the scan is prepared again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[2] = 2
    spacing: tuple[float, float, float] | None
    crop_foreground: bool


class StoredScan(BaseModel):
    """A scan in the store: intensity = voxel * `slope` + `intercept`.

    `source` is the manifest's entry, with the digest of the source's content and without the file names of a
    DICOM series; `source_stamp` is the state of the source. `shape`, `spacing` (mm) and `affine` (voxel to
    RAS+ mm) are those of the stored array, in RAS orientation. `file` is in the store's folder `scans`.
    `voxel_digest` does not depend on the header.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: PlainName
    stored_stamp: Stamp | None = None  # known once the file has been written
    source: Scan
    source_stamp: Stamp
    preparation: Preparation
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: tuple[AffineRow, AffineRow, AffineRow, AffineRow]
    dtype: str
    slope: float
    intercept: float
    statistics: Statistics
    voxel_digest: str | None = None

    @property
    def path(self) -> Path:
        """The source file."""
        return self.source.path

    @property
    def modality(self) -> str:
        """The label by which intensities are scaled."""
        return self.source.modality

    @property
    def split(self) -> Split:
        """Whether the scan is for training or validation."""
        return self.source.split

    @property
    def subject(self) -> str:
        """The subject of the scan."""
        return self.source.subject

    @property
    def dataset(self) -> str:
        """The data set of the scan."""
        return self.source.dataset

    @property
    def voxel_bytes(self) -> int:
        """Size of the array, uncompressed."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def file_name(source: Scan) -> str:
    """A readable name for a stored file, unique for the absolute path and volume number of the source.

    It depends on nothing else, so that a new subject or modality label does not change it.
    """
    path = os.path.abspath(source.path)
    name = source.model_copy(update={"path": Path(path)}).name
    words = f"{Path(path).parent.name} {source.path.name.split('.')[0]}"
    if source.volume is not None:
        words += f" {source.volume}"
    readable = re.sub(r"[^a-z0-9]+", "-", words.lower())
    return f"{readable.strip('-')[:80]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.b2nd"


def write_array(path: Path, array: np.ndarray) -> blosc2.NDArray:
    """Write voxels as a Blosc2 file with chunks for fast reading of crops."""
    chunks = tuple(min(CHUNK, n) for n in array.shape)
    return blosc2.asarray(
        array,
        urlpath=str(path),
        mode="w",
        chunks=chunks,
        blocks=tuple(min(BLOCK, n) for n in chunks),
        cparams={"codec": blosc2.Codec.LZ4HC, "clevel": _LEVEL, "nthreads": 1, "typesize": array.itemsize},
    )


def write_scan(store: Path, array: np.ndarray, scan: StoredScan, partial: str = PARTIAL) -> StoredScan:
    """Write one scan into a store atomically; returns its metadata with the stamp of the stored file.

    `partial` is the store's folder for files that are being written.

    Raises:
        Dae3dError: if it cannot be written (a full disk).
    """
    final = store / SCANS / scan.file
    metadata = scan.model_dump_json(exclude={"stored_stamp"})
    try:
        with whole_file(final, store / partial) as temporary:
            stored = write_array(temporary, array)
            stored.schunk.vlmeta[METADATA] = metadata
            stored.schunk.vlmeta[CHECKSUM] = checksum(array, metadata)
            del stored  # closes the file
    except RuntimeError as error:  # from Blosc2
        raise Dae3dError(f"{final}: cannot be written ({error}); is the disk full?") from error
    return scan.model_copy(update={"stored_stamp": Stamp.of([final])})


def checksum(planes: Iterable[np.ndarray], metadata: str) -> int:
    """Crc32 of the planes of an array, and of metadata.

    Blosc2 itself decodes most flipped bits to wrong voxels without an error.
    """
    total = 0
    for plane in planes:
        total = zlib.crc32(np.ascontiguousarray(plane).data, total)
    return zlib.crc32(metadata.encode(), total)


def read_metadata(path: Path) -> StoredScan | None:
    """The metadata in a stored file; None if there is no valid file of this version."""
    try:
        array = blosc2.open(str(path), mode="r")
        if CHECKSUM not in array.schunk.vlmeta:
            return None  # it could not be verified
        scan = StoredScan.model_validate_json(array.schunk.vlmeta[METADATA])
        if scan.file != path.name:
            return None  # a copy under another name
        return scan.model_copy(update={"stored_stamp": Stamp.of([path])})
    except Exception:  # Blosc2 can raise anything for damaged bytes, even SyntaxError
        return None


def read_voxels(path: Path, start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
    """Read the box [start, stop) of a stored file, as stored.

    The file is opened for each box, and not memory-mapped. Opening takes 0.1 ms of the 1 ms for 96^3 voxels,
    and mapping is no faster; open files and mappings would use memory for every scan. An open file also gives
    wrong data after it has been replaced.
    """
    array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    return array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
