"""Is a stored file what it was when it was written: read whole and compared with what is on record."""

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

# What the index may say otherwise than the file: what the manifest says of a scan, and its source's state.
_LABELS = {"source", "source_stamp", "stored_stamp"}
# Times the size of a slab of voxels: what Blosc2 needs at most beside the file to decode one.
_HEADROOM = 4

# `unreadable` says nothing of the file: it may be whole. `other` is a whole file, but not the one listed.
State = Literal["whole", "missing", "unreadable", "damaged", "other"]


class OtherFormat(ValueError):
    """A stored file that another version of dae3d wrote, or under another name."""


@dataclass(frozen=True)
class Checked:
    """What was found in the place of one stored file.

    `scan` is what a whole file of this version says of itself. `why` says why the file is not whole, or not
    the one that the index describes.
    """

    file: str
    listed: StoredScan | None
    state: State
    scan: StoredScan | None = None
    why: str = ""


def check_file(entry: tuple[str, StoredScan | None], store: Path) -> Checked:
    """Check the file of that name, which the index lists as the scan given with it, or does not list."""
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
        return Checked(file, listed, "unreadable", why="cannot be read: too little memory")
    except OtherFormat as error:
        return Checked(file, listed, "other", why=str(error))
    except ValueError as error:
        return Checked(file, listed, "damaged", why=f"damaged: {error}")
    difference = _difference(scan, listed) if listed else ""
    return Checked(file, listed, "other" if difference else "whole", scan, difference)


def read_intact(path: Path) -> StoredScan:
    """What a stored file says of its scan, once all of it has been read and is as it was written.

    Raises:
        OSError, MemoryError, ScanError: where it could not be read, which says nothing of what it holds.
        OtherFormat: where another version of dae3d wrote it, or it was written under another name.
        ValueError: where it is damaged.
    """
    stamp = Stamp.of([path])
    content = path.read_bytes()
    try:
        scan = _decoded(content)
    except (OtherFormat, MemoryError):
        raise
    except Exception as error:  # whatever the decoder makes of damaged bytes
        words = str(error).splitlines() or [type(error).__name__]
        raise ValueError(words[0]) from None
    if scan.file != path.name:
        raise OtherFormat(f"says that its name is {scan.file!r}")
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
        raise ValueError("not the voxels or the metadata that were written")
    if scan is None:
        raise OtherFormat("made by another version of dae3d")
    return scan


def _planes(stored: blosc2.NDArray) -> Iterator[np.ndarray]:
    """The planes of a stored array; MemoryError where there is no room to decode them."""
    # Asked for first, because Blosc2 says the same of too little memory as of damaged bytes.
    np.empty(_HEADROOM * CHUNK * math.prod(stored.shape[1:]) * stored.dtype.itemsize, np.uint8)
    for start in range(0, stored.shape[0], CHUNK):
        yield from stored[start : start + CHUNK]


def _difference(scan: StoredScan, listed: StoredScan) -> str:
    """In what a whole file is not the one that the index describes."""
    for field in type(scan).model_fields:
        if field not in _LABELS and getattr(scan, field) != getattr(listed, field):
            return f"not as in the index: {field}"
    if scan.source.digest != listed.source.digest:
        return "not as in the index: made from another content of its source"
    sizes = [one.stored_stamp.bytes if one.stored_stamp else 0 for one in (scan, listed)]
    return "" if sizes[0] == sizes[1] else f"not as in the index: {sizes[0]} bytes, not {sizes[1]}"
