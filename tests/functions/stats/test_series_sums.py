"""Sums of clusters that follow each other in time."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conditions import days as conditions
from tests.conditions.days import Days
from toque.functions.stats import SeriesSums
from toque.functions.stats.comparison.cluster_sums import exact_sum, variance_ratio


def series(values: np.ndarray, sizes: np.ndarray) -> SeriesSums:
    total = SeriesSums()
    for value, size in zip(values, sizes, strict=True):
        total += SeriesSums.one(float(value), int(size))
    return total


def test_sums_pool_wherever_the_series_is_cut() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(0, 5, 30)
    values = np.where(sizes > 0, rng.normal(size=30), 0.0)
    whole = series(values, sizes)
    for cut in (1, 7, 29):
        left, right = series(values[:cut], sizes[:cut]), series(values[cut:], sizes[cut:])
        pooled = left + right
        assert pooled.next_square == pytest.approx(whole.next_square)
        assert (pooled.next_size, pooled.clusters, pooled.last) == (
            whole.next_size,
            whole.clusters,
            whole.last,
        )


def test_neighbours_products_are_those_of_the_deviations() -> None:
    values = np.array([1.0, 4.0, 2.0, 8.0, 5.0])
    whole = series(values, np.ones(5))
    deviation = values - 4.0
    correlation = (deviation[1:] * deviation[:-1]).sum() / (deviation**2).sum()
    error, freedom = whole.long_run()
    ratio = float(variance_ratio(correlation, 5))
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(5) * np.sqrt(ratio))
    assert freedom == pytest.approx(max(4 / ratio, 1.0))


# The mean of 60 days lies within two of its long-run errors in at least 95 % less 4 s.e. of 300 series = .90.
@pytest.mark.parametrize("days", conditions.parameters("independent", "correlated", "strongly correlated"))
def test_the_long_run_error_covers_a_mean_of_days_that_are_alike(days: Days) -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(300):
        drawn = series(days.draw(rng, 60), np.ones(60))
        error, _ = drawn.long_run()
        inside += abs(drawn.mean) <= 2 * error
    assert inside / 300 >= 0.95 - 4 * np.sqrt(0.05 * 0.95 / 300)


def test_a_sum_is_rounded_once_in_any_order_and_says_infinity() -> None:
    values = np.concatenate([np.full(1_000, 0.1), [1e16, -1e16]])
    rng = np.random.default_rng(3)
    assert {exact_sum(rng.permutation(values)) for _ in range(20)} == {exact_sum(values)}
    assert exact_sum(np.array([np.inf, 1.0])) == np.inf
    assert np.isnan(exact_sum(np.array([np.inf, -np.inf])))
    assert exact_sum(np.array([1e308, 1e308])) == np.inf
