"""Time and peak memory of `dae3d index` on many scans, and of loading and shuffling the manifest.

The scans are sparse NIfTI files, which take no disk space, with the four sequences of each subject in one
folder. Every row is a process of its own; its peak memory includes imported libraries.

    python benchmarks/index_scale.py [--scans 200000] [--folder FOLDER]
"""

import argparse
import importlib
import math
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import nibabel
import numpy as np

SEQUENCES = ("T1w", "T2w", "FLAIR", "ct")
SHAPE = (64, 64, 48)
VOXELS = 2 * math.prod(SHAPE)  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scans", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="where the files are made; otherwise a temporary folder")
    arguments = parser.parse_args()
    print("| scans | what | seconds | peak RSS (MB) |\n|---:|---|---:|---:|")
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        data, out = Path(name, "data"), Path(name, "manifest.jsonl")
        write_headers(data, arguments.scans)
        for title, step in STEPS.items():
            seconds, peak = measured(step, data, out)
            print(f"| {arguments.scans} | {title} | {seconds:.1f} | {peak:.0f} |", flush=True)


def write_headers(data: Path, scans: int) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header.set_sform(np.diag([1.0, 1.0, 2.0, 1.0]), code="scanner")
    content = header.binaryblock + bytes(4)
    for number in range(scans):
        subject = f"sub-{number // len(SEQUENCES):06d}"
        folder = data / f"site{number % 40_000 // 4_000}" / subject
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{subject}_{SEQUENCES[number % len(SEQUENCES)]}.nii"
        path.write_bytes(content)
        os.truncate(path, len(content) + VOXELS)


def measured(step: Callable[[Path, Path], None], data: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak memory (MB) of a step in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_here, step, data, out).result()


def measure_here(step: Callable[[Path, Path], None], data: Path, out: Path) -> tuple[float, float]:
    start = time.perf_counter()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        step(data, out)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def only_import(data: Path, out: Path) -> None:
    importlib.import_module("dae3d.commands.index")


def index(data: Path, out: Path) -> None:
    import dae3d

    dae3d.index(folders=[data], out=out)


def load(data: Path, out: Path) -> None:
    from dae3d.scans.manifest import Manifest

    Manifest.load(out)


def shuffle(data: Path, out: Path) -> None:
    from dae3d.scans.manifest import Manifest

    scans = Manifest.load(out).scans
    order = list(range(len(scans)))
    random.Random(0).shuffle(order)
    for number in order:
        scans[number]


STEPS = {
    "import alone": only_import,
    "index": index,
    "index again, headers known": index,
    "load": load,
    "load, and read all in random order": shuffle,
}

if __name__ == "__main__":
    main()
