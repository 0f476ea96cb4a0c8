"""The interval of paired differences, against a calculation by hand and simulated looks."""

import math

import numpy as np
import pytest

from toque.functions.stats.comparison.betting import paired_cs


def earned(gaps: list[float], mean: float) -> float:
    """Most that equal bets of ((k + 1/2) / 48)² on less than a mean ever earned, by plain arithmetic."""
    bets = [((k + 0.5) / 48) ** 2 for k in range(48)]
    capital = [1.0] * 48
    most = 0.0
    for gap in gaps:
        capital = [
            each * (1 - bet * (gap - mean) / (1 - mean)) for each, bet in zip(capital, bets, strict=True)
        ]
        most = max(most, sum(capital) / 48)
    return most


def test_the_ends_are_where_a_bet_would_have_earned_one_over_alpha():
    gaps = np.random.default_rng(3).choice([-1.0, -0.5, 0.0, 1.0], 150, p=[0.3, 0.1, 0.5, 0.1]).tolist()
    found = paired_cs(gaps, alpha=0.05)
    assert found.lower < found.mean < found.upper < 0
    assert earned(gaps, found.upper) == pytest.approx(20, rel=1e-4)
    assert earned([-gap for gap in gaps], -found.lower) == pytest.approx(20, rel=1e-4)


def test_pairs_without_a_difference_cost_nothing():
    worse = [-1.0] * 8 + [1.0]
    alone = paired_cs(worse).upper
    among = paired_cs([*worse[:8], *[0.0] * 500, 1.0]).upper
    assert alone < 0
    assert among < 0
    assert paired_cs([0.0] * 1_000).upper > 0 > paired_cs([0.0] * 1_000).lower


def test_an_interval_that_is_looked_at_after_every_pair_seldom_misses():
    rng = np.random.default_rng(7)
    missed, runs, alpha = 0, 200, 0.05
    for _ in range(runs):
        gaps = rng.choice([-1.0, 0.0, 1.0], 200, p=[0.15, 0.7, 0.15])
        missed += paired_cs(gaps, alpha=alpha).upper < 0  # it is never wider than at an earlier look
    assert missed / runs <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / runs)


@pytest.mark.parametrize("given", [[], [1.5], [math.nan]])
def test_differences_are_from_minus_one_to_one(given: list[float]):
    with pytest.raises(ValueError, match=r"differences from -1 to 1|is nan"):
        paired_cs(given)
