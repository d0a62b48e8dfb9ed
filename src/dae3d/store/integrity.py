"""Verify a stored file: read all of it and compare it with its checksum and the index."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import blosc2
import numpy as np
from pydantic import ValidationError

from dae3d.errors import ScanError
from dae3d.store.scan import CHECKSUM, CHUNK, METADATA, SCANS, StoredScan, checksum
from dae3d.store.source import Stamp

# Fields in which index and file may differ: the entry in the manifest, and the state of source and file.
_LABELS = {"source", "source_stamp", "stored_stamp"}
# Times the size of a slab of voxels: the most memory that Blosc2 needs to decode one, apart from the file.
_HEADROOM = 4

# An `unreadable` file may be intact. `other` is an intact file, but not the one listed.
State = Literal["intact", "missing", "unreadable", "damaged", "other"]


class OtherFormat(ValueError):
    """A stored file written by another version of dae3d, or under another name."""


@dataclass(frozen=True)
class Checked:
    """The result for one stored file.

    `scan` is the metadata in an intact file of this version. `why` says why the file is not intact, or not
    the one that the index describes.
    """

    file: str
    listed: StoredScan | None
    state: State
    scan: StoredScan | None = None
    why: str = ""


def check_file(entry: tuple[str, StoredScan | None], store: Path) -> Checked:
    """Check a file, given by its name and its entry in the index, if it has one."""
    file, listed = entry
    try:
        scan = read_intact(store / SCANS / file)
    except FileNotFoundError:
        return Checked(file, listed, "missing", why="missing")
    except OSError as error:
        return Checked(file, listed, "unreadable", why=f"cannot be read: {error.strerror}")
    except ScanError as error:
        return Checked(file, listed, "unreadable", why=str(error))
    except MemoryError:
        return Checked(file, listed, "unreadable", why="cannot be read: not enough memory")
    except OtherFormat as error:
        return Checked(file, listed, "other", why=str(error))
    except ValueError as error:
        return Checked(file, listed, "damaged", why=f"damaged: {error}")
    difference = _difference(scan, listed) if listed else ""
    return Checked(file, listed, "other" if difference else "intact", scan, difference)


def read_intact(path: Path) -> StoredScan:
    """Read and verify all of a stored file; returns its metadata.

    Raises:
        OSError, MemoryError, ScanError: if it could not be read; it may be intact.
        OtherFormat: if it was written by another version of dae3d, or under another name.
        ValueError: if it is damaged.
    """
    stamp = Stamp.of([path])
    content = path.read_bytes()
    try:
        scan = _decoded(content)
    except (OtherFormat, MemoryError):
        raise
    except Exception as error:  # damaged bytes can raise anything in the decoder
        words = str(error).splitlines() or [type(error).__name__]
        raise ValueError(words[0]) from None
    if scan.file != path.name:
        raise OtherFormat(f"was written as {scan.file!r}")
    return scan.model_copy(update={"stored_stamp": stamp})


def _decoded(content: bytes) -> StoredScan:
    stored = blosc2.ndarray_from_cframe(content)
    kept = stored.schunk.vlmeta
    if METADATA not in kept or CHECKSUM not in kept:
        raise OtherFormat("made by another version of dae3d")
    metadata = kept[METADATA]
    try:
        scan = StoredScan.model_validate_json(metadata)
    except ValidationError:
        scan = None
    if scan and (stored.shape, stored.dtype) != (scan.shape, np.dtype(scan.dtype)):
        raise ValueError(f"{stored.dtype} of shape {stored.shape}, not {scan.dtype} of {scan.shape}")
    if checksum(_planes(stored), metadata) != kept[CHECKSUM]:
        raise ValueError("wrong checksum of voxels and metadata")
    if scan is None:
        raise OtherFormat("made by another version of dae3d")
    return scan


def _planes(stored: blosc2.NDArray) -> Iterator[np.ndarray]:
    """The planes of a stored array; MemoryError if there is not enough memory to decode them."""
    # Allocated first, because Blosc2 raises the same error for too little memory as for damaged bytes.
    np.empty(_HEADROOM * CHUNK * math.prod(stored.shape[1:]) * stored.dtype.itemsize, np.uint8)
    for start in range(0, stored.shape[0], CHUNK):
        yield from stored[start : start + CHUNK]


def _difference(scan: StoredScan, listed: StoredScan) -> str:
    """How an intact file differs from its entry in the index."""
    for field in type(scan).model_fields:
        if field not in _LABELS and getattr(scan, field) != getattr(listed, field):
            return f"not as in the index: {field}"
    if scan.source.digest != listed.source.digest:
        return "not as in the index: made from a different version of its source"
    sizes = [one.stored_stamp.bytes if one.stored_stamp else 0 for one in (scan, listed)]
    return "" if sizes[0] == sizes[1] else f"not as in the index: {sizes[0]} bytes, not {sizes[1]}"
