"""Simulation of the tests under peeking at every batch, their power against theory, and their delays.

Exit 1 if a bound breaks. Beside `toque.load.benchmarks.statistics.bounds`, which watches means.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from toque.functions.stats import (
    Moments,
    asymptotic_cs,
    asymptotic_threshold,
    betting_cs,
    difference,
    group_sequential_bounds,
    normal_mixture_bound,
    quantile_test,
    sequential_counts,
)
from toque.load.benchmarks.harness import bound, main, say
from toque.load.benchmarks.statistics.bounds import ALPHA, RUNS, allowed

Run = Callable[[np.random.Generator], bool]
LOOKS = 50
TEN_LOOKS = group_sequential_bounds(10, alpha=ALPHA)


def run() -> bool:
    """Run every simulation; returns whether every bound held."""
    passed = [_null(*case) for case in NULLS] + [check() for check in CHECKS]
    say(f"{sum(passed)} of {len(passed)} bounds held")
    return all(passed)


def _null(name: str, draw: Run, runs: int) -> bool:
    """Watch equal arms at every batch and count the runs in which a difference is ever found."""
    rng = np.random.default_rng(20_13)
    share = sum(draw(rng) for _ in range(runs)) / runs
    return bound(f"false alarms, {name}, {runs:,} runs", share, most=allowed(runs))


def _counts(shares: tuple[float, ...], concentration: float = 100.0) -> Run:
    def run(rng: np.random.Generator) -> bool:
        looks = np.cumsum(rng.multinomial(1_000, shares, LOOKS), axis=0)
        return any(sequential_counts(look, shares, concentration=concentration).reject for look in looks)

    return run


def _betting(rng: np.random.Generator) -> bool:
    cs = betting_cs(grid=200)
    for _ in range(20):
        cs = cs.update(rng.beta(0.2, 1.8, 50))
        if cs.p(0.1) <= ALPHA:
            return True
    return False


def _quantile(q: float) -> Run:
    def run(rng: np.random.Generator) -> bool:
        a, b = rng.lognormal(size=2_000), rng.lognormal(size=500)
        return any(quantile_test(a[: 100 * n], b[: 25 * n], q=q).reject for n in range(1, 21))

    return run


def _groups(rng: np.random.Generator) -> bool:
    a, b = Moments(), Moments()
    for look in range(10):
        a, b = a + Moments.of(rng.standard_t(3, 200)), b + Moments.of(rng.standard_t(3, 200))
        effect = difference(a, b)
        if TEN_LOOKS.reject(look, effect.estimate / effect.standard_error):
            return True
    return False


def _mixture(rng: np.random.Generator) -> bool:
    """Simulate sums of coin tosses, which are 1/4-sub-Gaussian, so that no test is asymptotic."""
    sums = np.cumsum(rng.random(5_000) < 0.5) - 0.5 * np.arange(1, 5_001)
    return bool((np.abs(sums) > normal_mixture_bound(np.arange(1, 5_001) / 4, alpha=ALPHA)).any())


def _one_sided(rng: np.random.Generator) -> bool:
    a, b = Moments(), Moments()
    for _ in range(LOOKS):
        a, b = a + Moments.of(rng.exponential(size=50)), b + Moments.of(rng.exponential(size=50))
        if asymptotic_cs(a, b, n_opt=2_000, alternative="greater").reject:
            return True
    return False


NULLS: tuple[tuple[str, Run, int], ...] = (
    ("mean of exponentials, one-sided", _one_sided, RUNS),
    ("counts, split of 50 to 50", _counts((0.5, 0.5)), RUNS),
    ("counts, split of 99 to 1", _counts((0.99, 0.01)), RUNS),
    ("counts, split of 90, 9 and 1", _counts((0.9, 0.09, 0.01)), RUNS),
    ("counts as a rollout watches errors", _counts((0.9, 0.1), 5.0), RUNS),
    ("betting, skewed values in [0, 1]", _betting, 400),
    ("median of lognormals", _quantile(0.5), 400),
    ("99th percentile of lognormals", _quantile(0.99), 400),
    ("group sequential, 10 looks at Student t, 3 degrees", _groups, RUNS),
    ("normal mixture, every one of 5,000 tosses", _mixture, RUNS),
)


def _mismatch() -> bool:
    """Measure the thousands of units until a small arm that loses a tenth of them is found, at 1,000 units a look."""
    rng, needed = np.random.default_rng(2), []
    for _ in range(100):
        looks = np.cumsum(rng.multinomial(1_000, [0.991, 0.009], 2_000), axis=0)
        found = (sequential_counts(look, [0.99, 0.01]).reject for look in looks)
        needed.append(next((n for n, reject in enumerate(found, 1) if reject), math.inf))
    what = "median thousands of units until a split of 99.1 to .9 instead of 99 to 1 is found"
    return bound(what, float(np.median(needed)), most=400)


def _paths(rng: np.random.Generator, looks: int) -> np.ndarray:
    """Simulate z-values (RUNS, looks) of a skewed metric, with an effect that a fixed test at the last look finds in 80 %."""
    size = 4_000 // looks
    drift = (1.959964 + 0.841621) * math.sqrt(2 / (size * looks))
    draws = rng.exponential(size=(2, RUNS, looks, size))
    n = size * np.arange(1, looks + 1)
    sums, squares = draws.sum(axis=3).cumsum(axis=2), np.square(draws).sum(axis=3).cumsum(axis=2)
    variance = (squares - sums**2 / n) / (n - 1)
    z: np.ndarray = ((sums[1] - sums[0]) / n + drift) / np.sqrt(variance.sum(axis=0) / n)
    return z


def _power(what: str, bounds: list[float], theory: float) -> bool:
    """Compare power with theory on 4,000 runs, as a relative distance."""
    rng = np.random.default_rng(4)
    paths = np.concatenate([_paths(rng, len(bounds)) for _ in range(4)])
    found = float((np.abs(paths) > np.array(bounds)).any(axis=1).mean())
    return bound(f"power of {what}: {found:.3f}, {theory:.3f} in theory", abs(found / theory - 1), most=0.05)


def _power_of_groups() -> bool:
    """Compute the power in theory, by numerical integration of the normal case."""
    return _power("10 looks by group sequential bounds", list(TEN_LOOKS), 0.774)


def _power_of_the_sequence() -> bool:
    """Compute the power in theory, of Brownian motion with that drift at the same 100 looks; with looks without end it comes to .555."""
    bounds = [asymptotic_threshold(n, n_opt=8_000) for n in range(80, 8_001, 80)]
    time = np.arange(1, 101) / 100
    moves = np.random.default_rng(5).standard_normal((20_000, 100)).cumsum(axis=1) / 10
    z = (moves + (1.959964 + 0.841621) * time) / np.sqrt(time)
    theory = float((np.abs(z) > np.array(bounds)).any(axis=1).mean())
    return _power("100 looks by the confidence sequence", bounds, theory)


def _failures() -> bool:
    """Measure the seconds until 5 % of a canary's answers failing is found at 1,000 requests a minute, looked at each second."""
    passed = []
    for share, most in ((0.1, 60.0), (0.2, 45.0)):
        rng, seconds = np.random.default_rng(6), []
        for _ in range(RUNS):
            canary = rng.binomial(1_000 // 60 + (rng.random(300) < 1_000 / 60 % 1), share)
            errors = np.cumsum(rng.binomial(canary, 0.05))
            least = next(
                k
                for k in range(1, 50)
                if sequential_counts([0, k], [1 - share, share], concentration=5).reject
            )
            seconds.append(float(np.searchsorted(errors, least) + 1))
        within = np.mean(np.array(seconds) <= 60)
        what = f"median seconds until 5 % errors are found at a share of {share} ({within:.0%} within 60)"
        passed.append(bound(what, float(np.median(seconds)), most=most))
    return all(passed)


CHECKS = (_mismatch, _power_of_groups, _power_of_the_sequence, _failures)


if __name__ == "__main__":
    main(run, "numpy", "scipy")
