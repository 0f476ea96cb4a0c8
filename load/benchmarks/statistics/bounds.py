"""Simulation of the statistics, each against a stated bound: false alarms under peeking at every batch, power against theory, delays.

A false-alarm share may exceed its level by four standard errors. Every simulation is seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, islice
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.stats import ks_2samp

from toque.functions import stats
from toque.load.benchmarks.harness import bound, line, main, timed

Floats = npt.NDArray[np.float64]
Run = Callable[[np.random.Generator], bool]
"""One run of equal arms: whether a difference is ever found."""
Look = Callable[[np.random.Generator], Iterator[Any]]
Batch = Callable[[np.random.Generator, int], Sequence[Any]]

RUNS = 1_000
ALPHA = 0.05
LOOKS = 50
TEN_LOOKS = stats.group_sequential_bounds(10, alpha=ALPHA)


def run() -> None:
    """Run every simulation and check."""
    for name, draw, *size in NULLS:
        rng, runs = np.random.default_rng(20_13), size[0] if size else RUNS
        share = sum(draw(rng) for _ in range(runs)) / runs
        bound(f"false alarms, {name}, {runs:,} runs", share, most=allowed(runs))
    for check in CHECKS:
        check()


def allowed(runs: int = RUNS) -> float:
    """Return the level plus four standard errors."""
    return ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def _means(looks: Look) -> Run:
    """Watch a difference by a confidence sequence."""
    return lambda rng: any(stats.asymptotic_cs(effect, n_opt=2_000).reject for effect in looks(rng))


def _arms(batch: Batch, effect: Callable[..., Any] = stats.difference) -> Look:
    """Two equal arms, of which a batch more is seen at each look. batch: statistics of both, by the look's number."""

    def looks(rng: np.random.Generator) -> Iterator[Any]:
        a, b = batch(rng, 0)
        yield effect(a, b)
        for look in range(1, LOOKS):
            a, b = map(add, (a, b), batch(rng, look))
            yield effect(a, b)

    return looks


def _moments(
    draw: Callable[[np.random.Generator, tuple[int, int]], Iterable[Floats]], rows: int = 50
) -> Batch:
    """Moments of so many rows of each arm."""
    return lambda rng, _: [stats.Moments.of(arm) for arm in draw(rng, (2, rows))]


def _pareto(rng: np.random.Generator, shape: tuple[int, int]) -> list[Floats]:
    """Simulate revenue with infinite variance, clipped to a limit fixed beforehand."""
    return [stats.winsorize(arm, upper=50.0) for arm in rng.pareto(1.5, shape)]


def _ratios(rng: np.random.Generator, _: int) -> list[stats.CoMoments]:
    views = 1 + rng.poisson(4, (2, 50))
    return list(map(stats.CoMoments.of, rng.binomial(views, rng.beta(1, 9, (2, 50))), views))


def _adjusted(rng: np.random.Generator, _: int) -> list[stats.CoMoments]:
    before = rng.standard_normal((2, 50))
    return list(map(stats.CoMoments.of, 0.8 * before + 0.6 * rng.standard_normal((2, 50)), before))


def _diurnal(rng: np.random.Generator, hour: int) -> list[stats.Moments]:
    level = math.sin(2 * math.pi * hour / 24)
    size = int(50 + 30 * math.sin(2 * math.pi * (hour - 6) / 24))
    return [stats.Moments.of(level + rng.standard_normal(size)) for _ in range(2)]


def _ramp(rng: np.random.Generator) -> Iterator[stats.Effect]:
    """Simulate shares of 5, 20 and 50 %, while the level falls from day to day."""
    days: list[tuple[stats.Moments, stats.Moments]] = []
    for share, level in ((0.05, 1.0), (0.2, 0.5), (0.5, 0.0)):
        treated = max(2, int(100 * share))
        days.append((stats.Moments(), stats.Moments()))
        for _ in range(LOOKS // 3):
            sizes = (100 - treated, treated)
            c, t = (
                day + stats.Moments.of(level + rng.standard_normal(n))
                for day, n in zip(days[-1], sizes, strict=True)
            )
            days[-1] = c, t
            yield stats.stratified_effect(days)


def _autocorrelated(rng: np.random.Generator) -> Iterator[stats.Effect]:
    """Simulate latencies in which .8 of the last deviation remains, compared by blocks of 40."""
    noise = rng.standard_normal((2, 40 * 2 * LOOKS))
    for n in range(1, noise.shape[1]):
        noise[:, n] += 0.8 * noise[:, n - 1]
    blocks = stats.block_means(noise[0] - noise[1], size=40)
    for n in range(2, len(blocks) + 1, 2):
        moments = stats.Moments.of(blocks[:n])
        yield stats.Effect(moments.mean, moments.standard_error, n)


def _counts(shares: tuple[float, ...], concentration: float = 100.0) -> Run:
    def run(rng: np.random.Generator) -> bool:
        looks = np.cumsum(rng.multinomial(1_000, shares, LOOKS), axis=0)
        return any(
            stats.sequential_counts(look, shares, concentration=concentration).reject for look in looks
        )

    return run


def _betting(rng: np.random.Generator) -> bool:
    updates = accumulate(
        range(20), lambda cs, _: cs.update(rng.beta(0.2, 1.8, 50)), initial=stats.betting_cs(grid=200)
    )
    return any(cs.p(0.1) <= ALPHA for cs in islice(updates, 1, None))


def _quantile(q: float) -> Run:
    def run(rng: np.random.Generator) -> bool:
        a, b = rng.lognormal(size=2_000), rng.lognormal(size=500)
        return any(stats.quantile_test(a[: 100 * n], b[: 25 * n], q=q).reject for n in range(1, 21))

    return run


def _groups(rng: np.random.Generator) -> bool:
    looks = _arms(_moments(lambda rng, shape: rng.standard_t(3, shape), rows=200))(rng)
    return any(
        TEN_LOOKS.reject(look, each.estimate / each.standard_error)
        for look, each in zip(range(10), looks, strict=False)
    )


def _mixture(rng: np.random.Generator) -> bool:
    """Simulate sums of coin tosses, which are 1/4-sub-Gaussian, so that no test is asymptotic."""
    sums = np.cumsum(rng.random(5_000) < 0.5) - 0.5 * np.arange(1, 5_001)
    return bool((np.abs(sums) > stats.normal_mixture_bound(np.arange(1, 5_001) / 4, alpha=ALPHA)).any())


def _one_sided(rng: np.random.Generator) -> bool:
    looks = _arms(_moments(lambda rng, shape: rng.exponential(size=shape)), effect=lambda a, b: (a, b))(rng)
    return any(stats.asymptotic_cs(*pair, n_opt=2_000, alternative="greater").reject for pair in looks)


NULLS: tuple[tuple[str, Run] | tuple[str, Run, int], ...] = (
    ("normal", _means(_arms(_moments(lambda rng, shape: rng.standard_normal(shape))))),
    ("Student t, 3 degrees of freedom", _means(_arms(_moments(lambda rng, shape: rng.standard_t(3, shape))))),
    ("Pareto 1.5, winsorised", _means(_arms(_moments(_pareto)))),
    ("1 % events", _means(_arms(_moments(lambda rng, shape: (rng.random(shape) < 0.01).astype(float))))),
    ("ratios", _means(_arms(_ratios, stats.ratio_effect))),
    ("CUPED", _means(_arms(_adjusted, stats.cuped))),
    ("ramp over a falling level", _means(_ramp)),
    ("diurnal level and traffic", _means(_arms(_diurnal))),
    ("AR(1) with phi = .8 in blocks", _means(_autocorrelated)),
    ("mean of exponentials, one-sided", _one_sided),
    ("counts, split of 50 to 50", _counts((0.5, 0.5))),
    ("counts, split of 99 to 1", _counts((0.99, 0.01))),
    ("counts, split of 90, 9 and 1", _counts((0.9, 0.09, 0.01))),
    ("counts as a rollout watches errors", _counts((0.9, 0.1), 5.0)),
    ("betting, skewed values in [0, 1]", _betting, 400),
    ("median of lognormals", _quantile(0.5), 400),
    ("99th percentile of lognormals", _quantile(0.99), 400),
    ("group sequential, 10 looks at Student t, 3 degrees", _groups),
    ("normal mixture, every one of 5,000 tosses", _mixture),
)


def _planned_power() -> None:
    """Watch an effect up to the size planned for 80 % power."""
    rng, effect = np.random.default_rng(1), 0.2
    plan = stats.plan_run(1.0, effect, units_per_day=1.0)
    size, found = plan.n_worst // 2, 0
    looks = np.unique(np.geomspace(20, size, 100).astype(int)).tolist()
    for _ in range(RUNS):
        sums = np.cumsum(rng.standard_normal((2, size)) + np.array([[0.0], [effect]]), axis=1)
        z = (stats.Effect(float(sums[1, n - 1] - sums[0, n - 1]) / n, math.sqrt(2 / n), 2 * n) for n in looks)
        found += any(stats.asymptotic_cs(look, n_opt=plan.n_opt).reject for look in z)
    bound("distance of the power from the planned .8", abs(found / RUNS - 0.8), most=0.05)


def _first(looks: Iterator[bool]) -> float:
    """Number of the first look that finds something, from 1."""
    return next((number for number, found in enumerate(looks, 1) if found), math.inf)


def _mismatch() -> None:
    """Test for an arm that lost 2 % of a million units, and for a small one that lost a tenth, at 1,000 units a look."""
    rng = np.random.default_rng(2)
    arrivals = np.cumsum(rng.multinomial(10_000, [0.5051, 0.4949], 100), axis=0)
    found = _first(bool(stats.sequential_counts(counts).reject) for counts in arrivals)
    bound("looks (10,000 units each) until a split of 50.5 to 49.5 is found", found, most=30)
    rng, needed = np.random.default_rng(2), []
    for _ in range(100):
        looks = np.cumsum(rng.multinomial(1_000, [0.991, 0.009], 2_000), axis=0)
        needed.append(_first(bool(stats.sequential_counts(look, [0.99, 0.01]).reject) for look in looks))
    what = "median thousands of units until a split of 99.1 to .9 instead of 99 to 1 is found"
    bound(what, float(np.median(needed)), most=400)


def _errors() -> None:
    """Measure the minutes until errors that rise from .5 to 2 % at a tenth of 1,000 requests a minute are found."""
    rng, minutes, false = np.random.default_rng(3), [], 0
    for _ in range(RUNS):
        for rate in (0.005, 0.02):
            errors = np.cumsum(rng.binomial([[900, 100]] * 60, [0.005, rate]), axis=0)
            looks = (stats.sequential_counts(counts, [0.9, 0.1], concentration=5).reject for counts in errors)
            minute = _first(looks)
            false += rate == 0.005 and minute < math.inf
            minutes += [minute] if rate == 0.02 else []
    late = float(np.median(minutes))
    bound("median minutes until errors of 2 % instead of .5 % are found", late, most=6)
    bound("false alarms of equal error rates, 60 looks", false / RUNS, most=allowed())


def _failures() -> None:
    """Measure the seconds until 5 % of a canary's answers failing is found at 1,000 requests a minute, looked at each second."""
    for share, most in ((0.1, 60.0), (0.2, 45.0)):
        rng, seconds = np.random.default_rng(6), []
        counts = (stats.sequential_counts([0, k], [1 - share, share], concentration=5) for k in range(1, 50))
        least = _first(count.reject for count in counts)
        for _ in range(RUNS):
            canary = rng.binomial(1_000 // 60 + (rng.random(300) < 1_000 / 60 % 1), share)
            errors = np.cumsum(rng.binomial(canary, 0.05))
            seconds.append(float(np.searchsorted(errors, least) + 1))
        within = np.mean(np.array(seconds) <= 60)
        what = f"median seconds until 5 % errors are found at a share of {share} ({within:.0%} within 60)"
        bound(what, float(np.median(seconds)), most=most)


def _concept() -> None:
    """Find a loss that goes from .2 to .3 by ADWIN, after 10,000 labels in which it does not; `monitoring.bounds` does so by CUSUM."""
    rng, false, delays = np.random.default_rng(5), 0, []
    for _ in range(100):
        quiet = stats.Adwin(rising_only=True).update(rng.random(10_000) < 0.2)
        false += quiet.alarm
        late = [n for n in quiet.update(rng.random(2_000) < 0.3).alarms if n > 10_000]
        delays.append(late[0] - 10_000 if late else math.inf)
    bound("false alarms of ADWIN in 10,000 labels", false / 100, most=allowed(100))
    bound("median labels until ADWIN finds .2 -> .3", float(np.median(delays)), most=600)


def _paths(rng: np.random.Generator, looks: int) -> np.ndarray:
    """Simulate z-values (RUNS, looks) of a skewed metric, with an effect that a fixed test at the last look finds in 80 %."""
    size = 4_000 // looks
    shift = (1.959964 + 0.841621) * math.sqrt(2 / (size * looks))
    draws = rng.exponential(size=(2, RUNS, looks, size))
    n = size * np.arange(1, looks + 1)
    sums, squares = draws.sum(axis=3).cumsum(axis=2), np.square(draws).sum(axis=3).cumsum(axis=2)
    variance = (squares - sums**2 / n) / (n - 1)
    z: np.ndarray = ((sums[1] - sums[0]) / n + shift) / np.sqrt(variance.sum(axis=0) / n)
    return z


def _power(what: str, bounds: Sequence[float], theory: float) -> None:
    """Compare power with theory on 4,000 runs, as a relative distance."""
    rng = np.random.default_rng(4)
    paths = np.concatenate([_paths(rng, len(bounds)) for _ in range(4)])
    found = float((np.abs(paths) > np.array(bounds)).any(axis=1).mean())
    bound(f"power of {what}: {found:.3f}, {theory:.3f} in theory", abs(found / theory - 1), most=0.05)


def _power_of_peeking() -> None:
    """Compare the power of two tests with theory, of Brownian motion with that drift at the same looks.

    For ten looks it is integrated numerically; for a hundred simulated, and with looks without end it comes to .555.
    """
    _power("10 looks by group sequential bounds", list(TEN_LOOKS), 0.774)
    bounds = [stats.asymptotic_threshold(n, n_opt=8_000) for n in range(80, 8_001, 80)]
    time = np.arange(1, 101) / 100
    moves = np.random.default_rng(5).standard_normal((20_000, 100)).cumsum(axis=1) / 10
    z = (moves + (1.959964 + 0.841621) * time) / np.sqrt(time)
    theory = float((np.abs(z) > np.array(bounds)).any(axis=1).mean())
    _power("100 looks by the confidence sequence", bounds, theory)


def _speed() -> None:
    """Time drift of a large window against a stored reference; the baseline is scipy on the rows of both.

    The bound is on their ratio, which a busy machine hardly changes.
    """
    rng = np.random.default_rng(6)
    names = [f"c{n}" for n in range(20)]
    table = pa.table({name: rng.standard_normal(1_000_000) for name in names})
    reference = stats.TableSketch.reference(table)
    other = {name: rng.standard_normal(1_000_000) for name in names}
    ours = timed(lambda: stats.drift.compare(reference, reference.window(table)), repeats=3)
    base = timed(lambda: [ks_2samp(table[name].to_numpy(), other[name]) for name in names], repeats=1)
    line("drift.compare, 1M rows x 20 columns against a sketch, beside ks_2samp of 1M + 1M", ours, base)
    bound("times as fast as ks_2samp", base.p50_s / ours.p50_s, least=5)


CHECKS = (_planned_power, _mismatch, _power_of_peeking, _errors, _failures, _concept, _speed)


if __name__ == "__main__":
    main(run, "numpy", "scipy", "pyarrow")
