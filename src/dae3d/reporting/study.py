"""The page and the table on screen of a study."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dae3d.evaluation.segmentation_metrics import METRICS
from dae3d.probing.metrics import Check
from dae3d.reporting.html import fill, write_page
from dae3d.studies.cells import Cell
from dae3d.studies.jobs import Result
from dae3d.studies.plan import Study
from dae3d.studies.results import Results, Row
from dae3d.version import __version__
from dae3d.words import duration, plural

PAGE = "study.html"
# SVG units.
_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 640, 170, 620, 30, 12
_TICKS = 4  # about as many on either side of zero


@dataclass(frozen=True)
class StudyPage:
    """What the page shows.

    Attributes:
        study: the study.
        results: of the finished cells.
        rates: learning rate of each arm that has one.
        cells: finished cells, with their mean and the seconds they took.
        expected: number of cells.
        failed: runs that failed.
        unknown: arms whose weights do not record what they were trained on.
        recipes: settings of the study's own pre-trainings.
        checks: what `dae3d check` found for the weights of an arm.
    """

    study: Study
    results: Results
    rates: Mapping[str, float]
    cells: Mapping[Cell, tuple[float, float]]
    expected: int
    failed: tuple[Result, ...]
    unknown: tuple[str, ...]
    recipes: Mapping[str, Mapping[str, Any]]
    checks: Mapping[str, Check]

    @property
    def metric(self) -> str:
        """Its name in text."""
        return METRICS[self.study.metric].heading or self.study.metric


@dataclass(frozen=True)
class DifferenceRow:
    """An arm in a chart: a dot for each subset, the mean and its interval, as positions."""

    name: str
    y: float
    dots: list[tuple[float, str]]
    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class DifferenceChart:
    """Differences of the arms from the first, at one number of cases and steps."""

    title: str
    against: str
    rows: list[DifferenceRow]
    ticks: list[tuple[float, str]]
    zero: float
    width: int
    height: int


def sentence(page: StudyPage) -> str:
    """The result of the primary comparison in words."""
    at, row = page.study.primary, page.results.primary
    size = f"{plural(at.train_cases, 'labelled case')} and {plural(at.max_steps, 'step')}"
    what = f"{at.arm} against {at.against}, {size}"
    if row is None or row.paired is None:
        return f"{what}: not finished."
    found, (low, high) = row.paired, row.paired.bootstrap
    answer = "not resolved: the interval includes zero"
    if found.decided:
        answer = f"{at.arm} is better" if found.mean > 0 else f"{at.arm} is worse"
    return (
        f"{what}: {found.mean:+.4f} {page.metric} over {len(row.subsets)} label subsets (95 % interval "
        f"{low:+.4f} to {high:+.4f}); {answer}."
    )


def say(page: StudyPage) -> None:
    """Print the primary comparison and a table of all."""
    console = Console()
    console.print(sentence(page), markup=False, style="bold")
    table = Table(title=f"{page.metric}, minus {next(iter(page.study.arms))}", box=SIMPLE_HEAD, padding=0)
    for heading in ("cases", "steps", "subsets"):
        table.add_column(heading, justify="right")
    table.add_column("arm", overflow="fold", min_width=6)
    for heading in (page.metric, "minus", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in page.results.rows:
        size = map(str, (row.train_cases, row.max_steps, len(row.subsets)))
        table.add_row(*size, escape(row.arm), number(row.mean), *_difference(row))
    console.print(table)


def _difference(row: Row) -> tuple[str, str]:
    if row.paired is None:
        return "", ""
    low, high = row.paired.bootstrap
    return f"{row.paired.mean:+.4f}", f"{low:+.4f} to {high:+.4f}"


def number(value: float, sign: str = "") -> str:
    """A metric in a table."""
    return "-" if math.isnan(value) else f"{value:{sign}.4f}"


def write_study_page(out: Path, page: StudyPage) -> Path:
    """Write `study.html`.

    Raises:
        Dae3dError: if it cannot be written, or is another file.
    """
    study = page.study
    sizes = dict.fromkeys((row.train_cases, row.max_steps) for row in page.results.rows)
    by_size = {
        size: [row for row in page.results.rows if (row.train_cases, row.max_steps) == size] for size in sizes
    }
    primary = study.primary.train_cases, study.primary.max_steps
    tables = sorted(by_size.items(), key=lambda item: item[0] != primary)
    seconds = sum(took for _, took in page.cells.values())
    text = fill(
        "study.html",
        {"number": number, "duration": duration},
        page=page,
        study=study,
        primary=sentence(page),
        tables=tables,
        charts=[chart for _, rows in tables if (chart := difference_chart(rows))],
        choices=_choices(page),
        inits={name: arm.model_dump(exclude_defaults=True) for name, arm in study.arms.items()},
        probes=_probes(page),
        seconds=seconds,
        settings=yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, default_flow_style=None),
        recipes={
            name: yaml.safe_dump(dict(own), sort_keys=False, default_flow_style=None)
            for name, own in page.recipes.items()
        },
        version=__version__,
    )
    write_page(out / PAGE, text)
    return out / PAGE


def _choices(page: StudyPage) -> list[tuple[str, list[tuple[float, float, int, bool]]]]:
    """Of each arm that chooses: its rates, their means, number of finished cells, and which is chosen."""
    found = []
    for arm in page.study.chooses:
        rates = []
        for lr in page.study.lr:
            own = [
                m for cell, (m, _) in page.cells.items() if cell.chooses and (cell.arm, cell.lr) == (arm, lr)
            ]
            mean = sum(own) / len(own) if own else math.nan
            rates.append((lr, mean, len(own), page.rates.get(arm) == lr))
        found.append((arm, rates))
    return found


def _probes(page: StudyPage) -> list[tuple[str, dict[str, float], float]]:
    """Of each arm with a check: the cheap figures, and its difference in the primary comparison."""
    at, found = page.study.primary, []
    for name, check in page.checks.items():
        figures = check.figures
        shown = {
            "voxel probe, all levels": figures.dice.get("all", math.nan),
            "share of the deepest level, %": figures.share.get(max(figures.levels, default=""), math.nan),
            "share of all levels, %": figures.share.get("all", math.nan),
            "repair, L1": math.nan if figures.l1 is None else figures.l1,
        }
        rows = [
            row.paired.mean
            for row in page.results.rows
            if row.paired
            and (row.arm, row.train_cases, row.max_steps) == (name, at.train_cases, at.max_steps)
        ]
        found.append((name, shown, rows[0] if rows else math.nan))
    return found


def read_check(run: Path) -> Check | None:
    """What `dae3d check` found for a run, if it was checked."""
    try:
        return Check.model_validate_json((run / "check.json").read_text("utf-8"))
    except (OSError, ValidationError):
        return None


def difference_chart(rows: Sequence[Row]) -> DifferenceChart | None:
    """Lay out the differences of arms from the first; None if there are none."""
    compared = [(row, row.paired) for row in rows if row.paired is not None]
    if not compared:
        return None
    ends = [end for _, found in compared for end in (*found.differences, *found.bootstrap)]
    tick = _round_step(max(abs(end) for end in ends) / _TICKS)
    low, high = (math.floor(min(0, *ends) / tick), math.ceil(max(0, *ends) / tick))

    def x(value: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (value / tick - low) / (high - low), 1)

    drawn = [
        DifferenceRow(
            name=row.arm,
            y=_TOP + _ROW * (place + 0.5),
            dots=[
                (x(value), f"subset {subset}: {value:+.4f}")
                for subset, value in zip(row.subsets, found.differences, strict=True)
            ],
            mean=x(found.mean),
            interval=(x(found.bootstrap[0]), x(found.bootstrap[1])),
        )
        for place, (row, found) in enumerate(compared)
    ]
    first = compared[0][0]
    return DifferenceChart(
        title=f"{plural(first.train_cases, 'labelled case')}, {plural(first.max_steps, 'step')}",
        against=first.against,
        rows=drawn,
        ticks=[(x(place * tick), f"{place * tick:+.3g}" if place else "0") for place in range(low, high + 1)],
        zero=x(0),
        width=_WIDTH,
        height=_TOP + _ROW * len(drawn) + 24,
    )


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least `least`."""
    if not least > 0:
        return 0.001
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
