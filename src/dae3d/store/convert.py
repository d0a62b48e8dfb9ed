"""Prepare one scan, in one call that any process can make."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dae3d.errors import ScanError, as_scan_error
from dae3d.scans.manifest import Scan
from dae3d.scans.padding import HOUNSFIELD
from dae3d.scans.read import read_scan, source_files
from dae3d.scans.readers import Volume
from dae3d.store.examine import examine
from dae3d.store.fingerprint import voxel_digest
from dae3d.store.integrity import read_intact
from dae3d.store.scan import PARTIAL, SCANS, Preparation, StoredScan, file_name, read_metadata, write_scan
from dae3d.store.source import Stamp, digest

_SAME_SPACING = 1e-3  # relative


@dataclass(frozen=True)
class Outcome:
    """The result for one scan: stored (newly `written` or already there), or rejected for a `reason`.

    `file` is the name of its stored file, which need not exist. `unseen`: the source was not visible to the
    process; a stored scan is then kept.
    """

    name: str
    file: str
    stored: StoredScan | None = None
    written: bool = False
    reason: str = ""
    unseen: bool = False

    @classmethod
    def kept(cls, stored: StoredScan, unseen: bool = False) -> "Outcome":
        """The store already has the scan."""
        return cls(stored.source.name, stored.file, stored, unseen=unseen)

    @classmethod
    def rejected(cls, scan: Scan, reason: str, unseen: bool = False) -> "Outcome":
        """The scan cannot be used."""
        return cls(scan.name, file_name(scan), reason=reason, unseen=unseen)


def convert(scan: Scan, preparation: Preparation, store: Path, partial: str = PARTIAL) -> Outcome:
    """Prepare one scan, unless the store has it; `partial` is the store's folder for incomplete files.

    Raises:
        Dae3dError: if the store cannot be written to.
    """
    old = read_metadata(store / SCANS / file_name(scan))
    if old is not None and not (old.preparation == preparation and measured_alike(old, scan)):
        old = None
    try:
        files = source_files(scan)
        stamp = Stamp.of(files)
    except OSError as error:
        if old is not None and _is_intact(store / SCANS / old.file):
            return Outcome.kept(described(old, scan, old.source_stamp), unseen=True)
        return Outcome.rejected(scan, f"unreadable: {error.strerror}", unseen=True)
    except ScanError as error:
        return Outcome.rejected(scan, str(error))
    try:
        if old is not None and old.source_stamp == stamp:
            return Outcome.kept(described(old, scan, stamp))
        content = digest(files)
        if old is not None and old.source.digest == content:
            return Outcome.kept(described(old, scan, stamp))
        with as_scan_error():
            volume, new = _converted(scan, stamp, content, preparation)
            if Stamp.of(source_files(scan)) != stamp:
                return Outcome.rejected(scan, "changed while it was read; run the same command again")
            return Outcome(scan.name, new.file, write_scan(store, volume.array, new, partial), written=True)
    except OSError as error:
        return Outcome.rejected(scan, f"unreadable: {error.strerror}", unseen=True)
    except ScanError as error:
        return Outcome.rejected(scan, str(error))


def _converted(scan: Scan, stamp: Stamp, content: str, preparation: Preparation) -> tuple[Volume, StoredScan]:
    """A scan in the form it is stored in, and its metadata."""
    volume = read_scan(scan)
    voxels = voxel_digest(volume)
    volume, statistics = examine(volume, preparation, scan.modality)
    stored = StoredScan(
        file=file_name(scan),
        source=scan.model_copy(update={"digest": content, "files": ()}),
        source_stamp=stamp,
        preparation=preparation,
        shape=volume.array.shape,
        spacing=volume.spacing,
        affine=volume.affine.tolist(),
        dtype=volume.array.dtype.name,
        slope=volume.slope,
        intercept=volume.intercept,
        statistics=statistics,
        voxel_digest=voxels,
    )
    return volume, stored


def _is_intact(path: Path) -> bool:
    try:
        read_intact(path)
    except (OSError, MemoryError, ScanError, ValueError):
        return False
    return True


def measured_alike(stored: StoredScan, scan: Scan) -> bool:
    """Whether a stored scan is still valid for its present entry in the manifest.

    Statistics depend on the label. Voxel size or orientation change when a newer version reads the header
    differently.
    """
    return (
        (stored.modality in HOUNSFIELD) == (scan.modality in HOUNSFIELD)
        and stored.source.orientation == scan.orientation
        and np.allclose(stored.source.spacing, scan.spacing, rtol=_SAME_SPACING, atol=0)
    )


def described(stored: StoredScan, scan: Scan, stamp: Stamp) -> StoredScan:
    """A stored scan with its present entry in the manifest."""
    source = scan.model_copy(update={"digest": stored.source.digest, "files": ()})
    return stored.model_copy(update={"source": source, "source_stamp": stamp})
