"""The command `evaluate`: compare segmentations with references, and show where they fail."""

import json
import logging
import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dae3d.cores import usable_cores
from dae3d.errors import Dae3dError
from dae3d.evaluation.held_out import held_out, read_weights_beside
from dae3d.evaluation.pairs import pair, score
from dae3d.evaluation.results import Mean, Results
from dae3d.evaluation.segmentation_metrics import Metric, tabled
from dae3d.files import refuse_other_file, write_text
from dae3d.journal import Journal
from dae3d.models.hub import WeightsSource
from dae3d.reporting.evaluation import Context, write_report
from dae3d.reporting.html import refuse_other_page
from dae3d.run_folder import refuse_a_runs_folder
from dae3d.scans.modality import Label
from dae3d.scans.task import read_task
from dae3d.scans.task_list import TaskSplit
from dae3d.settings import Settings, command
from dae3d.store.recipe import CaseRecipe
from dae3d.version import __version__

if TYPE_CHECKING:
    from dae3d.models.network import WeightsInfo

log = logging.getLogger(__name__)


def _label_values(text: str) -> str:
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ValueError("must be label values separated by commas: WT=1,2,4")
    return text


class EvaluateSettings(Settings):
    """Settings of `evaluate`."""

    data: Path = Field(description="list of labelled cases, as for `dae3d finetune`")
    predictions: Path | None = Field(
        None, description="folder of label maps `<case>.nii.gz`, as written by `dae3d predict --data`"
    )
    weights: list[WeightsSource] = Field(
        [],
        description="instead of predictions: runs, weight files or hf://ORG/NAME[/FILE] to predict with, "
        "into OUT/predictions",
    )
    split: TaskSplit = Field("validation", description="cases to compare")
    fold: int | None = Field(None, ge=0, description="fold held out for validation, if the list has folds")
    out: Path | None = Field(
        None, description="output folder (default: the folder of the predictions; required with --weights)"
    )
    modality: list[Label] | None = Field(
        None, description="label of each channel (default: as in the weights or the list)"
    )
    tolerance: float = Field(1.0, ge=0, description="tolerance of the normalised surface distance, in mm")
    regions: dict[str, Annotated[str, AfterValidator(_label_values)]] = Field(
        {}, description="additional regions, each a union of label values: WT=1,2,4 TC=1,4"
    )
    seed: int = Field(0, ge=0, description="seed of the bootstrap")
    workers: int = Field(
        default_factory=lambda: min(4, usable_cores()),
        ge=1,
        description="cases compared in parallel, each with two label maps in memory",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.predictions is None) == (not self.weights):
            raise ValueError("predictions, weights: give exactly one of them")
        if self.weights and self.out is None:
            raise ValueError("out: required with --weights")
        if self.weights and self.modality:
            raise ValueError("modality: not allowed with --weights, which have their own labels")
        return self

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.out or self.predictions or "")


@command
def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Compare predictions with the labels of a task, per class and case.

    Writes `metrics.csv` (case,class,metric,value), `metrics.json`, `report.html` and the report's
    pictures, and prints a table. The metrics are defined in `dae3d.evaluation.segmentation_metrics`.
    Means are over the cases with a value; their 95 % intervals are percentiles of a bootstrap over the cases.

    Warns of cases that the weights were trained on or selected by. They are recognised by the content of
    their images, if the weights, or predictions by `dae3d predict`, record the training cases.

    Returns:
        The contents of `metrics.json`.

    Raises:
        Dae3dError: naming each case without a label or a prediction, each whose image, label and prediction
            lie on different grids, and each label map with a value that is not a class; or the folder,
            if it is that of a run.
    """
    refuse_a_runs_folder(settings.folder, "evaluation")
    _refuse_other_files(settings.folder)
    task = read_task(settings.data, settings.modality, order=_order(settings))
    cases = task.split(settings.split, settings.fold)
    # Labels are compared as class indices: the ranks of the label values.
    recipe = CaseRecipe(modalities=task.modalities, labels=task.labels, ignore=task.ignore)
    classes = {name: (value,) for value, name in recipe.labels.items() if value != 0}
    regions = _regions(settings, recipe)
    pairs = pair(cases, _predictions(settings))
    met = held_out(cases, _weights(settings))
    indices = {name: [recipe.label_values.index(v) for v in vs] for name, vs in (classes | regions).items()}
    measured = {"dae3d": __version__, "tolerance": settings.tolerance, "classes": indices}
    if task.ignore is not None:
        measured["ignore"] = task.ignore
    with Journal(settings.folder / "metrics.partial.jsonl", measured, again=True) as journal:
        scores = score(pairs, recipe, indices, settings.tolerance, journal, settings.workers)
    results = Results.of(scores, classes, regions, settings.seed)
    found = {
        "task": task.name,
        "split": _split_name(settings),
        "held_out": met.json(),
        **results.json(),
        "settings": settings.model_dump(mode="json"),
        "versions": _versions(),
    }
    write_text(settings.folder / "metrics.csv", results.csv())
    write_text(settings.folder / "metrics.json", json.dumps(found, indent=1) + "\n")
    context = Context(
        task.name, _split_name(settings), settings.tolerance, settings.to_yaml(), _versions(), met
    )
    page = write_report(settings.folder, results, context, pairs, recipe)
    journal.path.unlink(missing_ok=True)
    _show(results, settings.tolerance)
    for sentence in met.warnings:
        log.warning("%s", sentence)
    if met.note:
        log.info("%s", met.note)
    log.info("metrics.csv, metrics.json and the page: %s", page)
    return found


def _split_name(settings: EvaluateSettings) -> str:
    return settings.split if settings.fold is None else f"{settings.split}, fold {settings.fold}"


def _refuse_other_files(folder: Path) -> None:
    """Refuse to overwrite files not written by `evaluate`."""
    refuse_other_file(folder / "metrics.csv", "table of `evaluate`", rb"case,class,metric,value\r?\n")
    refuse_other_file(folder / "metrics.json", "result of `evaluate`", rb'\{\n "task": ')
    refuse_other_page(folder / "report.html")


def _order(settings: EvaluateSettings) -> Sequence[str] | None:
    """The modality labels of the channels of the weights."""
    if not settings.weights:
        return None
    # Imported here because comparing files does not need PyTorch.
    from dae3d.inference.ensemble import recipe_of

    return recipe_of(settings.weights[0]).modalities


def _regions(settings: EvaluateSettings, recipe: CaseRecipe) -> dict[str, tuple[int, ...]]:
    regions = {}
    for name, text in settings.regions.items():
        if name in recipe.class_names:
            raise Dae3dError(f"regions: {name} is the name of a class already")
        values = tuple(sorted({int(part) for part in text.split(",")}))
        unknown = [v for v in values if v == 0 or v not in recipe.labels]
        if unknown:
            there = ", ".join(f"{value} {label}" for value, label in recipe.labels.items() if value)
            raise Dae3dError(f"regions: {name}={text}: there is no class {unknown[0]}; there are: {there}")
        regions[name] = values
    return regions


def _predictions(settings: EvaluateSettings) -> Path:
    if settings.predictions is not None:
        return settings.predictions
    # Imported here because comparing files does not need PyTorch.
    from dae3d.commands.predict import predict

    out = settings.folder / "predictions"
    predict(weights=settings.weights, out=out, data=settings.data, split=settings.split, fold=settings.fold)
    return out


def _weights(settings: EvaluateSettings) -> list["WeightsInfo"]:
    """The training records of the weights used for the predictions."""
    if settings.predictions is not None:
        return read_weights_beside(settings.predictions)
    # Imported here because comparing files does not need PyTorch.
    from dae3d.models.weights import read_weights

    return [read_weights(source).info for source in settings.weights]


def _versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    packages = ("torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK")
    return {
        "dae3d": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _show(results: Results, tolerance: float) -> None:
    title = f"{len(results.cases)} cases: means, and 95 % intervals by bootstrap"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0)
    table.add_column("class", overflow="fold", min_width=5)
    shown = [f"NSD {tolerance:g} mm" if name == "nsd" else m.heading for name, m in tabled().items()]
    for heading in (*map(str, shown), "missed", "spurious", "cases"):
        table.add_column(heading, justify="right", no_wrap=True)
    summaries = results.summaries
    for names, title, means in (
        (results.classes, "mean of classes", results.mean),
        (results.regions, "mean of regions", results.mean_of_regions),
    ):
        for name in names:
            s = summaries[name]
            if s.means["dice"].cases:
                table.add_row(escape(name), *_cells(s.means), str(s.missed), str(s.spurious), str(s.present))
        if len(names) > 1:
            counts = [sum(getattr(summaries[n], kind) for n in names) for kind in ("missed", "spurious")]
            table.add_row(title, *_cells(means), *map(str, counts), "", style="bold")
    Console().print(table)
    absent = [name for name, s in summaries.items() if not s.means["dice"].cases]
    if absent:
        log.info("neither labelled nor predicted in any case: %s", ", ".join(absent))


def _cells(means: dict[str, Mean]) -> list[str]:
    return [_with_interval(means[name], metric) for name, metric in tabled().items()]


def _with_interval(mean: Mean, metric: Metric) -> str:
    """A value with its interval; signed values are shown without, because it would not fit the column."""
    form = f"{metric.sign}.{metric.decimals}f"
    value = "n/a" if math.isnan(mean.value) else f"{mean.value:{form}}"
    if math.isnan(mean.low) or metric.sign:
        return value
    return f"{value}\n{mean.low:{form}}-{mean.high:{form}}"
