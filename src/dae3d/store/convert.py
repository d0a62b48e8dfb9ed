"""One scan from its source file into the store, in one call that any process can make."""

from dataclasses import dataclass, replace
from pathlib import Path

from dae3d.errors import ScanError
from dae3d.scans.manifest import Scan
from dae3d.scans.readers import Volume, read_volume
from dae3d.store.conform import crop_to_foreground, narrowed, resample, scaled, to_ras
from dae3d.store.scan import SCANS, Preparation, StoredScan, file_name, read_metadata, write_scan
from dae3d.store.source import Stamp, digest, source_files
from dae3d.store.statistics import measure, refuse_non_finite


@dataclass(frozen=True)
class Outcome:
    """What became of one scan: stored, newly `written` or there already, or else rejected for a `reason`."""

    path: Path
    stored: StoredScan | None = None
    written: bool = False
    reason: str = ""


def convert(scan: Scan, preparation: Preparation, store: Path) -> Outcome:
    """Prepare one scan, unless the store has it.

    Raises:
        Dae3dError: where the store cannot be written to.
    """
    try:
        files = source_files(scan.path)
        stamp = Stamp.of(files)
    except OSError as error:
        return Outcome(scan.path, reason=f"unreadable: {error.strerror}")
    old = read_metadata(store / SCANS / file_name(scan.path))
    if old is not None and old.preparation == preparation:
        content = old.source.digest if old.source_stamp == stamp else digest(files)
        if content == old.source.digest:
            return Outcome(scan.path, described(old, scan, stamp))
    try:
        volume = conform(read_volume(scan.path), preparation)
        statistics = measure(volume)
    except ScanError as error:
        return Outcome(scan.path, reason=str(error))
    stored = StoredScan(
        file=file_name(scan.path),
        source=scan.model_copy(update={"digest": digest(files)}),
        source_stamp=stamp,
        preparation=preparation,
        shape=volume.array.shape,
        spacing=volume.spacing,
        affine=volume.affine.tolist(),
        dtype=volume.array.dtype.name,
        slope=volume.slope,
        intercept=volume.intercept,
        statistics=statistics,
    )
    return Outcome(scan.path, write_scan(store, volume.array, stored), written=True)


def described(stored: StoredScan, scan: Scan, stamp: Stamp) -> StoredScan:
    """A scan that is in the store, with what the manifest says of it now."""
    source = scan.model_copy(update={"digest": stored.source.digest})
    return stored.model_copy(update={"source": source, "source_stamp": stamp})


def conform(volume: Volume, preparation: Preparation) -> Volume:
    """Bring a scan into the store's form.

    Raises:
        ScanError: where it has non-finite voxels, a singular affine, or one value only.
    """
    refuse_non_finite(volume)
    volume = scaled(to_ras(volume))
    if preparation.spacing is not None:
        volume = resample(volume, preparation.spacing)
    if preparation.crop_foreground:
        volume = crop_to_foreground(volume)
    return replace(volume, array=narrowed(volume.array))
