"""Files as nnU-Net v2 preprocesses them: scaled float32 in Blosc2, laid out for a patch size."""

import math
from fractions import Fraction
from pathlib import Path

import blosc2
import numpy as np

from dae3d.store.boxes import Triple
from dae3d.store.store import Store

# The cache sizes that nnU-Net assumes, and the share of them that it fills.
_L1, _L3, _SHARE = 32_768, 1_441_792, 0.8
_LARGEST_CHUNK = 1.5  # mean side of a chunk relative to the patch
_LEVEL = 8


def write_nnunet_files(store: str, folder: str, roi: Triple) -> dict[str, float]:
    """Write the scans of a store in the format of nnU-Net."""
    opened = Store(store)
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = 0
    for number, scan in enumerate(opened.scans):
        image = opened.read_padded(number, (0, 0, 0), scan.shape)
        blocks, chunks = layout(scan.shape, roi)
        path = Path(folder, f"{number}.b2nd")
        cparams = {"codec": blosc2.Codec.ZSTD, "clevel": _LEVEL, "nthreads": 1}
        blosc2.asarray(
            image[None],
            urlpath=str(path),
            mode="w",
            chunks=(1, *chunks),
            blocks=(1, *blocks),
            cparams=cparams,
        )
        written += path.stat().st_size
    return {"bytes": written}


class NnunetFiles:
    """A folder of such files; files are memory-mapped for each crop."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.b2nd"))

    def crop(self, number: int, roi: Triple, random: np.random.Generator) -> np.ndarray:
        """A random crop (1, *roi) float32; smaller scans are padded."""
        array = blosc2.open(str(self.paths[number]), mode="r", dparams={"nthreads": 1}, mmap_mode="r")
        room = [max(1, side - size + 1) for side, size in zip(array.shape[1:], roi, strict=True)]
        starts = [int(random.integers(places)) for places in room]
        ends = np.add(starts, roi).tolist()
        image = array[(slice(None), *map(slice, starts, ends))]
        return np.pad(image, [(0, 0), *((0, n) for n in np.subtract(roi, image.shape[1:]).tolist())])


def layout(shape: tuple[int, int, int], roi: Triple) -> tuple[list[int], list[int]]:
    """Sizes of blocks and chunks for patches: blocks fit into the L1 cache, chunks into the L3 cache.

    After `nnUNetDatasetBlosc2.comp_blosc2_params` of nnU-Net v2.
    """
    block = [2 ** math.ceil(math.log2(side)) for side in roi]
    while math.prod(block) * 4 > _L1 * _SHARE:
        axis = max(range(3), key=lambda a: (block[a] / roi[a], a))
        block[axis] = min(block[axis] // 2, shape[axis])
    block = [min(side, whole) for side, whole in zip(block, shape, strict=True)]
    chunk = list(block)
    while math.prod(chunk) * 4 < _L3 * _SHARE:
        growing = [a for a in range(3) if chunk[a] < shape[a]]
        if not growing:
            break
        axis = min(growing, key=lambda a: (chunk[a] / block[a], a))
        before = chunk[axis]
        chunk[axis] = min(before + block[axis], shape[axis])
        # Exact, because whether they are just as large decides.
        if sum(Fraction(n, side) for n, side in zip(chunk, roi, strict=True)) > 3 * _LARGEST_CHUNK:
            chunk[axis] = before
            break
    return block, chunk
