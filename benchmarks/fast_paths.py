"""What each fast path of the layers brings on this processor: a training step with it and without it.

    python benchmarks/fast_paths.py [--backbone resenc] [--size standard] [--precision bf16]

In every round a step is taken with all paths and one without each path, so that other load on the machine
affects all alike. Prints how many per cent longer a step is without the path: the median and the range of the
rounds.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch import Tensor

from dae3d.models.backbones import BACKBONES, NetworkSettings
from dae3d.models.kernels import norm
from dae3d.models.kernels.convolution import Convolution
from dae3d.models.kernels.native_norm import NativeNorm
from dae3d.models.network import RepairNetwork
from dae3d.models.swin_unetr.encoder import PatchMerging
from dae3d.training.cpu import keep_freed_memory

SIZES: dict[tuple[str, str], dict[str, Any]] = {
    ("swin-unetr", "small"): {"embed_dim": 12, "heads": (1, 2, 4, 8), "window": 4},
    ("swin-unetr", "standard"): {},
    ("resenc", "small"): {"size": "small"},
    ("resenc", "standard"): {"size": "standard"},
}
SHAPES = {"small": ((64, 64, 64), 4), "standard": ((64, 64, 64), 1)}


def _convolved_by_pytorch(which: Callable[[Convolution, Tensor], bool]) -> AbstractContextManager[object]:
    ours = Convolution._convolved

    def convolved(self: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if which(self, weight):
            return self._conv_forward(x.contiguous(memory_format=torch.channels_last_3d), weight, bias)
        return ours(self, x, weight, bias)

    return mock.patch.object(Convolution, "_convolved", convolved)


def _pointwise(layer: Convolution, weight: Tensor) -> bool:
    return set(layer.kernel_size) | set(layer.stride) == {1}


def _single_channel(layer: Convolution, weight: Tensor) -> bool:
    return weight.shape[1] == 1 and not _pointwise(layer, weight)


def _concatenated() -> AbstractContextManager[object]:
    ours = Convolution.forward
    return mock.patch.object(Convolution, "forward", lambda self, *parts: ours(self, torch.cat(parts, dim=1)))


@contextlib.contextmanager
def _contiguous() -> Iterator[None]:
    with mock.patch.object(Convolution, "_convolved", Convolution._conv_forward), _pytorch_norms():
        yield


def _pytorch_norms() -> AbstractContextManager[object]:
    return mock.patch.object(norm, "_implementation", return_value=NativeNorm)


WITHOUT: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "1 x 1 convolutions in planes": lambda: _convolved_by_pytorch(_pointwise),
    "convolutions of one channel in planes": lambda: _convolved_by_pytorch(_single_channel),
    "split inputs not concatenated": _concatenated,
    "norms in passes of their own": _pytorch_norms,
    "patch merging with one copy": lambda: mock.patch.object(PatchMerging, "forward", PatchMergingV2.forward),
    "channels-last convolutions and norms": _contiguous,
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", choices=list(BACKBONES), default="swin-unetr")
    parser.add_argument("--size", choices=list(SHAPES), default="small")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    (roi, crops), settings = SHAPES[given.size], NetworkSettings(**SIZES[given.backbone, given.size])
    architecture = BACKBONES[given.backbone].of(settings, roi, (1.0, 1.0, 1.0))
    network = RepairNetwork(architecture).to(memory_format=torch.channels_last_3d)
    image = torch.randn(crops, 1, *roi)

    def seconds() -> float:
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bf16"):
            loss = (network(image) - image).abs().mean()
        loss.backward()
        network.zero_grad()
        return time.perf_counter() - started

    times: dict[str, list[float]] = {name: [] for name in ["", *WITHOUT]}
    for _ in range(given.rounds + 1):  # the first is not counted
        for name, measured in times.items():
            with WITHOUT[name]() if name else contextlib.nullcontext():
                measured.append(seconds())
    whole = statistics.median(times[""][1:])
    print(f"{given.backbone}, {given.size}, {given.precision}: {whole:.3f} s a step with all paths")
    print("| without | % longer | rounds |\n|---|---:|---|")
    for name in WITHOUT:
        ratios = [100 * (a / b - 1) for a, b in zip(times[name][1:], times[""][1:], strict=True)]
        print(f"| {name} | {statistics.median(ratios):+.1f} | {min(ratios):+.0f} to {max(ratios):+.0f} |")


if __name__ == "__main__":
    main()
