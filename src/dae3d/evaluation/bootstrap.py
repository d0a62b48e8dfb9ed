"""Confidence intervals of means over cases by the percentile bootstrap (Efron)."""

import numpy as np

RESAMPLES = 10_000
LEVEL = 95  # percent
_CHUNK = 500  # resamples at a time, to bound memory


def resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Means over `RESAMPLES` bootstrap samples of the cases.

    All columns use the same samples, so that columns can be combined afterwards. Values that are not finite
    are left out of the means; a mean without any finite value is NaN.

    Args:
        values: (cases, ...).
        seed: of the random samples.

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
        # A mean depends only on how often each case is drawn.
        drawn = random.multinomial(cases, np.full(cases, 1 / cases), size=_CHUNK).astype(float)
        counts = drawn @ known
        means[start : start + _CHUNK] = np.divide(
            drawn @ table, counts, out=np.full_like(counts, np.nan), where=counts > 0
        )
    return means.reshape(RESAMPLES, *values.shape[1:])


def interval(means: np.ndarray) -> tuple[float, float]:
    """The central 95 % of resampled means (RESAMPLES,), ignoring NaN."""
    tail = (100 - LEVEL) / 2
    low, high = np.nanpercentile(means, (tail, 100 - tail))
    return float(low), float(high)
