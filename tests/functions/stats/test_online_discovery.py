"""LORD++: levels by hand, what is spent, and alarms of fleets that are healthy or not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from toque.functions.stats import LordPlusPlus


def part(age: int) -> float:
    return 0.07720838 * math.log(max(age, 2)) / (age * math.exp(math.sqrt(math.log(age))))


def test_the_first_levels_are_those_of_the_published_sequence() -> None:
    # By hand: .0772084 * ln 2 = .0535168 for the first test, .0772084 * ln 2 / (2 e^.832555) = .0116385 for the second.
    rule, first, _ = LordPlusPlus(alpha=0.05, start=0.005).step(1.0)
    _, second, _ = rule.step(1.0)
    assert first == pytest.approx(0.005 * 0.0535168, rel=1e-5)
    assert second == pytest.approx(0.005 * 0.0116385, rel=1e-4)


def test_an_alarm_earns_the_rest_of_alpha_and_each_further_one_all_of_it() -> None:
    rule = LordPlusPlus(alpha=0.05, start=0.02)
    for p in (1.0, 0.0, 1.0, 0.0):
        rule, _, _ = rule.step(p)
    assert rule.alarms == (2, 4)
    expected = 0.02 * part(5) + 0.03 * part(3) + 0.05 * part(1)
    assert rule.level == pytest.approx(expected)
    assert rule.earned == pytest.approx(0.1)


def test_all_levels_without_an_alarm_sum_to_less_than_the_start() -> None:
    rule, spent = LordPlusPlus(), 0.0
    for _ in range(20_000):
        rule, level, _ = rule.step(1.0)
        spent += level
    # What is left is the integral of u e^-sqrt(u) above ln 20,000, which is 2 * 3! times the upper incomplete gamma function at 4.
    left = 0.07720838 * 12 * special.gammaincc(4, math.sqrt(math.log(20_000)))
    assert 0.95 < spent / rule.start + left <= 1


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, math.inf])
def test_what_is_no_p_value_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
        LordPlusPlus().step(p)


@pytest.mark.parametrize(("alpha", "start"), [(0.05, 0.0), (0.05, 0.06), (1.0, 0.5), (math.nan, 0.01)])
def test_a_budget_out_of_range_is_refused(alpha: float, start: float) -> None:
    with pytest.raises(ValueError, match="0 < start <= alpha < 1"):
        LordPlusPlus(alpha=alpha, start=start)


def test_among_all_alarms_few_are_false() -> None:
    # 200 sequences of 500 tests, a tenth with an effect: mean share of false alarms <= alpha + 4 s.e.
    rng, shares = np.random.default_rng(1), []
    for _ in range(200):
        rule, false, true = LordPlusPlus(), 0, 0
        for _ in range(500):
            effect = rng.random() < 0.1
            p = math.erfc(rng.normal(4.0 if effect else 0.0) / math.sqrt(2)) / 2
            rule, _, alarm = rule.step(p)
            false, true = false + (alarm and not effect), true + (alarm and effect)
        shares.append(false / max(1, false + true))
    assert true > 20
    assert np.mean(shares) <= 0.05 + 4 * np.std(shares) / math.sqrt(len(shares))
