"""Seconds of a training step of the `small-cpu` network, with and without what `training/cpu.py` does.

Each row is a fresh process: the first layout, then the channels-last one, each with memory returned to the
system as the C library does by default, and kept.

    python benchmarks/step.py [--batch-size 4] [--steps 8]
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch

from dae3d.models.swin_unetr import SwinUNETR
from dae3d.settings import resolve
from dae3d.training.cpu import keep_freed_memory
from dae3d.training.settings import PretrainSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(measure(*arguments.row, arguments.batch_size, arguments.steps))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {arguments.batch_size}, 64^3")
    print("| layout | freed memory | seconds a step (median) |\n|---|---|---:|")
    for layout in ("contiguous", "channels-last"):
        for memory in ("returned", "kept"):
            command = [sys.executable, __file__, "--row", layout, memory]
            command += ["--batch-size", str(arguments.batch_size), "--steps", str(arguments.steps)]
            seconds = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            print(f"| {layout} | {memory} | {seconds} |", flush=True)


def measure(layout: str, memory: str, batch_size: int, steps: int) -> str:
    if memory == "kept":
        keep_freed_memory()
    settings = resolve(PretrainSettings, {"config": "small-cpu", "data": "none", "out": "none"})
    torch.manual_seed(0)
    network = SwinUNETR(settings.architecture())
    if layout == "channels-last":
        network = network.to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(network.parameters())
    image = torch.rand(batch_size, 1, settings.roi, settings.roi, settings.roi)
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        torch.nn.functional.l1_loss(network(image), image).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return f"{statistics.median(seconds[1:]):.2f}"


if __name__ == "__main__":
    main()
