"""Memory that a sample takes and moves in a training step on a GPU, calculated because no GPU was available.

`dae3d.planning.step_memory` counts the bytes of all tensors alive at once, and of the inputs and outputs of
operations; its docstring says what it assumes and leaves out. The growth from one sample to two is a
sample's, so that weights, their gradients and the optimiser cancel.

    python benchmarks/gpu_memory.py [--embed-dim 48] [--heads 3 6 12 24] [--window 7] [--roi 96]

`--check` runs MONAI's network in float32 on the CPU too, one sample and two, and compares.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional

from dae3d.benchmarking.model import make_network, training_step
from dae3d.benchmarking.process import in_new_process
from dae3d.planning.step_memory import Counted, as_on
from dae3d.store.boxes import Triple

# Name, MONAI's or ours, bf16, activation checkpointing
WAYS = (
    ("MONAI, float32", "monai", False, False),
    ("MONAI, float32, checkpointing", "monai", False, True),
    ("dae3d, float32", "dae3d", False, False),
    ("dae3d, bf16", "dae3d", True, False),
    ("dae3d, bf16, checkpointing", "dae3d", True, True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--embed-dim", type=int, default=48)
    parser.add_argument("--heads", type=int, nargs=4, default=[3, 6, 12, 24])
    parser.add_argument("--window", type=int, default=7)
    parser.add_argument("--roi", type=int, default=96)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    sizes = (given.embed_dim, tuple(given.heads), given.window)
    roi = (given.roi,) * 3
    print("| MiB per sample | kept for the backward pass | of MONAI's | peak | of MONAI's |", end="")
    print(" moved | of MONAI's |\n|---|---:|---:|---:|---:|---:|---:|")
    theirs = None
    for name, whose, bf16, thrifty in WAYS:
        one, two = (step(make_network(whose, *sizes, thrifty), n, roi, bf16) for n in (1, 2))
        found = [(b - a) / 2**20 for a, b in zip(one, two, strict=True)]
        theirs = theirs or found
        cells = [f"{mine:.0f} | {mine / their:.2f}" for mine, their in zip(found, theirs, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if given.check:
        one, two = (measured(*sizes, roi, n) for n in (1, 2))
        print(f"\nMONAI, float32, measured on the CPU: {(two - one) / 2**20:.0f} MiB per sample")


def step(model: nn.Module, batch: int, roi: Triple, bf16: bool) -> tuple[int, int, int]:
    """Bytes alive between forward and backward pass, at the peak, and moved."""
    model = model.to("meta")
    image = torch.empty(batch, 1, *roi, device="meta")
    with as_on("gpu", bf16), Counted() as counted:
        loss = functional.l1_loss(model(image).float(), image)
        kept = counted.alive()
        loss.backward()
    return kept, counted.peak, counted.moved


def measured(embed_dim: int, heads: tuple[int, int, int, int], window: int, roi: Triple, batch: int) -> float:
    """Peak memory in bytes of a process that takes steps with MONAI's network."""
    sizes = {"embed_dim": embed_dim, "heads": heads, "window": window, "roi": roi, "batch_size": batch}
    ways = {"bf16": False, "tuned": False, "checkpoint_activations": False, "compiled": False}
    done = in_new_process(training_step, network="monai", device="cpu", steps=1, **sizes, **ways)
    return done["peak_bytes"]


if __name__ == "__main__":
    main()
