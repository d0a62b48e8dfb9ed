"""The command `bench`: speed and memory of training, loading and prediction with dae3d and MONAI."""

import io
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import nibabel
import numpy as np
import torch
from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table

from dae3d.benchmarking.loader import (
    MONAI_DATASETS,
    crops_by_monai,
    crops_by_nnunet,
    crops_from_process,
    crops_from_store,
)
from dae3d.benchmarking.model import training_step
from dae3d.benchmarking.nnunet import write_nnunet_files
from dae3d.benchmarking.predict import segmentation
from dae3d.benchmarking.process import in_new_process
from dae3d.errors import SettingsError
from dae3d.files import refuse_other_file, write_text
from dae3d.inference.device import pick_device
from dae3d.inference.sliding import window_count
from dae3d.models.architecture import Size
from dae3d.models.swin_unetr import SwinArchitecture
from dae3d.phantom import phantom
from dae3d.settings import Positional, Settings, command
from dae3d.store.boxes import Roi
from dae3d.training.record import cpu_name, versions

Metrics = dict[str, float]
# A method and its metrics.
Measured = Iterator[tuple[str, Metrics]]

_MANY_WINDOWS = 100  # above this, the expected time is printed first
_SCANS = 4  # in the data set for measuring the loader


class BenchSettings(Settings):
    """Settings of `bench`."""

    what: Annotated[Literal["all", "model", "loader", "predict"], Positional()] = Field(
        "all", description="what to measure: all, model (a training step), loader (crops), predict (a scan)"
    )
    against: Literal["none", "monai", "library"] = Field(
        "none",
        description="also measure the counterpart, as in its documentation and tuned (channels-last layout, "
        "bf16, caching allocator, fused AdamW, flash attention): monai's of swin-unetr, that of nnU-Net's "
        "library of resenc (a training step only)",
    )
    backbone: Literal["swin-unetr", "resenc"] = Field("swin-unetr", description="network to measure")
    size: Size = Field("standard", description="of resenc, as for `pretrain`")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    embed_dim: int = Field(48, ge=12, multiple_of=12, description="channels of the tokens")
    heads: tuple[int, int, int, int] = Field((3, 6, 12, 24), description="attention heads of each stage")
    window: int = Field(7, ge=2, description="side of an attention window in tokens")
    roi: Roi = Field(
        (96, 96, 96),
        description="sides of a crop in voxels: one number, or three (right, anterior, superior), multiples "
        "of 32",
    )
    batch_size: int = Field(2, ge=1, description="crops per training step")
    steps: int = Field(5, ge=1, description="training steps measured, after three for warm-up")
    rounds: int = Field(1, ge=1, description="repetitions of all measurements, in turn; medians are shown")
    crops: int = Field(100, ge=1, description="crops measured for each loader")
    scan: tuple[int, int, int] = Field((512, 512, 400), description="size of the scan to predict, in voxels")
    overlap: float = Field(0.5, ge=0, lt=1, description="overlap of sliding windows")
    checkpoint_activations: bool = Field(False, description="recompute activations in training steps")
    compiled: bool = Field(False, description="also measure networks compiled by torch.compile")
    out: Path = Field(Path("bench.json"), description="JSON file for the results")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        theirs = {"swin-unetr": "monai", "resenc": "library"}[self.backbone]
        if self.against not in ("none", theirs):
            raise ValueError(f"against: must be none or {theirs} with backbone {self.backbone}")
        if self.backbone == "resenc":
            if self.what != "model":
                raise ValueError(f"backbone: resenc is measured by `bench model`, not by {self.what}")
            return self
        try:
            SwinArchitecture().check_sides(self.roi)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return self


@dataclass
class Measurement:
    """One method, its metrics in every round, and its speed relative to the first method."""

    what: str
    way: str
    runs: list[Metrics] = field(default_factory=list)
    ratio: float | None = None

    @property
    def figures(self) -> Metrics:
        """Medians over the rounds."""
        return {name: statistics.median(run[name] for run in self.runs) for name in self.runs[0]}

    @property
    def rate(self) -> float:
        """Speed: crops or runs per second."""
        figures = self.figures
        return figures["crops_per_second"] if "crops_per_second" in figures else 1 / figures["seconds"]


@command
def bench(settings: BenchSettings) -> Path:
    """Measure each method in a process of its own, print a table, and write the results as JSON.

    Returns:
        The JSON file.

    Raises:
        Dae3dError: if the device is not available, or a measurement fails.
    """
    refuse_other_file(settings.out, "result of `bench`", rb'\{\n "device": ')
    device = str(pick_device(settings.device))
    parts: dict[str, tuple[str, Callable[[BenchSettings, str], Measured]]] = {
        "model": ("training step", _model),
        "loader": ("loader", _loader),
        "predict": ("prediction", _predict),
    }
    about = {
        "device": cpu_name() if device == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    done: list[Measurement] = []
    for name, (what, measure) in parts.items():
        rows: dict[str, Measurement] = {}
        for _ in range(settings.rounds if settings.what in ("all", name) else 0):
            for way, figures in measure(settings, device):
                print(f"{what}, {way}: {_shown(figures)}", flush=True)
                rows.setdefault(way, Measurement(what, way)).runs.append(figures)
                first = next(iter(rows.values()))
                for row in rows.values():
                    row.ratio = row.rate / first.rate
                _write(settings, about, [*done, *rows.values()])
        done += rows.values()
    _show(done, about)
    print(f"figures: {settings.out}")
    return settings.out


def _write(settings: BenchSettings, about: dict[str, Any], rows: list[Measurement]) -> None:
    described = [
        {"what": row.what, "way": row.way, "figures": row.figures, "ratio": row.ratio, "runs": row.runs}
        for row in rows
    ]
    contents = {**about, "settings": settings.model_dump(mode="json"), "rows": described}
    write_text(settings.out, json.dumps(contents, indent=1) + "\n")


def _model(settings: BenchSettings, device: str) -> Measured:
    # (network, tuned, bf16, compiled): first MONAI as in its documentation, then each tuned.
    ways = [("dae3d", True, bf16, False) for bf16 in (False, True)]
    if settings.against != "none":
        theirs = ((False, False), (True, False), (True, True))
        ways = [(settings.against, tuned, bf16, False) for tuned, bf16 in theirs] + ways
    if settings.compiled:
        ways += [(network, tuned, bf16, True) for network, tuned, bf16, _ in ways if tuned]
    for network, tuned, bf16, compiled in ways:
        figures = in_new_process(
            training_step,
            network=network,
            device=device,
            **_sizes(settings),
            batch_size=settings.batch_size,
            steps=settings.steps,
            bf16=bf16,
            tuned=tuned,
            checkpoint_activations=settings.checkpoint_activations,
            compiled=compiled,
            size=settings.size if settings.backbone == "resenc" else "",
        )
        precision = "bf16 autocast" if bf16 else "float32"
        yield f"{_name(network, tuned)}, {precision}{', compiled' if compiled else ''}", figures


def _name(network: str, tuned: bool) -> str:
    return f"{network}, tuned" if network != "dae3d" and tuned else network


def _sizes(settings: BenchSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("embed_dim", "heads", "window", "roi")}


def _loader(settings: BenchSettings, device: str) -> Measured:
    sizes = {"roi": settings.roi, "crops": settings.crops}
    with tempfile.TemporaryDirectory() as folder:
        files, store = _data_set(Path(folder))
        if settings.against == "monai":
            for kind in MONAI_DATASETS:
                yield (
                    f"monai {kind}",
                    in_new_process(crops_by_monai, kind=kind, files=files, folder=folder, **sizes),
                )
            kept = str(Path(folder, "nnunet"))
            in_new_process(write_nnunet_files, store=store, folder=kept, roi=settings.roi)
            yield "nnU-Net's Blosc2", in_new_process(crops_by_nnunet, folder=kept, **sizes)
        yield "dae3d store", in_new_process(crops_from_store, store=store, **sizes)
        yield "dae3d loader process", in_new_process(crops_from_process, store=store, **sizes)


def _data_set(folder: Path) -> tuple[list[str], str]:
    """Phantoms of 288 x 336 x 256 voxels as .nii.gz, and a store of them."""
    from dae3d.commands.index import index
    from dae3d.commands.prepare import prepare

    scans = folder / "scans"
    scans.mkdir()
    for seed in range(_SCANS):
        image = nibabel.Nifti1Image(np.tile(phantom(seed), (2, 3, 2)), np.diag([1.0, 1.0, 1.0, 1.0]))
        image.to_filename(scans / f"sub-{seed}_ct.nii.gz")
    with redirect_stdout(io.StringIO()):
        index(folders=[scans], modality="ct-phantom", out=folder / "manifest.jsonl")
        prepare(manifest=folder / "manifest.jsonl", out=folder / "store", report=False)
    return [str(path) for path in sorted(scans.iterdir())], str(folder / "store")


def _predict(settings: BenchSettings, device: str) -> Measured:
    ways = [("dae3d", True)]
    if settings.against == "monai":
        ways = [("monai", False), ("monai", True), *ways]
    labels: np.ndarray | None = None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "labels.npy")
        rest = {**_sizes(settings), "device": device, "overlap": settings.overlap, "labels": str(file)}
        for network, tuned in ways:
            way = _name(network, tuned)
            windows = window_count(settings.scan, settings.roi, settings.overlap)
            if windows > _MANY_WINDOWS:
                one = in_new_process(segmentation, network=network, tuned=tuned, scan=settings.roi, **rest)
                print(f"prediction, {way}: about {one['seconds'] * windows / 60:.0f} min", flush=True)
            figures = in_new_process(segmentation, network=network, tuned=tuned, scan=settings.scan, **rest)
            found = np.load(file)
            labels = found if labels is None else labels
            yield way, {**figures, "same_labels": float((found == labels).mean())}


def _show(rows: list[Measurement], about: dict[str, Any]) -> None:
    packages = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    table = Table(title=f"{about['device']}, {about['threads']} threads; {packages}", title_justify="left")
    for name in ("what", "way", "figures"):
        table.add_column(name)
    table.add_column("times as fast", justify="right")
    for row in rows:
        table.add_row(row.what, row.way, _shown(row.figures), f"{row.ratio:.2f}{_spread(row)}")
    Console().print(table)


def _spread(row: Measurement) -> str:
    """Range of the rounds, relative to the median."""
    if len(row.runs) == 1:
        return ""
    rates = sorted(Measurement(row.what, row.way, [run]).rate for run in row.runs)
    return f" ({100 * (rates[0] / row.rate - 1):+.0f} to {100 * (rates[-1] / row.rate - 1):+.0f} %)"


def _shown(figures: Metrics) -> str:
    shown = []
    for name, value in figures.items():
        if name == "peak_bytes":
            shown.append(f"{value / 2**30:.2f} GiB at most")
        elif name == "same_labels":
            shown.append(f"{100 * value:.3f} % same labels")
        else:
            shown.append(f"{value:.3g} {name.replace('_', ' ')}")
    return ", ".join(shown)
