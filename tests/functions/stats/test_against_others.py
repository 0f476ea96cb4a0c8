"""The same numbers from other people's code."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toque.functions.evaluation import reliability
from toque.functions.rollout import ClusterSums
from toque.functions.stats import (
    Moments,
    benjamini_hochberg,
    betting_cs,
    difference,
    group_sequential_bounds,
    holm,
    plan_run,
    ratio,
)

statsmodels = pytest.importorskip("statsmodels.api", reason="statsmodels is in the dev group")


# spotify-confidence 4.1.0, sequential_bound_solver.bounds(ztrun=8), whose own grid is good for 1e-4.
@pytest.mark.parametrize(
    ("looks", "rho", "alpha", "sides", "bounds"),
    [
        ([0.1, 0.3, 0.35, 0.9, 1.0], 1.5, 0.05, 2, [3.1594, 2.6997, 2.7712, 2.1021, 2.1738]),
        ([0.25, 0.5, 0.75, 1.0], 3.0, 0.01, 1, [3.6047, 3.0499, 2.6901, 2.4019]),
        ([0.2, 0.4, 0.6, 0.8, 1.0], 2.0, 0.05, 2, [3.0902, 2.7141, 2.4727, 2.2798, 2.114]),
        (
            [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
            2.0,
            0.05,
            2,
            [3.4808, 3.1523, 2.9508, 2.7935, 2.661, 2.545, 2.4406, 2.3451, 2.2566, 2.1736],
        ),
        ([0.25, 0.5, 0.75, 1.0], 1.0, 0.025, 1, [2.4977, 2.4071, 2.3208, 2.2448]),
    ],
)
def test_group_sequential_bounds(
    looks: list[float], rho: float, alpha: float, sides: int, bounds: list[float]
) -> None:
    assert list(group_sequential_bounds(looks, alpha=alpha, rho=rho, sides=sides)) == pytest.approx(
        bounds, abs=1.5e-4
    )


# confseq 0.0.11, betting.betting_cs(x, alpha=.05, breaks=1000, running_intersection=True). The package itself needs a compiler,
# Boost and numpy < 2 and so stands in no group; `expectation` needs Python 3.12.
@pytest.mark.parametrize(
    ("values", "lower", "upper"),
    [
        ([1.0 if i % 10 < 3 else 0.0 for i in range(100)], 0.199, 0.464),
        (np.random.default_rng(7).beta(2, 5, 500)[:100], 0.222, 0.324),
        (np.random.default_rng(7).beta(2, 5, 500), 0.252, 0.295),
        ((np.random.default_rng(8).random(1_000) < 0.1) * 1.0, 0.058, 0.133),
    ],
    ids=["three of ten", "beta, 100", "beta, 500", "one of ten"],
)
def test_betting_is_that_of_confseq(values: object, lower: float, upper: float) -> None:
    cs = betting_cs(values)
    assert (cs.lower, cs.upper) == (pytest.approx(lower, abs=1e-9), pytest.approx(upper, abs=1e-9))


def test_corrections_for_many_questions() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(40) ** 3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_the_size_of_a_fixed_test(share: float) -> None:
    from statsmodels.stats.power import NormalIndPower

    treated = NormalIndPower().solve_power(0.05, alpha=0.05, power=0.8, ratio=(1 - share) / share)
    plan = plan_run(2.0, 0.1, units_per_day=1.0, treatment_share=share)
    assert plan.n_fixed == pytest.approx(treated / share, rel=1e-4)


def test_a_difference_of_means_with_unequal_variances() -> None:
    from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 50), rng.normal(0.3, 3, 80)
    effect = difference(Moments.of(a), Moments.of(b))
    z = CompareMeans(DescrStatsW(b), DescrStatsW(a)).ztest_ind(usevar="unequal")[0]
    assert effect.estimate / effect.standard_error == pytest.approx(z)


def test_the_error_of_a_mean_whose_rows_hang_together() -> None:
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 9, 60)
    group = np.repeat(np.arange(60), sizes)
    values = np.repeat(rng.normal(0, 1, 60), sizes) + rng.normal(0, 0.5, len(group))
    fit = statsmodels.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": group})
    assert ClusterSums.of(values, group).standard_error() == pytest.approx(fit.bse[0], rel=1e-9)
    by_ratio = ratio(np.bincount(group, weights=values), np.bincount(group).astype(float))
    assert by_ratio.standard_error == pytest.approx(fit.bse[0], rel=1e-9)


def test_the_interval_of_a_share() -> None:
    from statsmodels.stats.proportion import proportion_confint

    label = np.array([1.0] * 7 + [0.0] * 23)
    point = reliability(label, np.full(30, 0.2), bins=1)[0]
    assert (point.low, point.high) == pytest.approx(proportion_confint(7, 30, method="beta"))
    assert not math.isclose(point.observed, point.answered)
