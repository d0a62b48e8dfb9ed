"""Memory of each loader process of `pretrain`, after so many crops of 96^3, on Linux.

Private memory is what each process costs; what is resident also counts libraries, which all share.

    python benchmarks/loader_memory.py STORE [STORE ...] [--crops 300]
"""

import argparse
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import dae3d
from dae3d.training.data import CropLoaders, training_data
from dae3d.training.settings import PretrainSettings

WORKERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--crops", type=int, default=300, help="of each process")
    options = parser.parse_args()
    _ = dae3d.pretrain  # imports what a run has imported when its loader processes start
    print("| scans | process | private (MiB) | resident (MiB) | resident at most (MiB) |")
    print("|---:|---:|---:|---:|---:|")
    for store in options.stores:
        settings = PretrainSettings(data=store, out=store, workers=WORKERS)
        loaders: Any = CropLoaders(training_data(settings, 1), settings)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        loaders.trainer = SimpleNamespace(
            strategy=strategy, num_devices=1, global_step=0, global_rank=0, world_size=1
        )
        batches: Any = iter(loaders.train_dataloader())
        for _ in range(WORKERS * options.crops // settings.batch_size):
            next(batches)
        for number, process in enumerate(batches._workers):
            figures = " | ".join(f"{value:.0f}" for value in memory(process.pid))
            print(f"| {len(loaders.data.store.scans)} | {number} | {figures} |", flush=True)
        del batches


def memory(pid: int) -> tuple[float, float, float]:
    """Private and resident now, and resident at most, in MiB."""
    now = Path(f"/proc/{pid}/smaps_rollup").read_text()
    ever = Path(f"/proc/{pid}/status").read_text()
    private = sum(int(kib) for kib in re.findall(r"Private_\w+:\s+(\d+)", now))
    resident = re.findall(r"Rss:\s+(\d+)", now) + re.findall(r"VmHWM:\s+(\d+)", ever)
    return private / 1024, int(resident[0]) / 1024, int(resident[1]) / 1024


if __name__ == "__main__":
    main()
