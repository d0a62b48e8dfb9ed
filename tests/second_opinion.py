"""DICOM series by dcm2niix."""

import subprocess
from pathlib import Path

import dcm2niix
import nibabel

from dae3d.scans.readers import Volume


def by_dcm2niix(files: list[Path], out: Path, suffix: str = "") -> nibabel.Nifti1Image:
    """What dcm2niix makes of the folder of `files`; the standard's rescaling, not Philips' own."""
    out.mkdir()
    options = ["-b", "n", "-z", "n", "-x", "i", "-m", "y", "-p", "n", "-f", "scan"]
    subprocess.run([dcm2niix.bin, *options, "-o", out, files[0].parent], check=True, capture_output=True)
    return nibabel.load(out / f"scan{suffix}.nii")


def canonical(volume: Volume) -> nibabel.Nifti1Image:
    return nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.intensities(), volume.affine))
