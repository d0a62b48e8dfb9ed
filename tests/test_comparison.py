"""Paired comparisons of arms: intervals and p values by hand, by a loop, and by the definition."""

import numpy as np
import pytest

from dae3d.studies.comparison import Paired, holm, paired


def test_a_paired_comparison_by_hand():
    # Differences of subsets 0.01, 0.02, 0.03: mean 0.02, deviation 0.01, t of 2 degrees of freedom 4.3027.
    against = np.array([[0.5, 0.6, 0.7]] * 3)
    found = paired(against + np.array([[0.01], [0.02], [0.03]]), against)
    assert found.mean == pytest.approx(0.02)
    assert found.deviation == pytest.approx(0.01)
    assert found.t == pytest.approx((0.02 - 4.3027 * 0.01 / 3**0.5, 0.02 + 4.3027 * 0.01 / 3**0.5), abs=1e-5)
    assert found.p == pytest.approx(0.25)  # 2 of the 8 signs of three ranks are as extreme
    assert not found.decided


def test_the_bootstrap_draws_subsets_and_then_cases():
    random = np.random.default_rng(5)
    apart = (
        random.normal(0.02, 0.03, (6, 1)) + random.normal(0, 0.05, (1, 20)) + random.normal(0, 0.02, (6, 20))
    )
    means = [
        apart[np.ix_(random.integers(6, size=6), random.integers(20, size=20))].mean() for _ in range(20_000)
    ]
    found = paired(apart, np.zeros_like(apart))
    assert found.bootstrap == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-3)


def test_cases_without_a_value_are_left_out_of_both_arms():
    values = np.array([[0.9, 0.8, np.nan], [0.9, 0.8, 0.1]])
    found = paired(values, np.full((2, 3), 0.5))
    assert found.differences == pytest.approx((0.35, 0.35))


def test_holm_by_hand():
    family = [Paired((0.0, 1.0), (0, 0), (0, 0), p) for p in (0.01, 0.04, 0.03)]
    # Sorted 0.01, 0.03, 0.04: times 3, 2, 1, never smaller than the one before.
    assert [each.adjusted_p for each in holm(family)] == pytest.approx([0.03, 0.06, 0.06])
