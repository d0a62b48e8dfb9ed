"""The report page of a pre-training run."""

import math

from dae3d.evaluation.image_metrics import IMAGE_METRICS
from dae3d.reporting import curves
from dae3d.reporting.comparison import compare, recorded_metrics
from dae3d.reporting.curves import Chart, chart
from dae3d.reporting.html import fill
from dae3d.reporting.probes import probe_charts, section
from dae3d.reporting.run_folder import Picture, Run
from dae3d.reporting.run_page import both, facts, optimisation, steps, without_gaps
from dae3d.reporting.run_text import missing, summary

# Titles of losses whose names are too short.
_TITLES = {
    "l1": "L1",
    "contrastive": "Contrastive loss",
    "dense": "Dense contrastive loss",
    "features": "Feature prediction loss",
}
_NO_LOSSES = ("loss", "lr", "grad_norm", "samples_per_second")


def render(run: Run) -> str:
    """The page as HTML."""
    comparisons = [found for name in run.modalities if (found := compare(run, name))]
    return fill(
        "pretraining.html",
        {"decimals": decimals, "signed": signed},
        kind="pre-training",
        name=run.folder.resolve().name,
        run=run,
        record=run.record,
        summary=summary(run, comparisons),
        missing=missing(run),
        facts=facts(run),
        chart_groups=chart_groups(run),
        geometry=curves,
        pictures_heading="Reconstructions",
        pictures_explained="One fixed validation crop per modality, always with the same disruption.",
        picture_columns="clean, disrupted, repaired and error",
        pictures={name: steps(shown, measured(run, name, shown)) for name, shown in run.pictures.items()},
        comparisons=comparisons,
        probed=section(run),
        metrics={name: IMAGE_METRICS[name].heading for name in recorded_metrics(run)},
        taken_from_training=[name for name, v in run.record.validation.items() if v.split == "train"],
    )


def chart_groups(run: Run) -> dict[str, list[Chart]]:
    """All curves, by heading."""

    def by_modality(title: str, metric: str) -> Chart | None:
        return chart(title, {name: run.metrics.get(f"val/{metric}/{name}") for name in run.modalities})

    return without_gaps(
        {
            "Losses": [
                # The training loss has more terms than validation, so their sums are not comparable.
                chart("Total training loss", {"training": run.metrics.get("train/loss")}, log=True),
                *(both(run, _TITLES.get(name, name.capitalize()), name) for name in _losses(run)),
            ],
            "L1 by modality": [both(run, f"L1, {name}", f"l1/{name}") for name in run.modalities],
            "Image quality of the repaired validation crops": [
                by_modality(IMAGE_METRICS[name].heading, name) for name in recorded_metrics(run)
            ],
            "Use of the encoder levels": probe_charts(run),
            "Optimisation": optimisation(run),
        }
    )


def _losses(run: Run) -> list[str]:
    """The terms of the training loss, in the order of recording."""
    rows = (name.removeprefix("train/") for name in run.metrics if name.startswith("train/"))
    return [name for name in rows if "/" not in name and name not in _NO_LOSSES]


def measured(run: Run, modality: str, pictures: list[Picture]) -> dict[int, str]:
    """A text with the metrics at each step that has a picture."""
    found = {}
    for step in (picture.step for picture in pictures):
        values = {name: run.metrics.get(f"val/{name}/{modality}") for name in recorded_metrics(run)}
        at = {name: series.at(step) for name, series in values.items() if series is not None}
        words = [
            f"{IMAGE_METRICS[name].title} {decimals(v, name)}" for name, v in at.items() if v is not None
        ]
        found[step] = "mean over the crops: " + ", ".join(words) if words else ""
    return found


def decimals(value: float, metric: str) -> str:
    """Format a value with the decimals of its metric."""
    if not math.isfinite(value):
        return "n/a" if math.isnan(value) else "∞" if value > 0 else "-∞"
    return f"{value:.{IMAGE_METRICS[metric].decimals}f}"


def signed(value: float, metric: str) -> str:
    """Format a difference with its sign."""
    if not math.isfinite(value):
        return "n/a"
    return ("+" if value >= 0 else "") + decimals(value, metric)
