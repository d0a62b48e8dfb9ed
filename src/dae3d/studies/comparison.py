"""Paired comparisons of arms, with intervals over label subsets and test cases."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from dae3d.evaluation.bootstrap import RESAMPLES, interval

_LEVEL = 0.95


@dataclass(frozen=True)
class Paired:
    """The difference of two arms over label subsets.

    Attributes:
        differences: of each subset, the mean over the test cases.
        t: 95 % interval of the mean by Student's t over the subsets.
        bootstrap: 95 % interval by a bootstrap over subsets and then cases, both arms together.
        p: of Wilcoxon's signed-rank test over the subsets.
        adjusted_p: by Holm's method over the numbers of labelled cases.
    """

    differences: tuple[float, ...]
    t: tuple[float, float]
    bootstrap: tuple[float, float]
    p: float
    adjusted_p: float = float("nan")

    @property
    def mean(self) -> float:
        """Mean difference."""
        return float(np.mean(self.differences))

    @property
    def deviation(self) -> float:
        """Standard deviation of a pair's difference."""
        return float(np.std(self.differences, ddof=1))

    @property
    def decided(self) -> bool:
        """Whether both intervals exclude zero."""
        return all(low > 0 or high < 0 for low, high in (self.t, self.bootstrap))


def paired(values: np.ndarray, against: np.ndarray, seed: int = 0) -> Paired:
    """Compare two arms.

    Args:
        values: (subsets, cases), at least two subsets; cases with a value that is not finite are left out.
        against: of the other arm, on the same subsets and cases.
        seed: of the bootstrap.
    """
    apart = values - against
    apart = apart[:, np.isfinite(apart).all(axis=0)]
    by_subset = apart.mean(axis=1)
    error = max(stats.sem(by_subset), 1e-12)
    low, high = stats.t.interval(_LEVEL, len(by_subset) - 1, by_subset.mean(), error)
    random = np.random.default_rng(seed)
    subsets, cases = (random.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in apart.shape)
    drawn = np.einsum("rs,sc,rc->r", subsets, apart, cases, optimize=True)
    p = float(stats.wilcoxon(by_subset).pvalue) if by_subset.any() else 1.0
    return Paired(tuple(by_subset.tolist()), (float(low), float(high)), interval(drawn), p)


def holm(found: Sequence[Paired]) -> list[Paired]:
    """The comparisons of a family, with Holm's adjusted p (Holm 1979)."""
    order = sorted(range(len(found)), key=lambda place: found[place].p)
    adjusted, largest = [0.0] * len(found), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(found) - rank) * found[place].p))
        adjusted[place] = largest
    return [replace(each, adjusted_p=p) for each, p in zip(found, adjusted, strict=True)]
