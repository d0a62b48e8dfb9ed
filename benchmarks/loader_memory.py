"""Memory of each loader process of `pretrain` after a number of crops of 96^3, on Linux.

Private memory is the cost of each process; resident memory also counts shared libraries.

    python benchmarks/loader_memory.py STORE [STORE ...] [--crops 300]
"""

import argparse
import re
from pathlib import Path

import dae3d
from dae3d.benchmarking.loader import batches
from dae3d.store.store import Store

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
        arriving = batches(str(store), 96, WORKERS)
        received = 0
        while received < WORKERS * options.crops:
            received += len(next(arriving).parts)
        for number, process in enumerate(arriving._workers):
            figures = " | ".join(f"{value:.0f}" for value in memory(process.pid))
            print(f"| {len(Store(store).scans)} | {number} | {figures} |", flush=True)
        del arriving


def memory(pid: int) -> tuple[float, float, float]:
    """Private, resident and peak resident memory, in MiB."""
    now = Path(f"/proc/{pid}/smaps_rollup").read_text()
    ever = Path(f"/proc/{pid}/status").read_text()
    private = sum(int(kib) for kib in re.findall(r"Private_\w+:\s+(\d+)", now))
    resident = re.findall(r"Rss:\s+(\d+)", now) + re.findall(r"VmHWM:\s+(\d+)", ever)
    return private / 1024, int(resident[0]) / 1024, int(resident[1]) / 1024


if __name__ == "__main__":
    main()
