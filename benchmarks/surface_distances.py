"""Surface distances of segmentations, NSD and HD95: MONAI's functions and ours, on the same masks.

Each pair of masks is compared within the box that contains both, by MONAI and by us in turn, with one thread;
the table has CPU time. The last column is the largest difference of their figures. With a folder of label
maps, each class of each is compared with itself moved by a voxel along the first and the last axis.

    python benchmarks/surface_distances.py [--labels FOLDER]
"""

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from scipy.ndimage import find_objects, gaussian_filter

from dae3d.evaluation.surfaces import surface_distances
from dae3d.scans.readers import read_volume

Masks = tuple[np.ndarray, np.ndarray]
TOLERANCE = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--labels", type=Path, help="folder of label maps, .nii.gz")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # One-time work of the process is not counted.
    for compare in (by_monai, surface_distances):
        compare(*next(small()), (1.0, 1.0, 1.0), TOLERANCE)
    print("| masks | pairs | MONAI (s) | dae3d (s) | times as fast | difference |")
    print("|---|---:|---:|---:|---:|---:|")
    row("small, as a hippocampus", small(), (1.0, 1.0, 1.0))
    row("small, one of them noise", noise(), (1.0, 1.0, 1.0))
    row("balls in 200^3, 4 voxels apart", balls(80, 80, 4), (0.8, 0.8, 1.0))
    row("balls in 200^3, one within the other", balls(80, 20, 0), (0.8, 0.8, 1.0))
    row("large, as a liver in 512 x 512 x 400", large(), (0.8, 0.8, 1.0))
    row("the same, and specks all over its box", large(specks=0.001), (0.8, 0.8, 1.0))
    if options.labels:
        row(
            f"{options.labels.resolve().parent.name}, moved by a voxel",
            moved(options.labels),
            (1.0, 1.0, 1.0),
        )


def row(name: str, pairs: Iterator[Masks], spacing: Sequence[float]) -> None:
    seconds = [0.0, 0.0]
    number, apart = 0, 0.0
    for pair in map(within_box, pairs):
        found = []
        for way, compare in enumerate((by_monai, surface_distances)):
            start = time.process_time()
            found.append(compare(*pair, spacing, TOLERANCE))
            seconds[way] += time.process_time() - start
        apart = max(apart, *np.abs(np.subtract(*found)))
        number += 1
    theirs, ours = seconds
    print(
        f"| {name} | {number} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.1f} | {apart:.0e} |", flush=True
    )


def by_monai(
    first: np.ndarray, second: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    a, b = (torch.from_numpy(mask)[None, None] for mask in (first, second))
    limits, sides = [tolerance * (1 + 1e-5)], list(spacing)
    nsd = compute_surface_dice(a, b, limits, include_background=True, spacing=sides, use_subvoxels=True)
    hd95 = compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=sides)
    return nsd.item(), hd95.item()


def within_box(pair: Masks) -> Masks:
    box = find_objects((pair[0] | pair[1]).astype(np.uint8))[0]
    return np.ascontiguousarray(pair[0][box]), np.ascontiguousarray(pair[1][box])


def small() -> Iterator[Masks]:
    for seed in range(130):
        yield organs((35, 50, 35), (9, 17, 8), seed)


def noise() -> Iterator[Masks]:
    prediction, reference = organs((35, 50, 35), (9, 17, 8), 0)
    yield np.random.default_rng(0).random(prediction.shape) < 0.3, reference


def balls(first: float, second: float, shift: int) -> Iterator[Masks]:
    shape = (200, 200, 200)
    yield depth(shape, (first,) * 3) > 0, np.roll(depth(shape, (second,) * 3) > 0, shift, 0)


def large(specks: float = 0) -> Iterator[Masks]:
    prediction, reference = organs((330, 280, 260), (150, 125, 115), 0)
    yield prediction | (np.random.default_rng(1).random(prediction.shape) < specks), reference


def moved(folder: Path) -> Iterator[Masks]:
    for path in sorted(folder.glob("*.nii.gz")):
        labels = read_volume(path).array
        for value in np.unique(labels[labels > 0]):
            yield np.roll(labels == value, (1, -1), (0, 2)), labels == value


def organs(shape: Sequence[int], radii: Sequence[float], seed: int) -> Masks:
    """An ellipsoid with bumps of a voxel or two, and the same with bumps half as high again."""
    bumps = gaussian_filter(np.random.default_rng(seed).standard_normal(shape, np.float32), 2)
    bumps /= bumps.std()
    smooth = depth(shape, radii) * min(radii)
    return smooth + 1.5 * bumps > 0, smooth + bumps > 0


def depth(shape: Sequence[int], radii: Sequence[float]) -> np.ndarray:
    """1 in the middle, 0 at an ellipsoid's surface, negative outside."""
    axes = [((np.arange(n) - (n - 1) / 2) / radius) ** 2 for n, radius in zip(shape, radii, strict=True)]
    x, y, z = np.ix_(*axes)
    return (1 - np.sqrt(x + y + z)).astype(np.float32)


if __name__ == "__main__":
    main()
