"""Intervals of means over cases, by drawing the cases again (Efron's percentile bootstrap)."""

import numpy as np

RESAMPLES = 10_000
LEVEL = 95  # percent
_CHUNK = 500  # resamples at a time, which bounds the memory


def resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Means over `RESAMPLES` draws of as many cases as there are, with replacement.

    Every column is drawn with the same cases, so that columns can be combined afterwards. What is not
    finite is left out of the means; a mean that nothing is left of is NaN.

    Args:
        values: (cases, ...).
        seed: of the draws.

    Returns:
        (RESAMPLES, ...).
    """
    cases = len(values)
    flat = values.reshape(cases, -1)
    known = np.isfinite(flat).astype(float)
    table = np.where(known, flat, 0.0)
    random = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, flat.shape[1]))
    for start in range(0, RESAMPLES, _CHUNK):
        # How often each case is drawn is all that a mean depends on.
        drawn = random.multinomial(cases, np.full(cases, 1 / cases), size=_CHUNK).astype(float)
        counts = drawn @ known
        means[start : start + _CHUNK] = np.divide(
            drawn @ table, counts, out=np.full_like(counts, np.nan), where=counts > 0
        )
    return means.reshape(RESAMPLES, *values.shape[1:])


def interval(means: np.ndarray) -> tuple[float, float]:
    """The central 95 % of resampled means, (RESAMPLES,); NaN among them is left out."""
    tail = (100 - LEVEL) / 2
    low, high = np.nanpercentile(means, (tail, 100 - tail))
    return float(low), float(high)
