"""Scans to index, and what is found."""

from pathlib import Path

import nibabel
import numpy as np

import dae3d
from dae3d.scans.manifest import Manifest


def write_scan(path: Path, shape: tuple[int, ...] = (16, 17, 18)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.diag([-1.0, -2, 3, 1])), path)
    return path


def run(folder: Path, *more: Path, **settings) -> Manifest:
    return dae3d.index(folders=[folder, *more], out=folder.parent / "manifest.json", **settings)


def modalities(manifest: Manifest) -> dict[str, str]:
    return {scan.path.name: scan.modality for scan in manifest.scans}


def reasons(manifest: Manifest) -> dict[str, str]:
    return {item.path.name: item.reason for item in manifest.left_out}
