"""Overhead of `prepare` by number of scans: time and peak memory, without converting scans.

The scans of a generated manifest are empty files, and a stand-in for converting gives each the metadata of a
scan. Four rows for each number: everything is new; nothing has changed; the last of four shards, which merges
the index; a second manifest of as many scans is added. Each is measured in a process of its own.

    python benchmarks/prepare_scale.py [--scans 2000 200000] [--workdir FOLDER]
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import dae3d.commands.prepare as prepare_module
from dae3d.scans.manifest import Scan, write_manifest
from dae3d.scans.readers import Volume
from dae3d.store.convert import Outcome
from dae3d.store.scan import SCANS, Preparation, StoredScan, file_name
from dae3d.store.source import Stamp
from dae3d.store.statistics import measure

SHAPE, SPACING = (512, 512, 300), (0.7, 0.7, 1.0)
SHARDS = 4
STATISTICS = measure(Volume(np.arange(8**3, dtype=np.int16).reshape(8, 8, 8), np.eye(4)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scans", type=int, nargs="+", default=[2000, 200_000])
    parser.add_argument("--workdir", type=Path, help="default: a temporary folder")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measured(options.workdir, options.step)), file=sys.stderr)
        return
    print("| scans | run | time (s) | peak memory (MiB) |\n|---:|---|---:|---:|")
    for number in options.scans:
        with tempfile.TemporaryDirectory(dir=options.workdir) as folder:
            make_manifest(Path(folder), number)
            for shard in range(SHARDS - 1):
                step(folder, f"{shard}/{SHARDS}")
            for name, words in (
                ("new", "all"),
                ("again", "all"),
                ("last shard", f"{SHARDS - 1}/{SHARDS}"),
                ("added", "added"),
            ):
                row = step(folder, words)
                print(f"| {number} | {name} | {row['seconds']:.1f} | {row['peak']:.0f} |", flush=True)


def step(folder: str, name: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", name, "--workdir", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stderr.splitlines()[-1])


def make_manifest(folder: Path, number: int) -> None:
    for name, scans in (("manifest.jsonl", "scans"), ("added.jsonl", "added")):
        (folder / scans).mkdir()
        write_manifest(folder / name, number, empty_scans(folder / scans, number), ())


def empty_scans(folder: Path, number: int) -> Iterator[Scan]:
    for i in range(number):
        path = folder / f"sub-{i:06}_ses-1_acq-standard_ct.nii.gz"
        path.touch()
        yield Scan(
            path=path,
            modality="ct",
            subject=f"sub-{i:06}",
            dataset="generated",
            split="train",
            shape=SHAPE,
            spacing=SPACING,
            dtype="int16",
            orientation="LPS",
        )


def measured(folder: Path, name: str) -> dict[str, float]:
    """Run `prepare` on the manifest in `folder`, whole or one shard, or on the second one."""
    prepare_module.convert = stand_in
    # A worker process would have the real one.
    prepare_module.work_through = lambda items, run, *_: (run(item) for item in items)
    shard = name if "/" in name else None
    manifest = folder / ("added.jsonl" if name == "added" else "manifest.jsonl")
    out = folder / ("store" if shard is None else "shards")
    began = time.perf_counter()
    prepare_module.prepare(manifest=manifest, out=out, shard=shard, workers=1, report=False)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def stand_in(scan: Scan, preparation: Preparation, store: Path, partial: str) -> Outcome:
    file = store / SCANS / file_name(scan)
    file.touch()
    stored = StoredScan(
        file=file.name,
        stored_stamp=Stamp.of([file]),
        source=scan.model_copy(update={"digest": hashlib.sha256(scan.name.encode()).hexdigest()}),
        source_stamp=Stamp.of([scan.path]),
        preparation=preparation,
        shape=SHAPE,
        spacing=SPACING,
        affine=np.eye(4).tolist(),
        dtype="int16",
        slope=1,
        intercept=0,
        statistics=STATISTICS,
        voxel_digest="0" * 32,
    )
    return Outcome(scan.name, file.name, stored, written=True)


if __name__ == "__main__":
    main()
