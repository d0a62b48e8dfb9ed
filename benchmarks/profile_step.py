"""Profile of a training step: MONAI's SwinUNETR as a user would train it, and dae3d's.

Forward, L1 loss, backward and AdamW in float32, each network in a process of its own. PyTorch's profiler
gives the self time of every operation, on a GPU that of the kernels it starts. Draws benchmarks/profile.png.
On a CPU dae3d keeps freed memory, as in training; with --keep MONAI's process does so too.

    python benchmarks/profile_step.py [--embed-dim 12] [--heads 1 2 4 8] [--window 4] [--roi 64]
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from monai.networks.nets import swin_unetr as monai_swin
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from dae3d.models.kernels import norm
from dae3d.models.network import RepairNetwork
from dae3d.models.swin_unetr import SwinArchitecture, stage
from dae3d.training.cpu import keep_freed_memory
from dae3d.training.record import cpu_name

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PICTURE = Path(__file__).with_name("profile.png")

# Kinds of operation by name. The name takes precedence over the calling module, except for linear layers.
NORMS, LINEAR = "norms", "linear layers"
NAMED = {
    "convolutions": ("convolution", "conv_transpose", "conv3d"),
    LINEAR: ("aten::addmm", "aten::mm"),
    "attention: products": ("aten::bmm", "aten::baddbmm", "scaled_dot_product", "flash_attention"),
    NORMS: ("layer_norm", "batch_norm"),
    "copies, concatenation, gathers": (
        "aten::copy_",
        "aten::cat",
        "aten::roll",
        "aten::index",
        "aten::_index_put_impl_",
        "aten::constant_pad_nd",
        "aten::repeat",
    ),
}
# Kinds by calling module; its backward operations are found by autograd's sequence numbers.
SCORES = "attention: softmax, bias, mask"
SURROUNDINGS = {
    SCORES: (stage.WindowAttention, monai_swin.WindowAttention),
    NORMS: (norm.InstanceNorm, norm.NormActivation),
    LINEAR: (nn.Linear,),
}
OPTIMISER = "optimiser"
REST = "activations, sums, the rest"


def kind(event: FunctionEvent, of_forward: dict[int, str]) -> str:
    """The kind of an operation.

    Args:
        event: from the profiler.
        of_forward: kind of the calling module, by autograd's sequence number of the forward operation.
    """
    called_by = list(ancestors(event))
    if any(parent.name.startswith("Optimizer.step") for parent in called_by):
        return OPTIMISER
    caller = REST
    for parent in called_by:
        if parent.name in SURROUNDINGS:
            caller = parent.name
            break
        if parent.name.startswith("autograd::engine::evaluate_function") and parent.sequence_nr in of_forward:
            caller = of_forward[parent.sequence_nr]
            break
    if caller == LINEAR:
        return caller
    for name, parts in NAMED.items():
        if any(part in event.name for part in parts):
            return name
    return caller


def ancestors(event: FunctionEvent) -> Iterable[FunctionEvent]:
    """The event and the events around it, the innermost first."""
    current: FunctionEvent | None = event
    while current is not None:
        yield current
        current = current.cpu_parent


def seconds_by_kind(events: Iterable[FunctionEvent], on_gpu: bool) -> dict[str, float]:
    """Seconds of all events, by kind."""
    events = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    of_forward: dict[int, str] = {}
    for event in events:
        for parent in ancestors(event):
            if event.sequence_nr >= 0 and parent.name in SURROUNDINGS:
                of_forward[event.sequence_nr] = parent.name
                break
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        seconds[kind(event, of_forward)] += spent / 1e6
    return seconds


def mark(surroundings: dict[str, tuple[type[nn.Module], ...]]) -> None:
    """Let the profiler see which of these modules is running."""

    def within(name: str, forward: Any) -> Any:
        def marked(*arguments: Any, **named: Any) -> Any:
            with record_function(name):
                return forward(*arguments, **named)

        return marked

    for name, modules in surroundings.items():
        for module in modules:
            module.forward = within(name, module.forward)


def measure(network: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds a step, by kind of operation."""
    torch.manual_seed(0)
    device = arguments.device
    on_gpu = device != "cpu"
    if not on_gpu and (network == "dae3d" or arguments.keep):
        keep_freed_memory()
    model = (ours if network == "dae3d" else monais)(arguments).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    image = torch.rand(arguments.batch_size, 1, *[arguments.roi] * 3, device=device)

    def step() -> None:
        nn.functional.l1_loss(model(image), image).backward()
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()

    step()
    step()
    mark(SURROUNDINGS)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(arguments.steps):
            step()
    seconds = seconds_by_kind(profiler.events(), on_gpu)
    return {name: value / arguments.steps for name, value in seconds.items()}


def ours(arguments: argparse.Namespace) -> nn.Module:
    architecture = SwinArchitecture(
        embed_dim=arguments.embed_dim, heads=tuple(arguments.heads), window=arguments.window
    )
    return RepairNetwork(architecture).to(memory_format=torch.channels_last_3d)


def monais(arguments: argparse.Namespace) -> nn.Module:
    return monai_swin.SwinUNETR(
        in_channels=1,
        out_channels=1,
        feature_size=arguments.embed_dim,
        num_heads=arguments.heads,
        window_size=arguments.window,
    )


def draw(before: dict[str, float], after: dict[str, float], title: str) -> None:
    kinds = sorted(before | after, key=lambda name: before.get(name, 0))
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for offset, colour, name, seconds in (
        (0.2, "#e08a3c", "MONAI", before),
        (-0.2, "#1f4e9c", "dae3d", after),
    ):
        values = [seconds.get(kind, 0.0) for kind in kinds]
        places = [place + offset for place in range(len(kinds))]
        label = f"{name}: {sum(values):.2f} s a step"
        bars = axes.barh(places, values, height=0.38, color=colour, label=label)
        axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize=8, color=colour)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("seconds a training step")
    axes.set_title(title, loc="left", fontsize=9)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--embed-dim", type=int, default=12)
    parser.add_argument("--heads", type=int, nargs=4, default=(1, 2, 4, 8))
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--roi", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="profiled, after two that are not")
    parser.add_argument("--keep", action="store_true", help="MONAI's process keeps freed memory too")
    parser.add_argument("--network", choices=("monai", "dae3d"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.network:
        print(json.dumps(measure(arguments.network, arguments)))
        return
    before, after = (
        json.loads(
            subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--network", network],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout.splitlines()[-1]
        )
        for network in ("monai", "dae3d")
    )
    device = cpu_name() if arguments.device == "cpu" else torch.cuda.get_device_name()
    title = (
        f"{arguments.batch_size} x {arguments.roi}^3, embedding {arguments.embed_dim}, window "
        f"{arguments.window}, float32\ntorch {torch.__version__}, {device}, {torch.get_num_threads()} threads"
    )
    draw(before, after, title)
    print(f"{title}\n\n| seconds a step | MONAI | dae3d |\n|---|---:|---:|")
    for name in sorted(before | after, key=lambda name: -before.get(name, 0)):
        print(f"| {name} | {before.get(name, 0):.3f} | {after.get(name, 0):.3f} |")
    print(f"| all | {sum(before.values()):.3f} | {sum(after.values()):.3f} |")


if __name__ == "__main__":
    main()
