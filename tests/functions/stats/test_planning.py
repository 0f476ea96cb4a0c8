import math

import numpy as np
import pytest
from scipy import stats

from toque.functions.stats import (
    Moments,
    asymptotic_cs,
    epsilon_greedy,
    group_sequential_bounds,
    minimum_detectable_effect,
    plan_run,
    thompson,
)
from toque.functions.stats.comparison.planner import stopping_times


def test_the_fixed_size_is_the_textbook_one():
    plan = plan_run(1.0, 0.1, units_per_day=100)
    assert plan.n_fixed == math.ceil(4 * ((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) / 0.1) ** 2)
    assert plan.n_expected < plan.n_worst
    assert plan.days_worst == pytest.approx(plan.n_worst / 100, rel=1e-3)


def test_the_detectable_effect_is_the_plan_read_backwards():
    plan = plan_run(2.0, 0.05, units_per_day=1e4, treatment_share=0.1)
    found = minimum_detectable_effect(2.0, plan.n_worst, treatment_share=0.1)
    assert found == pytest.approx(0.05, rel=1e-3)
    assert plan.n_fixed == pytest.approx(plan_run(2.0, 0.05, units_per_day=1).n_fixed * 0.25 / 0.09, rel=1e-3)


# 1,000 planned experiments: power within 4 s.e. (.05) of what was planned.
def test_an_experiment_of_the_planned_size_has_the_planned_power():
    rng = np.random.default_rng(0)
    plan = plan_run(1.0, 0.3, units_per_day=1)
    looks = np.unique(np.linspace(20, plan.n_worst // 2, 150).astype(int))
    found = 0
    for _ in range(1_000):
        a, b = rng.standard_normal(looks[-1]), rng.standard_normal(looks[-1]) + 0.3
        sums = [np.cumsum(x)[looks - 1] for x in (a, a * a, b, b * b)]
        found += any(
            asymptotic_cs(
                Moments(n, sa / n, saa - sa * sa / n), Moments(n, sb / n, sbb - sb * sb / n), n_opt=plan.n_opt
            ).reject
            for n, sa, saa, sb, sbb in zip(looks.tolist(), *(s.tolist() for s in sums), strict=True)
        )
    assert found / 1_000 == pytest.approx(0.8, abs=0.05)


# Where a fixed test has 80 %: .774 (published), 4 s.e. of 20,000 paths are .012; .72 of the units on average.
def test_group_sequential_power_is_the_published_one():
    looks = np.arange(1, 11) / 10
    bounds = np.array(group_sequential_bounds(10, rho=2).bounds)
    drift = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    paths = np.cumsum(
        np.random.default_rng(0).standard_normal((20_000, 10)) / math.sqrt(10) + drift / 10, axis=1
    )
    beyond = np.abs(paths) / np.sqrt(looks) >= bounds
    assert beyond.any(axis=1).mean() == pytest.approx(0.774, abs=0.012)
    stop = np.where(beyond.any(axis=1), looks[beyond.argmax(axis=1)], 1.0)
    assert stop.mean() == pytest.approx(0.72, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"effect": 0.0}, "above 0"),
        ({"treatment_share": 1.0}, "0 < share < 1"),
        ({"units_per_day": 0}, "above 0"),
    ],
)
def test_plans_that_cannot_be_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        plan_run(**{"standard_deviation": 1.0, "effect": 0.1, "units_per_day": 10, **changes})
    with pytest.raises(ValueError, match="above 0"):
        minimum_detectable_effect(1.0, 0)


def test_thompson_prefers_what_pays_and_keeps_a_floor():
    arms = {"a": Moments.of_counts(100, 1_000), "b": Moments.of_counts(200, 1_000), "new": Moments()}
    allocation = thompson(arms, rng=np.random.default_rng(0), floor=0.02)
    assert sum(allocation.shares.values()) == pytest.approx(1.0)
    assert allocation.shares["a"] == pytest.approx(0.02)
    assert allocation.best["new"] == pytest.approx(0.8, abs=0.03)  # P(uniform > .2)
    assert allocation == thompson(arms, rng=np.random.default_rng(0), floor=0.02)


def test_epsilon_greedy_tries_the_untried_and_shares_ties():
    arms = {"a": Moments.of_counts(1, 10), "b": Moments.of_counts(3, 10)}
    assert epsilon_greedy(arms, epsilon=0.1).shares == pytest.approx({"a": 0.05, "b": 0.95})
    assert epsilon_greedy({**arms, "c": Moments()}, epsilon=0.0).shares == {"a": 0.0, "b": 0.0, "c": 1.0}


def test_arms_that_cannot_be_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="0 arms"):
        thompson({}, rng=rng)
    with pytest.raises(ValueError, match="share of at least"):
        thompson({"a": Moments(), "b": Moments()}, rng=rng, floor=0.6)
    with pytest.raises(ValueError, match="scale them"):
        thompson({"a": Moments.of([3.0, 4.0])}, rng=rng)


# Published: 19.3 % and 37 %. 4 s.e. of 20,000 and 5,000 paths: .011 and .027.
@pytest.mark.parametrize(
    ("looks", "paths", "published", "error"), [(10, 20_000, 0.193, 0.011), (100, 5_000, 0.37, 0.027)]
)
def test_a_fixed_threshold_that_is_looked_at_finds_what_is_not_there(
    looks: int, paths: int, published: float, error: float
):
    steps = np.random.default_rng(1).standard_normal((paths, looks))
    z = np.cumsum(steps, axis=1) / np.sqrt(np.arange(1, looks + 1))
    assert (np.abs(z) > 1.96).any(axis=1).mean() == pytest.approx(published, abs=error)


# Published: .555 where a fixed test has .8, if every unit is looked at; 2,000 looks and 4 s.e. of 4,000 paths: .031.
def test_the_confidence_sequence_has_the_published_power():
    drift = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    stops = stopping_times(np.arange(1, 2_001) / 2_000, drift=drift, alpha=0.05)
    assert np.isfinite(stops).mean() == pytest.approx(0.555, abs=0.031)
