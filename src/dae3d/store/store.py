"""Read crops from a prepared store."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dae3d.scans.readers import Volume
from dae3d.store.boxes import Triple, overlap, padded, read_box
from dae3d.store.index import INDEX, read_index
from dae3d.store.intensity import normalise, scaling
from dae3d.store.scan import SCANS, StoredScan
from dae3d.store.stored_crop import StoredCrop, pending_scaling

__all__ = ["Store", "StoredScan"]


class Store:
    """The prepared scans of a folder, read in boxes of voxels.

    It keeps only the index in memory and opens a scan for each crop. It can be pickled, and used in forked
    processes; the time of a crop does not depend on the size and number of scans. `scans` is a sequence of
    `StoredScan` in fixed order; each access parses one entry (0.02 ms).
    """

    def __init__(self, path: str | Path, index: str = INDEX) -> None:
        """Open the store in folder `path`; `index` is the name of its index.

        Raises:
            Dae3dError: if the folder is not a store, or its index is damaged.
        """
        self.path = Path(path)
        self.scans = read_index(self.path, index)

    def read(self, number: int, start: Triple, size: Triple) -> np.ndarray:
        """The box of `size` voxels from voxel `start`, inside scan `number`, in acquired units.

        Returns:
            Float32 array of shape `size`.

        Raises:
            ValueError: if the box is not inside the scan.
            Dae3dError: if the stored file is missing or damaged.
        """
        scan = self.scans[number]
        stop = (start[0] + size[0], start[1] + size[1], start[2] + size[2])
        if min(start) < 0 or any(e > n for e, n in zip(stop, scan.shape, strict=True)):
            raise ValueError(
                f"box from {start} of size {size} is not inside {scan.file} of shape {scan.shape}"
            )
        voxels = self._voxels(scan, start, stop)
        return Volume(voxels, np.array(scan.affine), scan.slope, scan.intercept).intensities()

    def read_padded(
        self, number: int, start: Triple, size: Triple, intensity: Mapping[str, str] | None = None
    ) -> np.ndarray:
        """The box of `size` voxels from voxel `start` (may be negative), scaled for the network.

        `intensity` has scaling rules by modality, which override the defaults.

        Returns:
            Float32 array of shape `size`; 0 outside the scan, as if padded after scaling.

        Raises:
            Dae3dError: if the stored file is missing or damaged.
        """
        scan = self.scans[number]

        def scaled(first: Triple, last: Triple) -> np.ndarray:
            return self._scaled(scan, self._voxels(scan, first, last), intensity)

        return padded(scaled, scan.shape, start, size, np.float32)

    def read_unscaled(
        self, number: int, start: Triple, size: Triple, intensity: Mapping[str, str] | None = None
    ) -> StoredCrop:
        """As `read_padded`, but leaves scaling and padding to the receiver if that saves bytes.

        Raises:
            Dae3dError: if the stored file is missing or damaged.
        """
        scan = self.scans[number]
        first, last = overlap(scan.shape, start, size)
        voxels = self._voxels(scan, first, last) if first != last else np.zeros((0, 0, 0), scan.dtype)
        rest = pending_scaling(scan, scaling(scan.modality, intensity).normalisation(scan.statistics))
        if rest is None:
            voxels = self._scaled(scan, voxels, intensity)
        x, y, z = (a - s for a, s in zip(first, start, strict=True))
        return StoredCrop(voxels, (x, y, z), rest)

    def _scaled(
        self, scan: StoredScan, voxels: np.ndarray, intensity: Mapping[str, str] | None
    ) -> np.ndarray:
        if (scan.slope, scan.intercept) != (1.0, 0.0):
            voxels = Volume(voxels, np.array(scan.affine), scan.slope, scan.intercept).intensities()
        return normalise(voxels, scan.modality, scan.statistics, intensity)

    def _voxels(self, scan: StoredScan, start: Triple, stop: Triple) -> np.ndarray:
        size_on_disk = scan.stored_stamp.bytes if scan.stored_stamp else None
        return read_box(self.path / SCANS / scan.file, size_on_disk, "prepare", start, stop)
