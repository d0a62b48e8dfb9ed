"""The cells of a study: one fine-tuning each, and where its files are."""

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from dae3d.studies.plan import Study

DONE = "done.json"
METRICS_FILE = "evaluation/metrics.csv"


@dataclass(frozen=True)
class Cell:
    """One fine-tuning; `chooses` if it only serves to choose a learning rate."""

    arm: str
    train_cases: int
    max_steps: int
    subset: int
    lr: float
    chooses: bool = False

    @property
    def name(self) -> str:
        """The path of its folder within that of the study."""
        size = f"cases{self.train_cases}-steps{self.max_steps}"
        return f"cells/{size}/{self.arm}-subset{self.subset}-lr{self.lr:g}"

    def values(self, out: Path, metric: str) -> dict[str, float] | None:
        """The metric of each test case, the mean over its classes; None if the cell is not finished."""
        folder = out / self.name
        if not (folder / DONE).is_file():
            return None
        by_case: dict[str, list[float]] = {}
        with (folder / METRICS_FILE).open(newline="") as file:
            for row in csv.DictReader(file):
                if row["metric"] == metric:
                    by_case.setdefault(row["case"], []).append(float(row["value"] or "nan"))
        return {case: _mean(values) for case, values in by_case.items()}


def _mean(values: list[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else math.nan


def choosing_cells(study: Study) -> Iterator[Cell]:
    """The cells that choose learning rates: as in the primary comparison, on other subsets."""
    at = study.primary
    for subset in study.lr_subsets:
        for arm in study.chooses:
            for lr in study.lr:
                yield Cell(arm, at.train_cases, at.max_steps, subset, lr, chooses=True)


def compared_cells(study: Study, rates: Mapping[str, float]) -> Iterator[Cell]:
    """The cells that are compared, the primary comparison first; arms without a rate yet are left out."""
    primary = study.primary.train_cases, study.primary.max_steps
    sizes = [(cases, steps) for cases in study.train_cases for steps in study.max_steps]
    for cases, steps in sorted(sizes, key=lambda size: size != primary):
        for subset in study.subsets:
            for arm in study.arms:
                if arm in rates:
                    yield Cell(arm, cases, steps, subset, rates[arm])


def chosen_rates(study: Study, values: Mapping[Cell, float]) -> dict[str, float]:
    """The learning rate of each arm that is fixed, or whose cells are all finished.

    Args:
        study: the study.
        values: mean metric of the finished cells.
    """
    rates = {name: arm.lr or study.lr[0] for name, arm in study.arms.items() if name not in study.chooses}
    for arm in study.chooses:
        own = [cell for cell in choosing_cells(study) if cell.arm == arm]
        if all(cell in values for cell in own):
            means = {lr: fmean(values[cell] for cell in own if cell.lr == lr) for lr in sorted(study.lr)}
            rates[arm] = max(means, key=lambda lr: means[lr])
    return rates
