"""The results of a study: every comparison with its intervals, and every cell."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dae3d.studies.cells import Cell
from dae3d.studies.comparison import Paired, holm, paired
from dae3d.studies.plan import Study

Values = Mapping[Cell, Mapping[str, float]]


@dataclass(frozen=True)
class Row:
    """An arm at one number of cases and steps; `paired` with `against`, or None if it is that arm itself.

    Attributes:
        subsets: those that are finished for this arm and the other.
        mean: of the metric over them and the test cases; NaN if there are none.
        paired: needs at least two subsets.
    """

    arm: str
    against: str
    train_cases: int
    max_steps: int
    lr: float
    subsets: tuple[int, ...]
    mean: float
    paired: Paired | None

    def json(self) -> dict[str, Any]:
        """For `study.json`."""
        found = asdict(self)
        if self.paired is not None:
            found["paired"] |= {"mean": self.paired.mean, "deviation": self.paired.deviation}
        return found


@dataclass(frozen=True)
class Results:
    """Results as far as cells are finished.

    Attributes:
        primary: the comparison named in the study; None while an arm has no learning rate.
        rows: of each number of cases and steps, all arms against the first.
    """

    primary: Row | None
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, study: Study, rates: Mapping[str, float], values: Values) -> "Results":
        """Compare the finished cells.

        Args:
            study: the study.
            rates: learning rate of each arm that has one.
            values: of each finished cell, the metric by test case.
        """
        first = next(iter(study.arms))
        rows = []
        for steps in study.max_steps:
            for arm in (name for name in study.arms if name in rates):
                own = [_row(study, rates, values, (arm, first), (c, steps)) for c in study.train_cases]
                rows += _with_holm(own)
        at = study.primary
        sizes = at.train_cases, at.max_steps
        named = {at.arm, at.against} <= rates.keys()
        primary = _row(study, rates, values, (at.arm, at.against), sizes) if named else None
        return cls(primary, tuple(sorted(rows, key=lambda row: (row.train_cases, row.max_steps))))

    def json(self) -> dict[str, Any]:
        """For `study.json`."""
        return {
            "primary": self.primary.json() if self.primary else None,
            "comparisons": [row.json() for row in self.rows],
        }


def _row(
    study: Study, rates: Mapping[str, float], values: Values, arms: tuple[str, str], size: tuple[int, int]
) -> Row:
    arm, against = arms

    def cells(name: str, subsets: Sequence[int]) -> list[Cell]:
        return [Cell(name, *size, subset, rates[name]) for subset in subsets if name in rates]

    def finished(name: str) -> set[int]:
        return {cell.subset for cell in cells(name, study.subsets) if cell in values}

    both = finished(arm) & finished(against) if against in rates else finished(arm)
    subsets = tuple(subset for subset in study.subsets if subset in both)
    found = [_table(values, cells(name, subsets)) for name in arms if name in rates]
    enough = arm != against and len(subsets) > 1 and len(found) == 2
    mean = float(np.nanmean(found[0])) if subsets else float("nan")
    comparison = paired(found[0], found[1]) if enough else None
    return Row(arm, against, *size, rates[arm], subsets, mean, comparison)


def _table(values: Values, cells: Sequence[Cell]) -> np.ndarray:
    """The metric by cell and test case, (cells, cases)."""
    names = sorted({case for cell in cells for case in values[cell]})
    return np.array([[values[cell].get(case, np.nan) for case in names] for cell in cells])


def _with_holm(rows: Sequence[Row]) -> list[Row]:
    compared = [row.paired for row in rows if row.paired is not None]
    adjusted = iter(holm(compared))
    return [row if row.paired is None else Row(**{**vars(row), "paired": next(adjusted)}) for row in rows]


def cells_csv(cells: Mapping[Cell, tuple[float, float]], metric: str) -> str:
    """Every finished cell as CSV, from its mean and the seconds it took."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "train_cases", "max_steps", "subset", "lr", "chooses_lr", metric, "seconds"])
    for cell, (mean, seconds) in cells.items():
        size = cell.arm, cell.train_cases, cell.max_steps, cell.subset
        writer.writerow([*size, f"{cell.lr:g}", int(cell.chooses), f"{mean:.6f}", f"{seconds:.1f}"])
    return text.getvalue()


def dumped(results: Results, rates: Mapping[str, float], study: Study) -> str:
    """`study.json`."""
    found = {
        "study": study.model_dump(mode="json"),
        "learning_rates": dict(rates),
        **results.json(),
    }
    return json.dumps(found, indent=1) + "\n"
