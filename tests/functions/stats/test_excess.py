from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from toque.functions.stats import (
    counted_quantile_p,
    excess_p,
    quantile_test,
    rate_above_p,
    rate_below_p,
    rate_floor,
)

RUNS = 400
BOUND = 0.05 + 4 * np.sqrt(0.05 * 0.95 / RUNS)  # alpha + 4 s.e.


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(24)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_events_split_as_the_traffic_are_no_excess(share: float, rng: np.random.Generator) -> None:
    on_arm = np.cumsum(rng.random((RUNS, 300)) < share, axis=1)
    others = np.arange(1, 301) - on_arm
    assert (excess_p(on_arm, others, share).min(axis=1) <= 0.05).mean() <= BOUND


def test_fewer_events_than_the_share_are_no_excess() -> None:
    assert float(excess_p(0, 50, 0.3)) == 1.0


@given(
    events=st.integers(0, 10**7),
    others=st.integers(0, 10**7),
    share=st.sampled_from([0.001, 0.01, 0.1, 0.25, 0.5, 0.9, 0.999]),
)
@example(events=0, others=1_100, share=0.5)
@example(events=0, others=7_500, share=0.1)
@example(events=922, others=10**7, share=0.9)
def test_no_count_is_too_large_for_an_excess(events: int, others: int, share: float) -> None:
    p, more = (float(excess_p(count, others, share)) for count in (events, events + 10))
    assert 0 <= p <= 1
    if events <= share * (events + others):
        assert p == 1.0  # whatever the other arm does
    else:
        assert more <= p


def test_all_events_on_a_small_arm_are_an_excess_after_two() -> None:
    # The uniform part has an e-value of at most 1/(k+1)/share^k = 33 for two events at .1; half the prior each.
    assert 0.03 < float(excess_p(2, 0, 0.1)) < 0.05


@pytest.mark.parametrize("rate", [0.005, 0.02])
def test_a_rate_at_its_limit_is_not_above_it_even_if_it_moves(rate: float, rng: np.random.Generator) -> None:
    moving = rate * (0.5 + 0.5 * np.sin(np.arange(1_000) / 100) ** 2)
    k = np.cumsum(rng.random((RUNS, 1_000)) < moving, axis=1)
    assert (rate_above_p(k, np.arange(1, 1_001), rate).min(axis=1) <= 0.05).mean() <= BOUND


def test_a_rate_at_its_limit_is_not_below_it(rng: np.random.Generator) -> None:
    k = np.cumsum(rng.random((RUNS, 1_000)) < 0.01, axis=1)
    assert (rate_below_p(k, np.arange(1, 1_001), 0.01).min(axis=1) <= 0.05).mean() <= BOUND


def test_no_event_shows_a_low_rate_and_no_trial_shows_nothing() -> None:
    assert float(rate_below_p(0, 1_000, 0.01)) < 0.001
    assert float(rate_below_p(0, 0, 0.01)) == float(rate_above_p(0, 0, 0.01)) == 1.0


def test_the_floor_of_a_rate_lies_below_it(rng: np.random.Generator) -> None:
    assert rate_floor(0, 1_000, 0.05) == 0.0
    floors = [rate_floor(int(rng.binomial(1_000, 0.02)), 1_000, 0.05) for _ in range(100)]
    assert np.mean(np.array(floors) > 0.02) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 100)
    assert 0.002 < np.median(floors) < 0.02


def test_counted_quantiles_agree_with_the_values_themselves(rng: np.random.Generator) -> None:
    bins = np.linspace(0, 20, 200_001)
    one, two = rng.lognormal(0.0, 0.5, 900), rng.lognormal(0.15, 0.5, 300)
    binned = counted_quantile_p(np.histogram(one, bins)[0], np.histogram(two, bins)[0], q=0.5)
    assert binned == pytest.approx(quantile_test(one, two, q=0.5).p, rel=1e-6)


def test_wide_bins_only_weaken_the_test(rng: np.random.Generator) -> None:
    one, two = rng.lognormal(0.0, 0.3, 500), rng.lognormal(0.7, 0.3, 100)
    exact = quantile_test(one, two).p
    for width in (0.05, 0.2, 1.0):
        bins = np.arange(0, 20, width)
        assert counted_quantile_p(np.histogram(one, bins)[0], np.histogram(two, bins)[0]) >= exact * 0.999


def test_counted_quantiles_of_equal_arms_seldom_differ(rng: np.random.Generator) -> None:
    false = 0
    for _ in range(100):
        one, two = (np.cumsum(np.eye(40)[rng.poisson(12, 200)], axis=0) for _ in range(2))
        false += min(counted_quantile_p(one[n], two[n]) for n in range(19, 200, 20)) <= 0.05
    assert false / 100 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 100)


@pytest.mark.parametrize("arms", [([0, 0], [1, 2]), ([1, 2], [0, 0])])
def test_an_arm_without_values_shows_nothing(arms: tuple[list[int], list[int]]) -> None:
    assert counted_quantile_p(*arms) == 1.0


def test_bins_must_match() -> None:
    with pytest.raises(ValueError, match="same bins"):
        counted_quantile_p([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="q must lie"):
        counted_quantile_p([1], [1], q=1.0)
