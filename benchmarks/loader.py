"""Cost of a random 96^3 crop from stores of 1, 10 and 100 scans of 512 x 512 x 300 voxels.

Each row is measured in a process of its own, on one core, twice over the same crops: first with the files
evicted from the page cache ("cold"), then with the crops' blocks in it ("warm"). CPU time is reported too,
for busy machines. Needs 7 GB for 100 scans.

    python benchmarks/loader.py [--workdir FOLDER] [--out FILE.json]
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dae3d.scans.manifest import Scan
from dae3d.scans.readers import Volume
from dae3d.store.index import INDEX, IndexHeader, read_index, write_index
from dae3d.store.scan import PARTIAL, SCANS, Preparation, StoredScan, write_scan
from dae3d.store.source import Stamp
from dae3d.store.statistics import measure
from dae3d.store.store import Store

SHAPE = (512, 512, 300)
ROI = (96, 96, 96)
SPACING = (0.7, 0.7, 1.0)
DISTINCT = 3
PREPARATION = Preparation(spacing=None, crop_foreground=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="where to make the stores (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--scans", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--crops", type=int, default=300, help="crops measured in each row")
    parser.add_argument("--step", choices=["make", "row"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "make":
        make_store(options.workdir, options.scans[0])
    elif options.step == "row":
        print(json.dumps(row(options.workdir, options.scans[0], options.crops)))
    elif options.workdir:
        run(options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            options.workdir = Path(folder)
            run(options)


def run(options: argparse.Namespace) -> None:
    """Make the largest store, then measure each row on the first of its scans."""
    # Each step is a process of its own, because peak memory is counted from the start of a process.
    step(options, "make", max(options.scans))
    rows = [step(options, "row", number) for number in options.scans]
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n" + "|---:" * len(names) + "|")
    for figures in rows:
        print("| " + " | ".join(f"{figures[name]:.4g}" for name in names) + " |")
    if options.out:
        options.out.write_text(json.dumps({"shape": SHAPE, "roi": ROI, "rows": rows}, indent=1) + "\n")


def step(options: argparse.Namespace, name: str, number: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", name, "--workdir", str(options.workdir)]
    command += ["--scans", str(number), "--crops", str(options.crops)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout or "{}")


def row(store: Path, number: int, crops: int) -> dict[str, float]:
    """Read random crops from the first scans of a store, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    scans = list(read_index(store))[:number]
    part = store / f"first-{number}"
    (part / SCANS).mkdir(parents=True, exist_ok=True)
    write_index(part / INDEX, IndexHeader(preparation=PREPARATION, scans=len(scans)), scans)
    for scan in scans:
        link = part / SCANS / scan.file
        link.unlink(missing_ok=True)
        link.hardlink_to(store / SCANS / scan.file)
        forget(link)
    read_crops(Store(part), 5, seed=1)
    before = resident()
    cold = read_crops(Store(part), crops, seed=0)
    processor = time.process_time()
    warm = read_crops(Store(part), crops, seed=0)
    processor = time.process_time() - processor
    return {
        "scans": number,
        "store (MB)": sum(scan.stored_stamp.bytes for scan in scans if scan.stored_stamp) / 1e6,
        "cold (crops/s)": crops / cold,
        "warm (crops/s)": crops / warm,
        "warm (CPU ms/crop)": processor / crops * 1e3,
        "peak RSS (MB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "RSS growth (MB)": (resident() - before) / 1e6,
    }


def read_crops(store: Store, crops: int, seed: int) -> float:
    """Seconds for so many random crops, drawn and scaled as training draws and scales them."""
    random = np.random.default_rng(seed)
    began = time.perf_counter()
    for _ in range(crops):
        number = int(random.integers(len(store.scans)))
        x, y, z = (int(random.integers(n - r + 1)) for n, r in zip(SHAPE, ROI, strict=True))
        store.read_padded(number, (x, y, z), ROI)
    return time.perf_counter() - began


def forget(path: Path) -> None:
    """Evict a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident() -> int:
    """Memory of this process now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def make_store(store: Path, number: int) -> None:
    """Write a few synthetic scans straight into a store, and copies of them for the rest."""
    for folder in (SCANS, PARTIAL):
        (store / folder).mkdir(parents=True, exist_ok=True)
    originals = [write_original(store, seed) for seed in range(min(DISTINCT, number))]
    scans = originals + [copied(store, originals[i % DISTINCT], i) for i in range(DISTINCT, number)]
    write_index(store / INDEX, IndexHeader(preparation=PREPARATION, scans=len(scans)), scans)


def write_original(store: Path, seed: int) -> StoredScan:
    volume = Volume(synthetic_ct(seed), np.diag([*SPACING, 1.0]))
    name = f"{seed:03}"
    scan = StoredScan(
        file=f"{name}.b2nd",
        source=Scan(
            path=Path(f"synthetic-{name}.nii.gz"),
            modality="ct",
            subject=name,
            dataset="synthetic",
            split="train",
            shape=SHAPE,
            spacing=SPACING,
            dtype="int16",
            orientation="RAS",
        ),
        source_stamp=Stamp(bytes=0, mtime_ns=0),
        preparation=PREPARATION,
        shape=SHAPE,
        spacing=SPACING,
        affine=volume.affine.tolist(),
        dtype="int16",
        slope=1.0,
        intercept=0.0,
        statistics=measure(volume),
    )
    return write_scan(store, volume.array, scan)


def copied(store: Path, original: StoredScan, number: int) -> StoredScan:
    name = f"{number:03}"
    file = shutil.copy(store / SCANS / original.file, store / SCANS / f"{name}.b2nd")
    source = original.source.model_copy(update={"path": Path(f"synthetic-{name}.nii.gz"), "subject": name})
    return original.model_copy(
        update={"file": Path(file).name, "source": source, "stored_stamp": Stamp.of([Path(file)])}
    )


def synthetic_ct(seed: int) -> np.ndarray:
    """A trunk in HU: air, fat and muscle with smooth variation, two lungs, a spine, and scanner noise."""
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij", sparse=True
    )
    volume = np.full(SHAPE, -1000, np.float32)
    volume[(x / 0.85) ** 2 + (y / 0.6) ** 2 + 0 * z < 1] = -90
    volume[(x / 0.78) ** 2 + (y / 0.53) ** 2 + 0 * z < 1] = 50
    for side in (-0.4, 0.4):
        volume[((x - side) / 0.27) ** 2 + (y / 0.4) ** 2 + (z / 0.8) ** 2 < 1] = -850
    volume[(x / 0.1) ** 2 + ((y + 0.35) / 0.1) ** 2 + 0 * z < 1] = 400
    for _ in range(8):
        phase, waves = random.uniform(0, 6), random.uniform(3, 25, 3)
        volume += 12 * np.sin(waves[0] * x + phase) * np.sin(waves[1] * y) * np.sin(waves[2] * z + phase)
    for plane in volume:
        plane += random.normal(0, 20, plane.shape).astype(np.float32)
    return np.rint(volume.clip(-1024, 3071)).astype(np.int16)


if __name__ == "__main__":
    main()
