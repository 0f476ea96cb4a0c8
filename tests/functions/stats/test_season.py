import numpy as np
import pytest
from scipy import stats

from toque.functions.stats.season import find_season, seasonality


def test_the_p_value_is_that_of_scipys_analysis_of_variance():
    x = np.random.default_rng(0).normal(size=(60, 2))
    found = seasonality(x, np.arange(60), period=5)
    for column, p in zip(x.T, found.p, strict=True):
        assert p == pytest.approx(stats.f_oneway(*(column[phase::5] for phase in range(5))).pvalue)


def test_the_share_by_hand():
    # Phases 0, 0, 0 and 2, 2, 5: means 0 and 3, between 13.5, within 6, residual 6/4, total 19.5.
    found = seasonality([[0.0], [2.0], [0.0], [2.0], [0.0], [5.0]], np.arange(6), period=2)
    assert found.share[0] == pytest.approx((13.5 - 1.5) / 19.5)


def test_noise_and_trends_have_no_season():
    # 300 null runs of 4 figures and 2 periods at level .001: any season found <= .01 + 4 s.e. of .001
    rng = np.random.default_rng(1)
    runs = [find_season(rng.normal(size=(24 * 15, 4)), np.arange(24 * 15), [24, 168]) for _ in range(300)]
    assert sum(one is not None for one in runs) / 300 <= 0.01
    trend = np.linspace(0, 5, 360)[:, None] + rng.normal(size=(360, 1))
    assert find_season(trend, np.arange(360), [24, 168]) is None
    assert find_season(np.ones((60, 1)), np.arange(60), [7]) is None


def test_a_day_and_a_week_are_told_apart():
    rng = np.random.default_rng(2)
    hours = np.arange(24 * 28)
    noise = rng.normal(0, 0.2, (len(hours), 2))
    day = noise + np.stack([np.sin(2 * np.pi * hours / 24), np.zeros(len(hours))], axis=1)
    assert find_season(day, hours, [24, 168]) == 24
    week = day + np.stack([np.zeros(len(hours)), 1.0 * (hours // 24 % 7 >= 5)], axis=1)
    assert find_season(week, hours, [24, 168]) == 168
    assert find_season(week[:200], hours[:200], [24, 168]) == 24  # of a week only one was seen


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="two cycles"):
        seasonality(np.zeros((9, 1)), np.arange(9), period=7)
    with pytest.raises(ValueError, match="a period >= 2"):
        seasonality(np.zeros((9, 1)), np.arange(9), period=1)
    assert find_season(np.zeros((0, 1)), [], [7]) is None
