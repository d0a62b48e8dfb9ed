"""The verb `bench`: what a training step, a crop and a prediction cost here, by dae3d and by MONAI."""

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import nibabel
import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table

from dae3d.benchmarking.loader import crops_by_monai, crops_by_nnunet, crops_from_store
from dae3d.benchmarking.model import training_step
from dae3d.benchmarking.nnunet import write_nnunet_files
from dae3d.benchmarking.predict import segmentation
from dae3d.benchmarking.process import in_new_process
from dae3d.files import write_text
from dae3d.inference.device import pick_device
from dae3d.phantom import phantom
from dae3d.settings import Positional, Settings, verb
from dae3d.training.record import cpu_name, versions

_SCANS = 4  # of the data set that the loader is measured on


class BenchSettings(Settings):
    """Settings of `bench`."""

    what: Annotated[Literal["all", "model", "loader", "predict"], Positional()] = Field(
        "all", description="what to measure: all, model (a training step), loader (crops), predict (a scan)"
    )
    against: Literal["none", "monai"] = Field(
        "none",
        description="measure MONAI's counterpart too, as its documentation has it and tuned: channels-last "
        "layout, bf16, freed memory kept, fused AdamW, flash attention",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    embed_dim: int = Field(48, ge=12, multiple_of=12, description="channels of the tokens")
    heads: tuple[int, int, int, int] = Field((3, 6, 12, 24), description="attention heads of the stages")
    window: int = Field(7, ge=2, description="side of an attention window in tokens")
    roi: int = Field(96, ge=32, multiple_of=32, description="side of a crop in voxels")
    batch_size: int = Field(2, ge=1, description="crops a training step")
    steps: int = Field(5, ge=1, description="training steps counted; two more warm up")
    crops: int = Field(100, ge=1, description="crops counted of each way to load them")
    scan: tuple[int, int, int] = Field((512, 512, 400), description="voxels of the scan to predict")
    overlap: float = Field(0.5, ge=0, lt=1, description="of sliding windows")
    checkpoint_activations: bool = Field(False, description="recompute activations in training steps")
    compiled: bool = Field(False, description="also measure networks compiled by torch.compile")
    out: Path = Field(Path("bench.json"), description="JSON file for the figures")


@dataclass(frozen=True)
class Row:
    """One way to do a thing, its figures, and how many times as fast as the first way it is."""

    what: str
    way: str
    figures: dict[str, float]
    ratio: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@verb
def bench(settings: BenchSettings) -> Path:
    """Measure, each row in a process of its own, print a table and write the figures as JSON.

    Returns:
        The JSON file.

    Raises:
        Dae3dError: where the device is not there, or a measurement fails.
    """
    device = str(pick_device(settings.device))
    parts: dict[str, Callable[[BenchSettings, str], Iterator[Row]]] = {
        "model": _model,
        "loader": _loader,
        "predict": _predict,
    }
    rows: list[Row] = []
    about = {
        "device": cpu_name() if device == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    for what, measure in parts.items():
        if settings.what in ("all", what):
            for row in measure(settings, device):
                rows.append(row)
                print(f"{row.what}, {row.way}: {_figures(row)}", flush=True)
                contents = {**about, "settings": settings.model_dump(mode="json"), "rows": rows}
                write_text(settings.out, json.dumps(contents, indent=1, default=asdict) + "\n")
    _show(rows, about)
    print(f"figures: {settings.out}")
    return settings.out


def _model(settings: BenchSettings, device: str) -> Iterator[Row]:
    # (network, tuned, bf16, compiled): first MONAI's as its documentation has it, then each at its best.
    ways = [("dae3d", True, bf16, False) for bf16 in (False, True)]
    if settings.against == "monai":
        ways = [
            ("monai", tuned, bf16, False) for tuned, bf16 in ((False, False), (True, False), (True, True))
        ] + ways
    if settings.compiled:
        ways += [(network, tuned, bf16, True) for network, tuned, bf16, _ in ways if tuned]
    first = None
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
        )
        first = first or figures["samples_per_second"]
        precision = "bf16 autocast" if bf16 else "float32"
        way = f"{_name(network, tuned)}, {precision}{', compiled' if compiled else ''}"
        yield Row("training step", way, figures, figures["samples_per_second"] / first)


def _name(network: str, tuned: bool) -> str:
    return "monai, tuned" if network == "monai" and tuned else network


def _sizes(settings: BenchSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("embed_dim", "heads", "window", "roi")}


def _loader(settings: BenchSettings, device: str) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        files, store = _data_set(Path(folder))
        kinds = ["Dataset", "PersistentDataset", "CacheDataset"] if settings.against == "monai" else []
        first = None
        for kind in kinds:
            figures = in_new_process(
                crops_by_monai, kind=kind, files=files, folder=folder, roi=settings.roi, crops=settings.crops
            )
            first = first or figures["crops_per_second"]
            yield Row("loader", f"monai {kind}", figures, figures["crops_per_second"] / first)
        if settings.against == "monai":
            rest = {"folder": str(Path(folder, "nnunet")), "roi": settings.roi}
            in_new_process(write_nnunet_files, store=store, **rest)
            figures = in_new_process(crops_by_nnunet, **rest, crops=settings.crops)
            first = first or figures["crops_per_second"]
            yield Row("loader", "nnU-Net's Blosc2", figures, figures["crops_per_second"] / first)
        figures = in_new_process(crops_from_store, store=store, roi=settings.roi, crops=settings.crops)
        first = first or figures["crops_per_second"]
        yield Row("loader", "dae3d store", figures, figures["crops_per_second"] / first)


def _data_set(folder: Path) -> tuple[list[str], str]:
    """Phantoms of 288 x 336 x 256 voxels as .nii.gz, and a store of them."""
    from dae3d.scans.index import index
    from dae3d.store.prepare import prepare

    scans = folder / "scans"
    scans.mkdir()
    for seed in range(_SCANS):
        image = nibabel.Nifti1Image(np.tile(phantom(seed), (2, 3, 2)), np.diag([1.0, 1.0, 1.0, 1.0]))
        image.to_filename(scans / f"sub-{seed}_ct.nii.gz")
    with redirect_stdout(io.StringIO()):
        index(folders=[scans], modality="ct-phantom", out=folder / "manifest.jsonl")
        prepare(manifest=folder / "manifest.jsonl", out=folder / "store", report=False)
    return [str(path) for path in sorted(scans.iterdir())], str(folder / "store")


def _predict(settings: BenchSettings, device: str) -> Iterator[Row]:
    ways = [("dae3d", True)]
    if settings.against == "monai":
        ways = [("monai", False), ("monai", True), *ways]
    first: dict[str, float] | None = None
    labels: np.ndarray | None = None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "labels.npy")
        for network, tuned in ways:
            figures = in_new_process(
                segmentation,
                network=network,
                device=device,
                **_sizes(settings),
                overlap=settings.overlap,
                scan=settings.scan,
                tuned=tuned,
                labels=str(file),
            )
            found = np.load(file)
            labels = found if labels is None else labels
            figures["same_labels"] = float((found == labels).mean())
            first = first or figures
            yield Row("prediction", _name(network, tuned), figures, first["seconds"] / figures["seconds"])


def _show(rows: list[Row], about: dict[str, Any]) -> None:
    packages = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    table = Table(title=f"{about['device']}, {about['threads']} threads; {packages}", title_justify="left")
    for name in ("what", "way", "figures"):
        table.add_column(name)
    table.add_column("times as fast", justify="right")
    for row in rows:
        table.add_row(row.what, row.way, _figures(row), f"{row.ratio:.2f}" if row.ratio else "")
    Console().print(table)


def _figures(row: Row) -> str:
    shown = []
    for name, value in row.figures.items():
        if name == "peak_bytes":
            shown.append(f"{value / 2**30:.2f} GiB at most")
        elif name == "same_labels":
            shown.append(f"{100 * value:.3f} % same labels")
        else:
            shown.append(f"{value:.3g} {name.replace('_', ' ')}")
    return ", ".join(shown)
