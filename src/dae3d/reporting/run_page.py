"""Parts common to the report pages of pre-training and fine-tuning runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dae3d.reporting.curves import Chart, chart
from dae3d.reporting.html import embedded
from dae3d.reporting.run_folder import Picture, Run
from dae3d.words import duration, quantity, size

PICTURES_SHOWN = 12


def facts(run: Run) -> dict[str, str]:
    """Hardware, speed and versions; values that the run has not recorded are ""."""
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


def both(run: Run, title: str, name: str) -> Chart | None:
    """A chart of a loss in training and, if recorded, in validation."""
    series = {"training": run.metrics.get(f"train/{name}"), "validation": run.metrics.get(f"val/{name}")}
    return chart(title, series, log=True)


def optimisation(run: Run) -> list[Chart | None]:
    """Charts of learning rate, gradient norm and throughput."""
    m = run.metrics
    return [
        chart("Learning rate", {"learning rate": m.get("train/lr")}, smooth=False),
        chart("Gradient norm", {"gradient norm": m.get("train/grad_norm")}, log=True),
        chart("Throughput, samples/s", {"samples/s": m.get("train/samples_per_second")}),
    ]


def without_gaps(groups: Mapping[str, Sequence[Chart | None]]) -> dict[str, list[Chart]]:
    """Charts by heading, without missing ones."""
    drawn = {heading: [c for c in charts if c is not None] for heading, charts in groups.items()}
    return {heading: charts for heading, charts in drawn.items() if charts}


def steps(pictures: Sequence[Picture], measured: Mapping[int, str]) -> list[dict[str, Any]]:
    """At most `PICTURES_SHOWN` evenly spaced pictures including first and last, for the template.

    `measured` is a text with the metrics by step.
    """
    chosen = np.unique(
        np.linspace(0, len(pictures) - 1, min(len(pictures), PICTURES_SHOWN)).round().astype(int)
    )
    return [
        {
            "step": picture.step,
            "label": f"step {picture.step}" + (", before training" if picture.step == 0 else ""),
            "measured": measured.get(picture.step, ""),
            "source": embedded(picture.path),
        }
        for picture in (pictures[i] for i in chosen)
    ]
