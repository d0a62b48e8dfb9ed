"""One self-contained page about a pre-training run: no network, no other file, readable on a phone."""

import base64
import logging
import math
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import jinja2
import numpy as np
from pydantic import Field

from dae3d.errors import Dae3dError
from dae3d.files import write_text
from dae3d.reporting import curves
from dae3d.reporting.comparison import MEASURES, compare
from dae3d.reporting.curves import Chart, chart
from dae3d.reporting.run import Picture, Run, load_run
from dae3d.reporting.summary import missing, summary
from dae3d.reporting.words import duration, plural, quantity, size
from dae3d.settings import Positional, Settings, verb

log = logging.getLogger(__name__)

PICTURES_SHOWN = 12


class ReportSettings(Settings):
    """Settings of `report`."""

    run: Annotated[Path, Positional()] = Field(description="folder that `pretrain` wrote, or is writing")
    out: Path | None = Field(None, description="the page to write; none: report.html in the run folder")


@verb
def report(settings: ReportSettings) -> Path:
    """Write a page about a run: what was trained on what, curves, reconstructions, comparison.

    A run that is not finished, or lacks parts, gets a page that says so.

    Returns:
        The page's path.

    Raises:
        Dae3dError: where the folder is no run, or the page cannot be written.
    """
    run = load_run(settings.run)
    out = settings.out or settings.run / "report.html"
    if out.is_dir():
        raise Dae3dError(f"out: {out} is a folder; name the page to write, such as {out / 'report.html'}")
    write_text(out, render(run))
    log.info("report: %s", out)
    return out


def render(run: Run) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"quantity": quantity, "plural": plural, "decimals": decimals, "signed": signed}
    template = environment.from_string(
        resources.files("dae3d.reporting").joinpath("template.html").read_text()
    )
    comparisons = [found for name in run.modalities if (found := compare(run, name))]
    return template.render(
        name=run.folder.resolve().name,
        run=run,
        record=run.record,
        summary=summary(run, comparisons),
        missing=missing(run),
        facts=facts(run),
        chart_groups=chart_groups(run),
        geometry=curves,
        reconstructions={name: steps(run, name, shown) for name, shown in run.pictures.items()},
        comparisons=comparisons,
        measures=MEASURES,
        taken_from_training=[name for name, v in run.record.validation.items() if v.split == "train"],
    )


def facts(run: Run) -> dict[str, str]:
    """What ran where and how fast; a value that the run has not recorded is ""."""
    record = run.record
    rate, memory = record.samples_per_second, record.peak_memory_bytes
    return {
        "device": record.device or "",
        "processes": str(record.world_size),
        "precision": record.precision or "",
        "parameters of the network": quantity(record.parameters) if record.parameters else "",
        "time": duration(record.seconds) if record.seconds is not None else "",
        "throughput, median": f"{rate:.3g} samples/s" if rate is not None else "",
        f"peak memory of the {record.peak_memory_of or 'process'}": size(memory) if memory else "",
        "dae3d": record.dae3d or "",
        **record.versions,
    }


def chart_groups(run: Run) -> dict[str, list[Chart]]:
    """All curves, by heading; what was never measured is left out."""
    m = run.metrics

    def both(title: str, name: str) -> Chart | None:
        series = {"training": m.get(f"train/{name}"), "validation": m.get(f"val/{name}")}
        return chart(title, series, log=True)

    def by_modality(title: str, measure: str) -> Chart | None:
        return chart(title, {name: m.get(f"val/{measure}/{name}") for name in run.modalities})

    groups = {
        "Losses": [both("Loss", "loss"), both("L1", "l1"), both("Contrastive loss", "contrastive")],
        "L1 by modality": [both(f"L1, {name}", f"l1/{name}") for name in run.modalities],
        "Repair of the validation crops": [by_modality("PSNR, dB", "psnr"), by_modality("SSIM", "ssim")],
        "Optimisation": [
            chart("Learning rate", {"learning rate": m.get("train/lr")}, smooth=False),
            chart("Gradient norm", {"gradient norm": m.get("train/grad_norm")}, log=True),
            chart("Throughput, samples/s", {"samples/s": m.get("train/samples_per_second")}),
        ],
    }
    drawn = {heading: [c for c in charts if c is not None] for heading, charts in groups.items()}
    return {heading: charts for heading, charts in drawn.items() if charts}


def steps(run: Run, modality: str, pictures: list[Picture]) -> list[dict[str, Any]]:
    """Label and content of at most `PICTURES_SHOWN` pictures: the first, the last, and evenly between."""
    chosen = np.unique(
        np.linspace(0, len(pictures) - 1, min(len(pictures), PICTURES_SHOWN)).round().astype(int)
    )
    shown = []
    for picture in (pictures[i] for i in chosen):
        content = base64.b64encode(picture.path.read_bytes()).decode()
        label = f"step {picture.step}" + (", before training" if picture.step == 0 else "")
        values = {name: run.metrics.get(f"val/{name}/{modality}") for name in MEASURES}
        found = {name: s.at(picture.step) for name, s in values.items() if s is not None}
        measured = [f"{name.upper()} {decimals(v, name)}" for name, v in found.items() if v is not None]
        shown.append(
            {
                "step": picture.step,
                "label": label,
                "measured": "mean of the crops: " + ", ".join(measured) if measured else "",
                "source": f"data:image/png;base64,{content}",
            }
        )
    return shown


def decimals(value: float, measure: str) -> str:
    """A PSNR (dB) with two decimals, an SSIM with three."""
    if not math.isfinite(value):
        return "n/a" if math.isnan(value) else "∞" if value > 0 else "-∞"
    return f"{value:.{2 if measure == 'psnr' else 3}f}"


def signed(value: float, measure: str) -> str:
    """A difference with its sign."""
    if not math.isfinite(value):
        return "n/a"
    return ("+" if value >= 0 else "") + decimals(value, measure)
