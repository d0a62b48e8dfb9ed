"""Time and memory of `pretrain` up to its first training batch, by number of scans.

The scans of a store are hard links to a few stored files; its index is a real one. Each row is the command
in a process of its own, with a small network and two loader processes, timed from the start of the process
(including imports and the first validation), new and resumed.

    python benchmarks/startup.py [--scans 2000 200000] [--workdir FOLDER]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from dae3d.memory import peak_memory
from dae3d.scans.manifest import Scan
from dae3d.scans.readers import Volume
from dae3d.store.index import INDEX, IndexHeader, write_index
from dae3d.store.scan import PARTIAL, SCANS, Preparation, StoredScan, write_scan
from dae3d.store.source import Stamp
from dae3d.store.statistics import measure

SIDE, ORIGINALS = 48, 8  # a file has no more than 65,000 names on ext4
MODALITIES = ("ct", "flair", "t1", "t2")
PREPARATION = Preparation(spacing=None, crop_foreground=False)
SMALL = {
    "embed_dim": 4,
    "heads": (1, 1, 2, 2),
    "depths": (1, 1, 1, 1),
    "window": 2,
    "roi": 32,
    "batch_size": 4,
    "val_crops": 2,
    "warmup_steps": 1,
    "save_every": 1,
    "val_every": 10,
    "log_every": 1,
    "workers": 2,
    "accelerator": "cpu",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scans", type=int, nargs="+", default=[2000, 200_000])
    parser.add_argument("--workdir", type=Path, help="default: a temporary folder")
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        train(options.workdir, options.step)
        return
    print("| scans | run | to the first batch (s) | peak memory (MiB) |\n|---:|---|---:|---:|")
    for number in options.scans:
        with tempfile.TemporaryDirectory(dir=options.workdir) as folder:
            make_store(Path(folder, "store"), number)
            for steps, name in enumerate(("new", "resumed"), 1):
                row = first_batch(folder, steps)
                print(f"| {number} | {name} | {row['seconds']:.1f} | {row['peak']:.0f} |", flush=True)


def first_batch(folder: str, steps: int) -> dict[str, float]:
    """Run `pretrain` up to a step, in a process of its own."""
    command = [sys.executable, __file__, "--workdir", folder, "--step", str(steps)]
    began = time.time()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": told["time"] - began, "peak": told["peak"] / 2**20}


def train(folder: Path, steps: int) -> None:
    """Pre-train, and print when the first training batch came."""
    import dae3d
    from dae3d.training.pretraining import Pretraining

    step, came = Pretraining.training_step, []

    def timed(*given: Any) -> Any:
        came.append({"time": time.time(), "peak": peak_memory()})
        return step(*given)

    with patch.object(Pretraining, "training_step", timed):
        dae3d.pretrain(data=folder / "store", out=folder / "run", max_steps=steps, resume=steps > 1, **SMALL)
    print("\n" + json.dumps(came[0]))


def make_store(store: Path, number: int) -> None:
    for folder in (SCANS, PARTIAL):
        (store / folder).mkdir(parents=True)
    originals = [written(store, place) for place in range(min(ORIGINALS, number))]
    header = IndexHeader(preparation=PREPARATION, scans=number)
    write_index(store / INDEX, header, scans(store, originals, number))


def scans(store: Path, originals: list[StoredScan], number: int) -> Iterator[StoredScan]:
    yield from originals
    for place in range(len(originals), number):
        original = originals[place % len(originals)]
        file = store / SCANS / f"sub-{place:06}.b2nd"
        file.hardlink_to(store / SCANS / original.file)
        subject = {"path": Path(f"/data/sub-{place:06}.nii.gz"), "subject": f"sub-{place:06}"}
        update = {"split": "val" if place % 100 == 0 else "train", **subject}
        yield original.model_copy(
            update={"file": file.name, "source": original.source.model_copy(update=update)}
        )


def written(store: Path, number: int) -> StoredScan:
    array = np.random.default_rng(number).integers(0, 1000, (SIDE,) * 3).astype(np.int16)
    scan = StoredScan(
        file=f"original-{number}.b2nd",
        source=Scan(
            path=Path(f"/data/original-{number}.nii.gz"),
            modality=MODALITIES[number % len(MODALITIES)],
            subject=f"original-{number}",
            dataset="synthetic",
            split="train",
            shape=array.shape,
            spacing=(1, 1, 1),
            dtype="int16",
            orientation="RAS",
            digest="0" * 64,
        ),
        source_stamp=Stamp(bytes=0, mtime_ns=0),
        preparation=PREPARATION,
        shape=array.shape,
        spacing=(1, 1, 1),
        affine=np.eye(4).tolist(),
        dtype="int16",
        slope=1,
        intercept=0,
        statistics=measure(Volume(array, np.eye(4))),
        voxel_digest="0" * 32,
    )
    return write_scan(store, array, scan)


if __name__ == "__main__":
    main()
