"""One scan from its source file into the store, in one call that any process can make."""

from dataclasses import dataclass, replace
from pathlib import Path

from dae3d.errors import ScanError
from dae3d.scans.manifest import Scan
from dae3d.scans.read import read_scan, source_files
from dae3d.scans.readers import Volume
from dae3d.store.conform import crop_to_foreground, narrowed, resample, scaled, to_ras
from dae3d.store.fingerprint import voxel_digest
from dae3d.store.hounsfield import refuse_no_hounsfield
from dae3d.store.padding import HOUNSFIELD
from dae3d.store.scan import PARTIAL, SCANS, Preparation, StoredScan, file_name, read_metadata, write_scan
from dae3d.store.source import Stamp, digest
from dae3d.store.statistics import measure, refuse_non_finite


@dataclass(frozen=True)
class Outcome:
    """What became of one scan: stored, newly `written` or there already, or else rejected for a `reason`."""

    name: str
    stored: StoredScan | None = None
    written: bool = False
    reason: str = ""


def convert(scan: Scan, preparation: Preparation, store: Path, partial: str = PARTIAL) -> Outcome:
    """Prepare one scan, unless the store has it; `partial` is the store's folder for files not yet whole.

    Raises:
        Dae3dError: where the store cannot be written to.
    """
    try:
        files = source_files(scan)
        stamp = Stamp.of(files)
    except OSError as error:
        return Outcome(scan.name, reason=f"unreadable: {error.strerror}")
    old = read_metadata(store / SCANS / file_name(scan))
    if old is not None and old.preparation == preparation:
        content = old.source.digest if old.source_stamp == stamp else digest(files)
        if content == old.source.digest and measured_alike(old, scan):
            return Outcome(scan.name, described(old, scan, stamp))
    try:
        volume = read_scan(scan)
        refuse_non_finite(volume)
        voxels = voxel_digest(volume)
        volume = conform(volume, preparation, scan.modality)
        statistics = measure(volume, scan.modality)
        refuse_no_hounsfield(statistics, scan.modality)
    except ScanError as error:
        return Outcome(scan.name, reason=str(error))
    stored = StoredScan(
        file=file_name(scan),
        source=scan.model_copy(update={"digest": digest(files), "files": ()}),
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
    return Outcome(scan.name, write_scan(store, volume.array, stored, partial), written=True)


def measured_alike(stored: StoredScan, scan: Scan) -> bool:
    """Whether a stored scan's statistics also hold with the label that the manifest has now."""
    return (stored.modality in HOUNSFIELD) == (scan.modality in HOUNSFIELD)


def described(stored: StoredScan, scan: Scan, stamp: Stamp) -> StoredScan:
    """A scan that is in the store, with what the manifest says of it now."""
    source = scan.model_copy(update={"digest": stored.source.digest, "files": ()})
    return stored.model_copy(update={"source": source, "source_stamp": stamp})


def conform(volume: Volume, preparation: Preparation, modality: str = "") -> Volume:
    """Bring a scan into the store's form.

    Raises:
        ScanError: where it has non-finite voxels, a singular affine, or one value only.
    """
    refuse_non_finite(volume)
    volume = scaled(to_ras(volume))
    if preparation.spacing is not None:
        volume = resample(volume, preparation.spacing, modality)
    if preparation.crop_foreground:
        volume = crop_to_foreground(volume, modality)
    return replace(volume, array=narrowed(volume.array))
