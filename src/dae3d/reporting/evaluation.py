"""The report page of an evaluation, self-contained: metrics, and pictures of worst, median and best case."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dae3d.drawing.case_view import view_case
from dae3d.drawing.overlay import draw_case
from dae3d.drawing.pictures import save_picture
from dae3d.errors import ScanError
from dae3d.evaluation.held_out import HeldOut
from dae3d.evaluation.pairs import Pair, read_pair
from dae3d.evaluation.results import ClassSummary, Mean, Results
from dae3d.evaluation.segmentation_metrics import tabled
from dae3d.reporting import strips
from dae3d.reporting.evaluation_text import findings, summary, with_interval
from dae3d.reporting.html import embedded, fill, write_page
from dae3d.scans.readers import read_volume
from dae3d.store.recipe import CaseRecipe

CASES_SHOWN = 60  # rows of the table by case
_FULLEST, _WORST = "Slices with most of the reference", "Slices with most errors"


@dataclass(frozen=True)
class Context:
    """What was evaluated: task, split or fold, tolerance in mm, settings in YAML, versions, seen cases."""

    task: str
    split: str
    tolerance: float
    settings: str
    versions: dict[str, str]
    held_out: HeldOut


@dataclass(frozen=True)
class DrawnCase:
    """A case with its pictures; `rank` is worst, median, best or only."""

    rank: str
    name: str
    dice: float
    pictures: list[tuple[Path, str]]


@dataclass(frozen=True)
class ClassRow:
    """A row of the table by class; `flag` is "weak" for the class with the lowest mean Dice."""

    name: str
    cells: list[tuple[str, str]]
    counts: list[str]
    flag: str = ""


@dataclass(frozen=True)
class DiceCell:
    """A Dice in the table by case: text, and shade from 0 (good) to 1 (bad)."""

    text: str
    shade: float


def write_report(
    folder: Path, results: Results, context: Context, pairs: Sequence[Pair], recipe: CaseRecipe
) -> Path:
    """Write `report.html` and `pictures/` into a folder.

    Args:
        folder: output folder.
        results: results of the evaluation.
        context: what was evaluated.
        pairs: in the order of the cases in the results.
        recipe: of the labels.

    Returns:
        The path of the page.
    """
    drawn = [
        _draw(rank, i, results, pairs[i], recipe, folder / "pictures")
        for rank, i in remarkable(results).items()
    ]
    out = folder / "report.html"
    write_page(out, render(results, context, drawn))
    return out


def remarkable(results: Results) -> dict[str, int]:
    """Indices of the worst, median and best case by mean Dice; with one case, the only one."""
    order = results.ranked
    chosen = [("worst", 0), ("best", len(order) - 1), ("median", (len(order) - 1) // 2)][: len(order)]
    if len(order) == 1:
        return {"only": order[0]}
    return {rank: order[place] for rank, place in sorted(chosen, key=lambda c: c[1])}


def render(results: Results, context: Context, drawn: Sequence[DrawnCase]) -> str:
    """The page as HTML."""
    dice = results.metric("dice")
    start = strips.lowest_tick(dice.ravel().tolist())
    absent = [name for name, s in results.summaries.items() if not s.means["dice"].cases]
    return fill(
        "evaluation.html",
        {},
        context=context,
        summary=summary(results, context.task, context.split),
        findings=findings(results),
        headings=[metric.heading for metric in tabled().values()],
        rows=_rows(results),
        drawn=[(case, [(embedded(path), text) for path, text in case.pictures]) for case in drawn],
        geometry=strips,
        strips=[
            strips.strip(
                name, results.cases, dice[:, i].tolist(), results.summaries[name].means["dice"], start
            )
            for i, name in enumerate(results.names)
            if name not in absent
        ],
        columns=results.names,
        cases=_case_table(results),
        count=len(results.cases),
        ranked=len(results.ranked),
        absent=absent,
    )


def _draw(
    rank: str, number: int, results: Results, pair: Pair, recipe: CaseRecipe, folder: Path
) -> DrawnCase:
    prediction, reference, _ = read_pair(pair, recipe)
    try:
        image = read_volume(pair.images[0])
    except ScanError as error:
        raise ScanError(f"{pair.images[0]}: {error}") from None
    view = view_case(image, reference, prediction)
    dice = results.metric("dice")[number]
    names = {
        recipe.class_names.index(name): f"{name} {'n/a' if math.isnan(dice[i]) else f'{dice[i]:.2f}'}"
        for i, name in enumerate(results.classes)
    }
    value = float(results.case_dice[number])
    title = f"{pair.name}: {'mean ' if len(names) > 1 else ''}Dice {value:.3f}"
    pictures = []
    chosen = {"overview": (view.fullest, _FULLEST), "errors": (view.worst, _WORST)}
    if np.array_equal(reference, prediction):
        del chosen["errors"]
    for kind, (planes, text) in chosen.items():
        path = folder / f"{rank}-{kind}.png"
        save_picture(draw_case(view, planes, title, names), path)
        pictures.append((path, text))
    return DrawnCase(rank, pair.name, value, pictures)


def _rows(results: Results) -> list[ClassRow]:
    """Rows of classes and their mean, then of regions and their mean."""
    dice = {name: results.summaries[name].means["dice"].value for name in results.classes}
    known = [name for name in dice if not math.isnan(dice[name])]
    weakest = min(known, key=lambda name: dice[name]) if len(known) > 1 else None
    rows = []
    for names, title, means in (
        (results.classes, "mean of the classes", results.mean),
        (results.regions, "mean of the regions", results.mean_of_regions),
    ):
        summaries = [results.summaries[name] for name in names]
        rows += [
            ClassRow(name, _cells(s.means), _counts([s]), "weak" if name == weakest else "")
            for name, s in zip(names, summaries, strict=True)
            if s.means["dice"].cases
        ]
        if len(names) > 1:
            rows.append(ClassRow(title, _cells(means), [*_counts(summaries)[:2], ""], "total"))
    return rows


def _cells(means: dict[str, Mean]) -> list[tuple[str, str]]:
    texts = [with_interval(means[name], metric.decimals, metric.sign) for name, metric in tabled().items()]
    return [(text.partition(" (")[0], text.partition(" (")[2].rstrip(")")) for text in texts]


def _counts(summaries: Sequence[ClassSummary]) -> list[str]:
    return [str(sum(getattr(s, kind) for s in summaries)) for kind in ("missed", "spurious", "present")]


def _case_table(results: Results) -> list[tuple[str, DiceCell, list[DiceCell]]]:
    """Name, mean Dice and Dice by class of the worst cases, worst first."""
    dice = results.metric("dice")
    wanted, predicted = results.metric("reference_ml") > 0, results.metric("predicted_ml") > 0
    rows = []
    for i in results.ranked[:CASES_SHOWN]:
        cells = [
            DiceCell("missed", 1.0)
            if wanted[i, j] and not predicted[i, j]
            else DiceCell("spurious", 1.0)
            if predicted[i, j] and not wanted[i, j]
            else _shaded(dice[i, j])
            for j in range(len(results.names))
        ]
        rows.append((results.cases[i], _shaded(results.case_dice[i]), cells))
    return rows


def _shaded(dice: float) -> DiceCell:
    """A Dice of 0.5 or less gets the darkest shade."""
    return (
        DiceCell("", 0.0) if math.isnan(dice) else DiceCell(f"{dice:.3f}", round(min(1.0, 2 * (1 - dice)), 2))
    )
