"""Names of scans with several channels: the files joined by commas, as in `t1.nii.gz,flair.nii.gz`."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator


def _joined(scan: Any) -> Any:
    """Paths, and sequences of a scan's channels, as on the command line."""
    if isinstance(scan, (list, tuple)):
        return ",".join(map(str, scan))
    return str(scan) if isinstance(scan, os.PathLike) else scan


# For settings: a scan by its file, or by the files of its channels; from Python also paths and sequences.
ScanText = Annotated[str, BeforeValidator(_joined)]


def channel_files(scan: str) -> tuple[Path, ...]:
    """The files of a scan's channels; a comma may also be part of the name of one file or folder."""
    return (Path(scan),) if Path(scan).exists() else tuple(map(Path, scan.split(",")))
