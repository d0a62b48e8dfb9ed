"""Reading crops out of a prepared store."""

from pathlib import Path

import numpy as np

from dae3d.errors import Dae3dError
from dae3d.scans.readers import Volume
from dae3d.store.index import read_index
from dae3d.store.intensity import normalise
from dae3d.store.scan import SCANS, StoredScan, read_voxels

__all__ = ["Store", "StoredScan"]

Triple = tuple[int, int, int]


class Store:
    """The prepared scans of a folder, read in boxes of voxels.

    It holds the index alone and opens a scan for each crop, so it may be sent to, or forked into, any
    process, and a crop costs the same whatever the size and the number of the scans. `scans` is a sequence of
    `StoredScan`, in an order that stays; each access parses one entry (0.02 ms).
    """

    def __init__(self, path: str | Path) -> None:
        """Open the store in folder `path`.

        Raises:
            Dae3dError: where there is no store, or its index is damaged.
        """
        self.path = Path(path)
        self.scans = read_index(self.path)

    def read(self, number: int, start: Triple, size: Triple) -> np.ndarray:
        """The box of `size` voxels from voxel `start` on, inside scan `number`, in acquired units.

        Returns:
            Float32 array of shape `size`.

        Raises:
            ValueError: where the box sticks out of the scan.
            Dae3dError: where the stored file is missing or damaged.
        """
        scan = self.scans[number]
        stop = tuple(s + n for s, n in zip(start, size, strict=True))
        if min(start) < 0 or any(e > n for e, n in zip(stop, scan.shape, strict=True)):
            raise ValueError(
                f"box from {start} of size {size} is not inside {scan.file} of shape {scan.shape}"
            )
        voxels = self._voxels(scan, start, stop)
        return Volume(voxels, np.array(scan.affine), scan.slope, scan.intercept).intensities()

    def read_padded(self, number: int, start: Triple, size: Triple) -> np.ndarray:
        """The box of `size` voxels from voxel `start` on, which may be negative, scaled for the network.

        Returns:
            Float32 array of shape `size`; 0 outside the scan, as if padded after scaling.

        Raises:
            Dae3dError: where the stored file is missing or damaged.
        """
        scan = self.scans[number]
        first = tuple(max(s, 0) for s in start)
        last = tuple(min(s + n, end) for s, n, end in zip(start, size, scan.shape, strict=True))
        if any(a >= b for a, b in zip(first, last, strict=True)):
            return np.zeros(size, np.float32)
        voxels = self._voxels(scan, first, last)
        if (scan.slope, scan.intercept) != (1.0, 0.0):
            voxels = Volume(voxels, np.array(scan.affine), scan.slope, scan.intercept).intensities()
        scaled = normalise(voxels, scan.modality, scan.statistics)
        if scaled.shape == size:
            return scaled
        crop = np.zeros(size, np.float32)
        crop[tuple(slice(a - s, b - s) for a, b, s in zip(first, last, start, strict=True))] = scaled
        return crop

    def _voxels(self, scan: StoredScan, start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
        path = self.path / SCANS / scan.file
        try:
            # A file of another size has been prepared anew, or cut short, since the index was written.
            if scan.stored_stamp is not None and path.stat().st_size != scan.stored_stamp.bytes:
                raise RuntimeError("not the file that the index describes")
            return read_voxels(path, start, stop)
        except (OSError, RuntimeError) as error:
            raise Dae3dError(f"{path}: {error}; run `dae3d prepare` again") from error
