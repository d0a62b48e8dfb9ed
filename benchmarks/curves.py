"""Loss curves with dae3d's blocks and with MONAI's, on the same parameters and crops.

Runs `pretrain` of the `small-cpu` network, each path in a process of its own:

    plain    MONAI's Swin stages and convolution blocks, in the contiguous layout
    nudged   the same, with every weight larger by one unit in the last place: the effect of rounding alone
    fast     dae3d unchanged

A complete run is not repeated, a stopped one continues. Draws benchmarks/curves.png.

    python benchmarks/curves.py STORE [--out curves] [--steps 300] [--batch-size 4]
"""

import argparse
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
import numpy as np
import torch
from monai.networks.nets.swin_unetr import BasicLayer, PatchMergingV2

import dae3d
from dae3d.metrics import read_metrics
from dae3d.models.network import RepairNetwork
from dae3d.models.swin_unetr import decoder, encoder
from dae3d.models.swin_unetr.stage import SwinStage
from dae3d.store.store import Store
from dae3d.training import pretraining

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PATHS = {"plain": "MONAI's blocks", "nudged": "MONAI's blocks, weights nudged", "fast": "dae3d's blocks"}
PICTURE = Path(__file__).with_suffix(".png")
METRICS = ("train/loss", "val/l1", "val/contrastive")
SMOOTHED = 15  # steps

Curve = tuple[np.ndarray, np.ndarray]


class PlainSwinUNETR(RepairNetwork):
    """Our parameters in MONAI's and PyTorch's modules, in the contiguous layout."""

    nudge = 0.0

    def __init__(self, *arguments: Any) -> None:
        with ExitStack() as patched:
            for module in (encoder, decoder):
                patched.enter_context(mock.patch.object(module, "with_our_layers", lambda block: block))
            super().__init__(*arguments)
        # Values that are overwritten must not draw random numbers that ours would not draw.
        with torch.random.fork_rng():
            for name, module in list(self.named_modules()):
                if isinstance(module, SwinStage):
                    self.set_submodule(name, monai_stage(module))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(1 + self.nudge)

    def to(self, *arguments: Any, memory_format: Any = None, **options: Any) -> Any:
        return super().to(*arguments, **options)


def monai_stage(ours: SwinStage) -> BasicLayer:
    block = ours.blocks[0]
    theirs = BasicLayer(
        dim=block.norm1.normalized_shape[0],
        depth=len(ours.blocks),
        num_heads=block.attn.heads,
        window_size=(ours.window,) * 3,
        drop_path=[0.0] * len(ours.blocks),
        qkv_bias=True,
        downsample=PatchMergingV2,
    )
    theirs.load_state_dict(ours.state_dict())
    return theirs


def train(path: str, store: Path, out: Path, steps: int, batch_size: int) -> None:
    if path != "fast":
        PlainSwinUNETR.nudge = torch.finfo(torch.float32).eps if path == "nudged" else 0.0
        pretraining.RepairNetwork = PlainSwinUNETR
    modalities = {scan.modality for scan in Store(store).scans}
    dae3d.pretrain(
        config="small-cpu",
        data=store,
        out=out / path,
        resume=True,
        max_steps=steps,
        batch_size=batch_size,
        modality_weights=dict.fromkeys(sorted(modalities), 1),
        log_every=1,
        accelerator="cpu",
    )


def curve(run: Path, metric: str) -> Curve:
    rows, _ = read_metrics(run / "metrics.csv")
    # Of steps that a stopped run repeated, the last row counts.
    values = {step: value for step, name, value in rows if name == metric}
    steps = sorted(values)
    return np.array(steps), np.array([values[step] for step in steps])


def smoothed(values: np.ndarray) -> np.ndarray:
    """Means over `SMOOTHED` steps, fewer at the ends."""
    ones = np.ones(SMOOTHED)
    return np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")


def differences(curves: dict[str, Curve], path: str, smooth: bool) -> Curve:
    """Relative differences to the plain path, in percent."""
    (steps, values), (_, plain) = curves[path], curves["plain"]
    if smooth:
        values, plain = smoothed(values), smoothed(plain)
    return steps, 100 * abs(values - plain) / plain


def draw(training: dict[str, Curve], validation: dict[str, Curve]) -> None:
    plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    widths = {"height_ratios": (2.4, 1)}
    figure, axes = plt.subplots(
        2, 2, figsize=(8.4, 4.8), sharex=True, gridspec_kw=widths, layout="constrained"
    )
    styles = {
        "plain": {"color": "#f2b26b", "linewidth": 5},
        "nudged": {"color": "#8c8c8c", "linewidth": 1.6, "linestyle": (0, (2, 1.5))},
        "fast": {"color": "#1f4e9c", "linewidth": 1.2},
    }
    titles = (f"training loss, means of {SMOOTHED} steps", "validation: L1 of the averaged weights")
    for column, (title, curves) in enumerate(zip(titles, (training, validation), strict=True)):
        losses, apart = axes[0, column], axes[1, column]
        smooth = curves is training
        for path, (steps, values) in curves.items():
            style = styles[path] | (
                {} if smooth else {"marker": "o", "markersize": styles[path]["linewidth"] + 2}
            )
            losses.plot(steps, smoothed(values) if smooth else values, label=PATHS[path], **style)
            if path != "plain":
                apart.plot(*differences(curves, path, smooth), **style)
        losses.set_title(title, loc="left", fontsize=9, fontweight="bold")
        apart.set_xlabel("step")
        apart.set_ylim(bottom=0)
    axes[0, 0].legend(frameon=False)
    axes[1, 0].set_ylabel("% difference from\nMONAI's blocks")
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, default=Path("curves"), help="folder for the runs")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--path", choices=PATHS, help="train only this one, in this process")
    arguments = parser.parse_args()
    if arguments.path:
        train(arguments.path, arguments.store, arguments.out, arguments.steps, arguments.batch_size)
        return
    for path in PATHS:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--path", path], check=True)
    curves = {name: {path: curve(arguments.out / path, name) for path in PATHS} for name in METRICS}
    draw(curves["train/loss"], curves["val/l1"])
    print("| % difference from MONAI's blocks: mean, maximum | " + " | ".join(METRICS) + " |")
    print("|---|" + "---:|" * len(METRICS))
    for path in ("nudged", "fast"):
        apart = [differences(curves[name], path, name.startswith("train"))[1] for name in METRICS]
        cells = [f"{values.mean():.3f}, {values.max():.3f}" for values in apart]
        print(f"| {PATHS[path]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
