import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from toque.functions.stats import (
    Effect,
    Moments,
    asymptotic_cs,
    asymptotic_threshold,
    betting_cs,
    group_sequential_bounds,
    normal_mixture_bound,
    quantile_test,
    sequential_counts,
)


@pytest.mark.parametrize(("n", "threshold"), [(500, 3.8551), (5_000, 3.0352), (100_000, 3.3369)])
def test_asymptotic_thresholds_are_the_published_ones(n: int, threshold: float):
    assert round(asymptotic_threshold(n, alpha=0.05, n_opt=5_000), 4) == threshold


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@given(z=st.floats(-8, 8), n=st.integers(30, 10**6), alpha=st.sampled_from([0.01, 0.05, 0.1]))
def test_interval_p_value_and_verdict_agree(alternative, z: float, n: int, alpha: float):
    cs = asymptotic_cs(Effect(z, 1.0, n), alpha=alpha, alternative=alternative)
    threshold = asymptotic_threshold(n, alpha=alpha, alternative=alternative)
    signed = {"two-sided": abs(z), "greater": z, "less": -z}[alternative]
    if abs(signed - threshold) > 1e-9:
        assert cs.reject == (signed > threshold) == (cs.p < alpha)
        assert cs.reject == (not cs.lower <= 0 <= cs.upper)


def test_arms_samples_and_moments_are_the_same_evidence():
    rng = np.random.default_rng(0)
    control, treatment = rng.standard_normal(500), rng.standard_normal(700) + 0.3
    by_rows = asymptotic_cs(control, treatment)
    by_moments = asymptotic_cs(
        Moments.of(control[:100]) + Moments.of(control[100:]),
        Moments.of(treatment[:1]) + Moments.of(treatment[1:]),
    )
    assert by_rows.n == 1_200
    assert by_moments.lower == pytest.approx(by_rows.lower)
    assert by_moments.p == pytest.approx(by_rows.p)
    welch = stats.ttest_ind(treatment, control, equal_var=False)
    assert by_rows.estimate / by_rows.standard_error == pytest.approx(welch.statistic)
    assert asymptotic_cs(treatment).estimate == pytest.approx(treatment.mean())


@pytest.mark.parametrize(
    "evidence",
    [
        ([], []),
        ([1.0], [2.0] * 100),
        ([1.0] * 100, [2.0] * 100),
        ([0.0, 1.0] * 5, [5.0, 6.0] * 5),
        (Effect(math.nan, math.inf, 1_000),),
    ],
    ids=["no traffic", "one arm", "constant", "before the burn-in", "no estimate"],
)
def test_too_little_to_judge_is_an_answer_and_never_a_rejection(evidence: tuple):
    cs = asymptotic_cs(*evidence)
    assert not cs.sufficient
    assert not cs.reject
    assert (cs.p, cs.lower, cs.upper) == (1.0, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: asymptotic_cs([0.0, math.nan] * 50), "nan"),
        (lambda: asymptotic_cs(Effect(0.0, math.nan, 100)), "NaN"),
        (lambda: asymptotic_cs([0.0, 1.0] * 50, alpha=0.7), "alpha"),
        (lambda: asymptotic_threshold(0), "n > 0"),
        (lambda: asymptotic_threshold(10, n_opt=0), "positive"),
        (lambda: normal_mixture_bound(-1.0), "not negative"),
    ],
)
def test_what_has_no_answer_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


# 400 null runs watched 40 times each: rejections <= .05 + 4 s.e. = .094. At 1.96 it would be about 28 %.
@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_watching_an_equal_arm_does_not_find_a_difference(tails: str):
    rng = np.random.default_rng(3)
    rejected = 0
    for _ in range(400):
        draw = rng.standard_normal if tails == "normal" else (lambda n: rng.standard_t(3, n))
        a, b = Moments(), Moments()
        for _ in range(40):
            a, b = a + Moments.of(draw(50)), b + Moments.of(draw(50))
            if asymptotic_cs(a, b, n_opt=1_000).reject:
                rejected += 1
                break
    assert rejected / 400 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 400)


def test_normal_mixture_bounds_are_those_of_confseq():
    # confseq 0.0.11, test/uniform_boundaries_unittest.cpp.
    assert normal_mixture_bound(100, v_opt=100) == pytest.approx(30.35209, abs=1e-5)
    assert normal_mixture_bound(100, v_opt=100, alternative="greater") == pytest.approx(27.66071, abs=1e-5)
    assert normal_mixture_bound(np.array([100.0, 0.0]))[0] == pytest.approx(30.35209, abs=1e-5)


def test_counts_are_judged_as_published():
    assert sequential_counts([156, 212], concentration=100).p == pytest.approx(0.0749, abs=5e-5)
    assert not sequential_counts([156, 212]).reject
    assert sequential_counts([0, 0]).p == 1.0
    assert sequential_counts([50, 50], previous_p=0.01).p == 0.01


def test_a_mismatch_of_99_to_1_percent_is_found_and_expected_counts_are_shown():
    found = sequential_counts([9_800, 200], [0.99, 0.01])
    assert found.reject
    assert found.expected == pytest.approx((9_900.0, 100.0))


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=5))
def test_any_counts_have_a_p_value(counts: list[int]):
    assert 0.0 <= sequential_counts(counts).p <= 1.0


@pytest.mark.parametrize(
    ("counts", "shares"),
    [([1], None), ([1, -1], None), ([0.5, 1], None), ([1, 2], [0, 1]), ([1, 2], [1]), ([], None)],
)
def test_counts_that_are_none_are_refused(counts: list, shares: list | None):
    with pytest.raises(ValueError, match=r"counts are whole|shares must"):
        sequential_counts(counts, shares)


# 1,000 null runs with an error rate that doubles, watched after every error: at most .05 + 4 s.e. = .078.
def test_errors_at_the_traffic_share_are_no_finding_whatever_their_rate():
    rng = np.random.default_rng(4)
    rejected = 0
    for _ in range(1_000):
        arms = np.cumsum(rng.random(60) < 0.1)
        rejected += any(
            sequential_counts([k + 1 - c, c], [0.9, 0.1], concentration=5).reject for k, c in enumerate(arms)
        )
    assert rejected / 1_000 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 1_000)


def test_group_sequential_bounds_are_the_published_ones():
    bounds = group_sequential_bounds(5, alpha=0.05, rho=2)
    assert [round(bound, 4) for bound in bounds] == [3.0902, 2.7141, 2.4728, 2.2799, 2.1140]
    assert len(bounds) == 5
    assert bounds.reject(0, -3.1)
    assert not bounds.reject(4, 2.1)


def test_one_look_is_a_fixed_test():
    assert group_sequential_bounds(1).bounds[0] == pytest.approx(stats.norm.ppf(0.975))
    assert group_sequential_bounds([0.5, 1.0], sides=1, rho=1e-9).bounds[0] == pytest.approx(
        stats.norm.ppf(0.95)
    )


# Expected values from 400,000 simulated paths: 4 s.e. of a share of .05 are .0014.
@pytest.mark.parametrize("sides", [1, 2])
def test_the_looks_share_alpha(sides: int):
    looks = [0.1, 0.4, 0.5, 1.0]
    bounds = np.array(group_sequential_bounds(looks, sides=sides, rho=1.5).bounds)
    steps = np.sqrt(np.diff(looks, prepend=0.0))
    z = np.cumsum(np.random.default_rng(0).standard_normal((400_000, 4)) * steps, axis=1) / np.sqrt(looks)
    beyond = (np.abs(z) if sides == 2 else z) >= bounds
    assert beyond.any(axis=1).mean() == pytest.approx(0.05, abs=0.0014)


@pytest.mark.parametrize("looks", [0, [], [0.5, 0.5], [0.5, 1.2], [-0.1, 1.0]])
def test_looks_that_cannot_be_are_refused(looks):
    with pytest.raises(ValueError, match="rising shares"):
        group_sequential_bounds(looks)


def test_betting_gives_the_published_interval():
    values = [1.0 if i % 10 < 3 else 0.0 for i in range(100)]
    cs = betting_cs(values)
    assert cs.lower == pytest.approx(0.193, abs=0.01)
    assert cs.upper == pytest.approx(0.464, abs=0.01)
    assert cs.mean == pytest.approx(0.3)
    assert cs.p(0.3) > 0.05
    assert cs.p(0.6) < 0.05


@given(cuts=st.lists(st.integers(0, 700), max_size=4))
@settings(max_examples=10)
def test_betting_is_the_same_in_any_batches(cuts: list[int]):
    values = np.random.default_rng(1).beta(2, 5, 700) * 3 - 1
    whole = betting_cs(values, bounds=(-1, 2), grid=200)
    parts = betting_cs(bounds=(-1, 2), grid=200)
    for batch in np.split(values, sorted(cuts)):
        parts = parts.update(batch)
    assert (parts.n, parts.lower, parts.upper) == (whole.n, whole.lower, whole.upper)
    assert np.array_equal(parts.capital, whole.capital)


# 300 runs of 400 values, watched at every value: misses <= .05 + 4 s.e. = .10.
def test_betting_covers_the_mean_at_all_times_at_once():
    rng = np.random.default_rng(2)
    missed = sum(betting_cs(rng.random(400) < 0.1, grid=100).p(0.1) <= 0.05 for _ in range(300))
    assert missed / 300 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 300)


def test_betting_before_the_first_value_knows_the_bounds():
    cs = betting_cs(bounds=(0.0, 5.0))
    assert (cs.lower, cs.upper, cs.empty) == (0.0, 5.0, False)
    with pytest.raises(ValueError, match="within"):
        cs.update([6.0])
    with pytest.raises(ValueError, match="bounds in order"):
        betting_cs(bounds=(1.0, 0.0))


def test_betting_on_two_means_leaves_none():
    cs = betting_cs([0.0] * 300 + [1.0] * 300)
    assert cs.empty
    assert math.isnan(cs.lower)


# confseq 0.0.11, test/uniform_boundaries_unittest.cpp.
@pytest.mark.parametrize(
    ("q", "shift", "p"),
    [(0.5, 70, 0.814704), (0.5, 85, 0.0838055), (0.5, 100, 0.0054947), (0.9, 55, 0.0340463)],
)
def test_quantile_p_values_are_those_of_confseq(q: float, shift: int, p: float):
    arm = np.arange(1, 1_001)
    result = quantile_test(arm, arm + shift, q=q, t_opt=100, alpha_opt=0.05)
    assert result.p == pytest.approx(p, abs=1e-7 if shift == 85 else 1e-6)
    assert quantile_test(arm + shift, arm, q=q).p == pytest.approx(p, abs=1e-6)
    assert result.difference == shift
    assert result.reject == (p <= 0.05)


@given(st.lists(st.integers(-5, 5), max_size=40), st.lists(st.integers(-5, 5), max_size=40), st.randoms())
@settings(max_examples=50)
def test_quantile_test_takes_ties_any_order_and_any_rising_scale(a: list[int], b: list[int], random):
    p = quantile_test(a, b, q=0.7).p
    assert 0 <= p <= 1
    assert quantile_test(random.sample(a, len(a)), b, q=0.7).p == p
    assert quantile_test([x**3 for x in a], [x**3 for x in b], q=0.7).p == p


def test_quantiles_of_an_empty_arm_are_an_answer():
    result = quantile_test([], [1.0, 2.0])
    assert result.p == 1.0
    assert math.isnan(result.control)
    with pytest.raises(ValueError, match="q must lie"):
        quantile_test([1.0], [2.0], q=1.0)


# 300 null runs of exponential latencies, watched 10 times: at most .05 + 4 s.e. = .10.
def test_watching_equal_tails_does_not_find_a_difference():
    rng = np.random.default_rng(6)
    rejected = 0
    for _ in range(300):
        a, b = rng.exponential(size=1_000), rng.exponential(size=300)
        looks = [(100 * n, 30 * n) for n in range(1, 11)]
        rejected += any(quantile_test(a[:x], b[:y], q=0.9).reject for x, y in looks)
    assert rejected / 300 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 300)
