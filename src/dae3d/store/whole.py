"""Is a stored file what it was when it was written: read whole and compared with what is on record."""

from dataclasses import dataclass
from pathlib import Path

import blosc2
import numpy as np

from dae3d.store.scan import CHECKSUM, METADATA, SCANS, StoredScan, checksum
from dae3d.store.source import Stamp

# What the index may say otherwise than the file: what the manifest says of a scan, and its source's state.
_LABELS = {"source", "source_stamp", "stored_stamp"}


@dataclass(frozen=True)
class Checked:
    """What was found in the place of one stored file.

    `scan` is what a whole file says of itself, and None where the file is missing or damaged. `wrong` says
    what is wrong with the file, or why it is not the one that the index describes.
    """

    file: str
    listed: StoredScan | None
    scan: StoredScan | None
    wrong: str = ""


def check_file(entry: tuple[str, StoredScan | None], store: Path) -> Checked:
    """Check the file of that name, which the index lists as the scan given with it, or does not list."""
    file, listed = entry
    path = store / SCANS / file
    try:
        scan = _read_whole(path)
    except FileNotFoundError:
        return Checked(file, listed, None, "missing")
    except Exception as error:  # whatever the decoder makes of damaged bytes
        words = str(error).splitlines() or [type(error).__name__]
        return Checked(file, listed, None, f"damaged: {words[0]}")
    return Checked(file, listed, scan, _difference(scan, listed) if listed else "")


def _read_whole(path: Path) -> StoredScan:
    stamp = Stamp.of([path])
    stored = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    metadata = stored.schunk.vlmeta[METADATA]
    scan = StoredScan.model_validate_json(metadata)
    if (stored.shape, stored.dtype) != (scan.shape, np.dtype(scan.dtype)):
        raise ValueError(f"{stored.dtype} of shape {stored.shape}, not {scan.dtype} of {scan.shape}")
    if checksum(stored[:], metadata) != stored.schunk.vlmeta[CHECKSUM]:
        raise ValueError("not the voxels or the metadata that were written")
    return scan.model_copy(update={"stored_stamp": stamp})


def _difference(scan: StoredScan, listed: StoredScan) -> str:
    """In what a whole file is not the one that the index describes."""
    for field in type(scan).model_fields:
        if field not in _LABELS and getattr(scan, field) != getattr(listed, field):
            return f"not as in the index: {field}"
    if scan.source.digest != listed.source.digest:
        return "not as in the index: made from another content of its source"
    sizes = [one.stored_stamp.bytes if one.stored_stamp else 0 for one in (scan, listed)]
    return "" if sizes[0] == sizes[1] else f"not as in the index: {sizes[0]} bytes, not {sizes[1]}"
