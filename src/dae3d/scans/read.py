"""Scans of a manifest, in any format: their files and their voxels."""

from pathlib import Path

from dae3d.errors import as_scan_error
from dae3d.scans.dicom.volume import read_series
from dae3d.scans.manifest import Scan
from dae3d.scans.readers import Volume, files_read, read_volume


def read_scan(scan: Scan) -> Volume:
    """Read all of a scan: a DICOM series, or one volume of a file.

    Raises:
        ScanError: if it cannot be read.
        OSError: if its files cannot be found.
    """
    with as_scan_error():
        if scan.series is not None:
            return read_series(source_files(scan))
        return read_volume(scan.path, scan.volume)


def source_files(scan: Scan) -> list[Path]:
    """The files of a scan."""
    return [scan.path / name for name in scan.files] if scan.files else files_read(scan.path)
