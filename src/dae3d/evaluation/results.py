"""Scores of all cases and their summary: means with confidence intervals, ranking, `metrics.csv`."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dae3d.evaluation.bootstrap import interval, resampled_means
from dae3d.evaluation.segmentation_metrics import METRICS, Scores

_DECIMALS = 6


@dataclass(frozen=True)
class Mean:
    """A mean over `cases` cases with its 95 % bootstrap interval; NaN if there are no values.

    With fewer than two cases the interval is NaN.
    """

    value: float
    low: float
    high: float
    cases: int


@dataclass(frozen=True)
class ClassSummary:
    """Summary of a class over all cases.

    Attributes:
        present: number of cases with the class in the reference.
        missed: number of these without the class in the prediction.
        spurious: number of cases with the class in the prediction but not in the reference.
        means: means by metric.
    """

    present: int
    missed: int
    spurious: int
    means: dict[str, Mean]


@dataclass(frozen=True)
class Results:
    """Scores by case and class.

    Attributes:
        cases: names in the order of the task.
        classes: label values by name, without regions.
        regions: label values by name; a region is a union of classes.
        values: (cases, classes followed by regions, metrics).
        metrics: names of the metrics.
        seed: of the bootstrap.
    """

    cases: tuple[str, ...]
    classes: dict[str, tuple[int, ...]]
    regions: dict[str, tuple[int, ...]]
    values: np.ndarray
    seed: int
    metrics: tuple[str, ...]

    @classmethod
    def of(
        cls,
        scores: Mapping[str, Mapping[str, Scores]],
        classes: Mapping[str, Sequence[int]],
        regions: Mapping[str, Sequence[int]],
        seed: int,
    ) -> "Results":
        """Make results from scores by case and class."""
        names = [*classes, *regions]
        values = [[[*case[name].values()] for name in names] for case in scores.values()]
        return cls(
            cases=tuple(scores),
            classes={name: tuple(labels) for name, labels in classes.items()},
            regions={name: tuple(labels) for name, labels in regions.items()},
            values=np.array(values, float),
            seed=seed,
            metrics=tuple(METRICS),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Classes, then regions."""
        return (*self.classes, *self.regions)

    def metric(self, name: str) -> np.ndarray:
        """The values of one metric, (cases, classes followed by regions)."""
        return self.values[..., self.metrics.index(name)]

    @cached_property
    def case_dice(self) -> np.ndarray:
        """The mean Dice over the classes of each case, (cases,); NaN if undefined for all classes."""
        return _finite_mean(self.metric("dice")[:, : len(self.classes)], axis=1)

    @cached_property
    def ranked(self) -> list[int]:
        """Indices of the cases with a mean Dice, worst first."""
        order = np.argsort(self.case_dice, kind="stable")
        return [int(i) for i in order if not math.isnan(self.case_dice[i])]

    @cached_property
    def summaries(self) -> dict[str, ClassSummary]:
        """Summaries by class and region."""
        wanted, predicted = self.metric("reference_ml") > 0, self.metric("predicted_ml") > 0
        return {
            name: ClassSummary(
                present=int(wanted[:, i].sum()),
                missed=int((wanted & ~predicted)[:, i].sum()),
                spurious=int((predicted & ~wanted)[:, i].sum()),
                means=self._means([i]),
            )
            for i, name in enumerate(self.names)
        }

    @cached_property
    def mean(self) -> dict[str, Mean]:
        """By metric, the mean over classes of the class means, with equal weights."""
        return self._means(range(len(self.classes)))

    @cached_property
    def mean_of_regions(self) -> dict[str, Mean]:
        """The same over regions."""
        return self._means(range(len(self.classes), len(self.names)))

    @cached_property
    def _resampled(self) -> np.ndarray:
        """(resamples, classes and then regions, metrics)."""
        return resampled_means(self.values, self.seed)

    def _means(self, columns: Sequence[int]) -> dict[str, Mean]:
        """By metric (except volumes), the mean over the means of some classes."""
        return {name: self._mean(name, columns) for name in self.metrics if not METRICS[name].volume}

    def _mean(self, metric: str, columns: Sequence[int]) -> Mean:
        index = self.metrics.index(metric)
        values = self.values[:, list(columns), index]
        cases = int(np.isfinite(values).any(axis=1).sum())
        value = float(_finite_mean(_finite_mean(values, axis=0), axis=0))
        if cases < 2:
            return Mean(value, math.nan, math.nan, cases)
        low, high = interval(_finite_mean(self._resampled[:, list(columns), index], axis=1))
        return Mean(value, low, high, cases)

    def csv(self) -> str:
        """The values in long format: `case,class,metric,value`."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(("case", "class", "metric", "value"))
        for case, table in zip(self.cases, self.values, strict=True):
            for name, row in zip(self.names, table, strict=True):
                writer.writerows(
                    (case, name, metric, round(float(value), _DECIMALS))
                    for metric, value in zip(self.metrics, row, strict=True)
                )
        return text.getvalue()

    def json(self) -> dict[str, Any]:
        """All results; NaN and infinite values are None."""
        regions = {"mean_of_regions": _as_dicts(self.mean_of_regions)} if self.regions else {}
        return {
            "mean": _as_dicts(self.mean),
            **regions,
            "classes": {
                name: {
                    "values": list((self.classes | self.regions)[name]),
                    "present": summary.present,
                    "missed": summary.missed,
                    "spurious": summary.spurious,
                    **_as_dicts(summary.means),
                }
                for name, summary in self.summaries.items()
            },
            "cases": {
                case: {
                    "mean_dice": _number(self.case_dice[i]),
                    "classes": {
                        name: {m: _number(v) for m, v in zip(self.metrics, row, strict=True)}
                        for name, row in zip(self.names, self.values[i], strict=True)
                    },
                }
                for i, case in enumerate(self.cases)
            },
        }


def _finite_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of finite values; NaN if there are none."""
    known = np.isfinite(values)
    counts = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.divide(total, counts, out=np.full(np.shape(total), np.nan), where=counts > 0)


def _as_dicts(means: Mapping[str, Mean]) -> dict[str, dict[str, float | int | None]]:
    return {
        name: {
            "mean": _number(m.value),
            "low": _number(m.low),
            "high": _number(m.high),
            "cases": m.cases,
        }
        for name, m in means.items()
    }


def _number(value: float) -> float | None:
    return round(float(value), _DECIMALS) if math.isfinite(value) else None
