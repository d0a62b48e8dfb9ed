"""Scans of a manifest, whatever they lie in: which files they are, and their voxels."""

from pathlib import Path

from dae3d.errors import as_scan_error
from dae3d.scans.dicom.volume import read_series
from dae3d.scans.manifest import Scan
from dae3d.scans.readers import Volume, files_read, read_volume


def read_scan(scan: Scan) -> Volume:
    """Read a scan whole: a DICOM series, or one volume of a file.

    Raises:
        ScanError: where it cannot be read.
        OSError: where its files cannot be found.
    """
    with as_scan_error():
        if scan.series is not None:
            return read_series(source_files(scan))
        return read_volume(scan.path, scan.volume)


def source_files(scan: Scan) -> list[Path]:
    """The files that a scan is in."""
    return [scan.path / name for name in scan.files] if scan.files else files_read(scan.path)
