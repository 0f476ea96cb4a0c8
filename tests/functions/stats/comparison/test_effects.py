import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from toque.functions.stats import (
    CoMoments,
    Moments,
    asymptotic_cs,
    block_means,
    cuped,
    difference,
    ratio,
    ratio_effect,
    relative_lift,
    stratified_effect,
    winsorize,
)

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)


def test_a_ramp_is_never_pooled():
    # Control 20k/990k then 5k/500k, treatment 230/10k then 6k/500k: pooled it looks harmful, day by day it helps.
    days = [
        (Moments.of_counts(20_000, 990_000), Moments.of_counts(230, 10_000)),
        (Moments.of_counts(5_000, 500_000), Moments.of_counts(6_000, 500_000)),
    ]
    pooled = difference(days[0][0] + days[1][0], days[0][1] + days[1][1])
    assert round(pooled.estimate, 5) == -0.00456
    assert round(stratified_effect(days).estimate, 5) == 0.00240


def test_strata_without_an_arm_say_nothing():
    full = (Moments.of([1.0, 2.0, 3.0]), Moments.of([2.0, 3.0, 5.0]))
    alone = (Moments.of([1.0, 2.0]), Moments())
    assert stratified_effect([alone, full]) == stratified_effect([full])
    nothing = stratified_effect([alone])
    assert not nothing.sufficient
    assert not asymptotic_cs(nothing).reject


# Standard error against that of 2,000 simulated experiments: within 4 relative s.e. of an s.d., 4 / sqrt(4000) = 6.3 %.
def test_the_delta_method_knows_the_spread_of_a_ratio():
    rng = np.random.default_rng(0)
    estimates, errors = [], []
    for _ in range(2_000):
        views = 1 + rng.poisson(5, 400)
        effect = ratio(rng.binomial(views, np.clip(0.05 * views, 0, 1)), views)
        estimates.append(effect.estimate)
        errors.append(effect.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.063)


def test_a_ratio_effect_pools_and_compares():
    rng = np.random.default_rng(1)
    x = rng.integers(1, 9, (2, 300))
    y = rng.binomial(x, 0.3)
    whole = ratio_effect((y[0], x[0]), (y[1], x[1]))
    parts = ratio_effect(
        CoMoments.of(y[0, :9], x[0, :9]) + CoMoments.of(y[0, 9:], x[0, 9:]), CoMoments.of(y[1], x[1])
    )
    assert whole.estimate == pytest.approx(y[1].sum() / x[1].sum() - y[0].sum() / x[0].sum())
    assert parts.standard_error == pytest.approx(whole.standard_error)
    assert not ratio_effect((y[0], x[0]), ([], [])).sufficient
    with pytest.raises(ValueError, match="sum to 0"):
        ratio([1, 2], [0, 0])


def test_cuped_leaves_one_minus_r_squared_of_the_variance():
    rng = np.random.default_rng(2)
    before = rng.standard_normal((2, 20_000))
    after = 0.8 * before + 0.6 * rng.standard_normal((2, 20_000)) + np.array([[0.0], [0.05]])
    effect = cuped((after[0], before[0]), (after[1], before[1]))
    assert effect.variance_ratio == pytest.approx(1 - 0.8**2, abs=0.01)
    assert effect.theta == pytest.approx(0.8, abs=0.02)
    assert effect.estimate == pytest.approx(0.05, abs=4 * effect.standard_error)
    assert asymptotic_cs(effect).reject


def test_a_covariate_from_after_exposure_is_refused():
    arm = ([1.0, 2.0, 4.0], [1.0, 2.0, 3.0])
    assert cuped(arm, arm, covariate_until=NOON, exposed_from=NOON).estimate == 0.0
    with pytest.raises(ValueError, match="after exposure began"):
        cuped(arm, arm, covariate_until=NOON + timedelta(seconds=1), exposed_from=NOON)
    with pytest.raises(ValueError, match="both"):
        cuped(arm, arm, covariate_until=NOON)


def test_cuped_with_a_covariate_that_says_nothing_changes_nothing():
    control, treatment = [1.0, 2.0, 4.0, 7.0], [2.0, 3.0, 9.0, 1.0]
    effect = cuped((control, [1.0] * 4), (treatment, [1.0] * 4))
    assert (effect.estimate, effect.variance_ratio) == (difference(control, treatment).estimate, 1.0)
    assert not cuped(([], []), (treatment, control)).sufficient


def test_relative_lift_by_hand():
    # means 2 and 3: lift .5; Var = (v_t/3 + (3/2)² v_c/3) / 2² with v_c = 1, v_t = 4
    lift = relative_lift([1.0, 2.0, 3.0], [1.0, 3.0, 5.0])
    assert lift.estimate == pytest.approx(0.5)
    assert lift.standard_error == pytest.approx(math.sqrt((4 / 3 + 2.25 / 3) / 4))
    assert not relative_lift([1.0], [1.0, 2.0]).sufficient
    with pytest.raises(ValueError, match="which is 0"):
        relative_lift([-1.0, 1.0], [1.0, 2.0])


def test_winsorizing_bounds_an_outlier():
    assert winsorize([1.0, 1e12, -math.inf], lower=0.0, upper=10.0).tolist() == [1.0, 10.0, 0.0]
    with pytest.raises(ValueError, match="lower <= upper"):
        winsorize([1.0], lower=2.0, upper=1.0)
    with pytest.raises(ValueError, match="nan"):
        winsorize([math.nan], lower=0.0, upper=1.0)


def test_block_means_leave_out_what_is_not_whole():
    assert block_means([1.0, 3.0, 5.0, 7.0, 100.0], size=2).tolist() == [2.0, 6.0]
    assert block_means([], size=3).tolist() == []
    with pytest.raises(ValueError, match="at least 1"):
        block_means([1.0], size=0)


# 300 null runs of AR(1) with phi = .8, watched 10 times: at most .05 + 4 s.e. = .10. Row by row it would be most of them.
def test_blocks_make_autocorrelated_latencies_comparable():
    rng = np.random.default_rng(8)
    noise = rng.standard_normal((2, 300, 4_000))
    for n in range(1, 4_000):
        noise[..., n] += 0.8 * noise[..., n - 1]
    looks = range(400, 4_001, 400)
    by_block = by_row = 0
    for a, b in zip(*noise, strict=True):
        difference_ = a - b
        by_block += any(
            asymptotic_cs(block_means(difference_[:n], size=40), n_opt=100, burn_in=10).reject for n in looks
        )
        by_row += any(asymptotic_cs(difference_[:n], n_opt=4_000).reject for n in looks)
    assert by_block / 300 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 300)
    assert by_row / 300 > 0.3
