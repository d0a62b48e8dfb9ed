import itertools
import math

import numpy as np
import pytest
from scipy import stats

from dae3d.evaluation.bootstrap import RESAMPLES, interval, resampled_means


def test_every_possible_resample_of_five_cases() -> None:
    values = np.array([0.1, 0.55, 0.7, 0.93, 0.2])
    means = np.array([np.mean(drawn) for drawn in itertools.product(values, repeat=5)])
    found = resampled_means(values, seed=3)
    assert found.shape == (RESAMPLES,)
    assert found.mean() == pytest.approx(means.mean(), abs=0.005)
    assert found.std() == pytest.approx(means.std(), rel=0.03)
    assert interval(found) == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=0.015)


def test_what_is_not_finite_is_left_out_of_each_resample() -> None:
    values = np.array([0.2, math.nan, 0.6, math.inf])
    drawn = [np.array(d) for d in itertools.product(values, repeat=4)]
    means = np.array([d[np.isfinite(d)].mean() for d in drawn if np.isfinite(d).any()])
    found = resampled_means(values, seed=0)
    # One in sixteen resamples has no value at all.
    assert np.isnan(found).mean() == pytest.approx(1 / 16, abs=0.01)
    assert np.nanmean(found) == pytest.approx(means.mean(), abs=0.005)
    assert interval(found) == pytest.approx((0.2, 0.6))


@pytest.mark.parametrize("cases", [12, 80])
def test_agrees_with_scipy(cases: int) -> None:
    values = np.random.default_rng(cases).beta(6, 2, cases)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    low, high = interval(resampled_means(values, seed=5))
    width = high - low
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.04 * width)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.04 * width)


def test_width_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(10, 2, 400)
    low, high = interval(resampled_means(values, seed=0))
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.04)
    assert low < values.mean() < high


def test_columns_are_drawn_together() -> None:
    values = np.random.default_rng(1).random((9, 2, 3))
    found = resampled_means(values, seed=2)
    assert found.shape == (RESAMPLES, 2, 3)
    summed = resampled_means(values.sum(axis=(1, 2)), seed=2)
    np.testing.assert_allclose(found.sum(axis=(1, 2)), summed)
    assert not np.array_equal(resampled_means(values, seed=3), found)
