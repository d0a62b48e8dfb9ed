"""Share of a step on many GPUs spent waiting for others, calculated because no GPU was available.

Measured here, on one batch: the sizes of the network's gradients, and when in the backward pass each is
ready. Assumed: the links below, and the time of a GPU's own work.

    python benchmarks/scaling_model.py [--embed-dim 48] [--roi 96] [--bf16-gradients]
"""

import argparse
import math
import time
from dataclasses import dataclass

import torch

from dae3d.benchmarking.communication import step_traffic
from dae3d.models.network import RepairNetwork
from dae3d.settings import resolve
from dae3d.training.pretrain_settings import PretrainSettings

FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes, DDP's defaults
BACKWARD = 2 / 3  # of a step's own work
BATCH, MODALITIES = 4, 8
STEPS = (0.1, 0.3)  # seconds of a GPU's own work


@dataclass(frozen=True)
class Cluster:
    """Nodes of eight GPUs; bandwidths in bytes/s between a node's GPUs and to other nodes."""

    name: str
    between: float
    within: float = 450e9
    used: float = 0.8  # of these bandwidths
    hop_within: float = 1e-6  # seconds
    hop_between: float = 10e-6

    def all_reduce(self, size: float, gpus: int) -> float:
        """Seconds by ring or by tree, whichever is faster; both are limited by the slowest link."""
        if gpus == 1:
            return 0
        nodes = math.ceil(gpus / 8)
        rate = self.used * (self.within if nodes == 1 else min(self.within, self.between))
        ring = 2 * (gpus - 1) / gpus * size / rate + 2 * self._around(gpus)
        deep = math.ceil(math.log2(nodes)) * self.hop_between + min(gpus, 8) * self.hop_within
        return min(ring, 2 * size / rate + 2 * deep)

    def all_gather(self, size: float, gpus: int) -> float:
        """Seconds by ring, `size` from each."""
        rate = self.used * (self.within if gpus <= 8 else min(self.within, self.between))
        return (gpus - 1) * size / rate + self._around(gpus)

    def _around(self, gpus: int) -> float:
        crossings = math.ceil(gpus / 8) if gpus > 8 else 0
        return (gpus - 1 - crossings) * self.hop_within + crossings * self.hop_between


CLUSTERS = (
    Cluster("400 Gbit/s a node", 50e9),
    Cluster("400 Gbit/s a GPU", 8 * 50e9),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--embed-dim", type=int, default=48)
    parser.add_argument("--roi", type=int, default=96)
    parser.add_argument("--bf16-gradients", action="store_true", help="as a compression hook would send them")
    arguments = parser.parse_args()
    given = {"data": "none", "out": "none", "embed_dim": arguments.embed_dim, "batch_size": BATCH}
    settings = resolve(PretrainSettings, given)
    traffic = step_traffic(settings, MODALITIES)
    buckets = in_buckets(when_ready(settings, arguments.roi))
    if arguments.bf16_gradients:
        buckets = [(ready, size / 2) for ready, size in buckets]
    print("| gradients ready (share of the backward pass) | bytes |\n|---:|---:|")
    for ready, size in buckets:
        print(f"| {ready:.2f} | {size:,.0f} |")
    print(f"\ngradients {traffic.gradients:,} bytes, features of a rank {traffic.features:,} bytes\n")
    columns = " | ".join(f"waiting at {1000 * step:.0f} ms (ms) | of ideal" for step in STEPS)
    print(f"| links | GPUs | all-reduce, alone (ms) | gather (ms) | {columns} |")
    print("|---|---:|---:|---:|" + "---:|---:|" * len(STEPS))
    for cluster in CLUSTERS:
        for gpus in (8, 64, 256, 1000):
            reduce = sum(cluster.all_reduce(size, gpus) for _, size in buckets)
            gather = cluster.all_gather(traffic.features, gpus)
            cells = []
            for step in STEPS:
                waiting = gather + exposed(buckets, cluster, gpus, BACKWARD * step)
                cells.append(f"{1000 * waiting:.2f} | {step / (step + waiting):.3f}")
            figures = f"{1000 * reduce:.1f} | {1000 * gather:.2f} | {' | '.join(cells)}"
            print(f"| {cluster.name} | {gpus} | {figures} |")


def when_ready(settings: PretrainSettings, roi: int) -> list[tuple[float, int]]:
    """Share of the backward pass after which each parameter's gradient is ready, and its bytes."""
    torch.manual_seed(0)
    network = RepairNetwork(settings.architecture()).to(memory_format=torch.channels_last_3d)
    network.encoder.mask_token.requires_grad_(False)
    ready: list[tuple[float, int]] = []
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda p: ready.append((time.perf_counter(), 4 * p.numel()))
            )
    image = torch.rand(1, 1, roi, roi, roi)
    for _ in range(2):  # the first allocates memory
        ready.clear()
        loss = torch.nn.functional.l1_loss(network(image), image)
        start = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
    return [((moment - start) / (end - start), size) for moment, size in ready]


def in_buckets(ready: list[tuple[float, int]]) -> list[tuple[float, float]]:
    """DDP's buckets in the order in which they are sent: each when its last gradient is ready."""
    buckets: list[tuple[float, float]] = []
    held = 0
    for i, (moment, size) in enumerate(ready):
        held += size
        if held >= (BUCKET if buckets else FIRST_BUCKET) or i == len(ready) - 1:
            buckets.append((moment, held))
            held = 0
    return buckets


def exposed(buckets: list[tuple[float, float]], cluster: Cluster, gpus: int, backward: float) -> float:
    """Seconds from the end of the backward pass to that of the last bucket; they are sent one by one."""
    free = 0.0
    for ready, size in buckets:
        free = max(free, ready * backward) + cluster.all_reduce(size, gpus)
    return max(0.0, free - backward)


if __name__ == "__main__":
    main()
