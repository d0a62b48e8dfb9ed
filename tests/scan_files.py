"""Scans on disk and manifests of them, made by hand for tests of the store."""

import gzip
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dae3d.scans.manifest import Manifest, Scan
from dae3d.scans.readers import read_header


def write_nifti(
    path: Path,
    array: np.ndarray,
    affine: np.ndarray | None = None,
    slope: float | None = None,
    intercept: float | None = None,
) -> Path:
    """Write raw voxels with a scale factor that applies to them as they are."""
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype)
    file = bytearray(image.to_bytes())
    if slope is not None:
        # nibabel would change the voxels to suit the scale factor.
        file[112:120] = np.array([slope, intercept], f"{image.header.endianness}f4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(file, 1) if path.suffix == ".gz" else file)
    return path


def described(path: Path, modality: str = "ct", subject: str | None = None, split: str = "train") -> Scan:
    """The manifest's entry of a readable scan."""
    header = read_header(path)
    return Scan(
        path=path,
        modality=modality,
        subject=subject or path.name,
        dataset=path.parent.name,
        split=split,
        shape=header.shape,
        spacing=header.spacing,
        dtype=header.dtype,
        orientation=header.orientation,
    )


def undescribed(path: Path) -> Scan:
    """The manifest's entry of a file that has gone bad since it was listed."""
    return Scan(
        path=path,
        modality="t1",
        subject=path.name,
        dataset="bad",
        split="train",
        shape=(8, 8, 8),
        spacing=(1, 1, 1),
        dtype="int16",
        orientation="RAS",
    )


def write_manifest(path: Path, scans: list[Scan]) -> Path:
    Manifest(scans=tuple(scans)).save(path)
    return path


def phantom(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A CT-like int16 volume: air, a body with noise, a bright rod."""
    random = np.random.default_rng(seed)
    volume = np.full(shape, -1000, np.int16)
    body = tuple(slice(n // 5, n - n // 5) for n in shape)
    volume[body] = 40
    volume[shape[0] // 2, shape[1] // 2, :] = 900
    return volume + random.integers(-15, 16, shape, dtype=np.int16)


def written(store: Path) -> dict[str, int]:
    """When each stored file was written."""
    return {file.name: file.stat().st_mtime_ns for file in (store / "scans").iterdir()}


def without_privilege(command: Sequence[object]) -> list[str]:
    """A command as one without root's leave to read and write what file modes forbid."""
    if os.geteuid():
        return list(map(str, command))
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, or not to be root")
    drop = "-dac_override,-dac_read_search"
    return list(map(str, ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", *command]))


# Begins the command of a process that is to be caught at its work: on a busy machine, who watches goes first.
WATCHED = [
    "sh",
    "-c",
    # Linux gives every session a share of its own, within which alone `nice` counts.
    "read -r _ _ _ _ _ session _ </proc/$$/stat; "
    '[ "$session" != $$ ] || echo 19 2>/dev/null >/proc/self/autogroup; exec nice -n 19 "$@"',
    "watched",
]
