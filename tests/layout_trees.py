"""Miniature copies of the folder trees in which public data sets are released."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from dae3d.scans.layouts.layout import LAYOUTS, LayoutName
from dae3d.scans.manifest import LeftOut
from dae3d.scans.readers import suffix
from dae3d.scans.sources import Candidate
from scan_files import write_nifti


def plant(root: Path, *names: str, channels: int = 1) -> Path:
    """Write scans of 8^3 voxels, 4-D where they have several channels, and empty files of other kinds."""
    shape = (8, 8, 8) if channels == 1 else (8, 8, 8, channels)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".mhd":
            sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 8, 8), np.int16)), path)
        elif suffix(path):
            write_nifti(path, np.zeros(shape, np.int16))
        else:
            path.touch()
    return root


def found(
    name: LayoutName, root: Path, dataset: str | None = None
) -> tuple[dict[str, Candidate], dict[str, str]]:
    """The scans of a layout by their path from the root, and the reasons of all else that looks like one.

    Every file that a reader would take is either the one or the other.
    """
    answers = list(LAYOUTS[name].candidates(root, dataset))
    scans = {answer.shown: answer for answer in answers if isinstance(answer, Candidate)}
    left = {
        answer.path.relative_to(root).as_posix(): answer.reason
        for answer in answers
        if isinstance(answer, LeftOut)
    }
    readable = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if suffix(path) and not path.name.startswith(".")
    }
    assert readable <= scans.keys() | left.keys()
    assert not scans.keys() & left.keys()
    return scans, left


def told(scans: dict[str, Candidate]) -> dict[str, tuple[str | None, str | None]]:
    """Modality and subject of each scan."""
    return {shown: (scan.modality, scan.subject) for shown, scan in scans.items()}
