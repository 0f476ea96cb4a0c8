"""Simulation of the statistics, each against a stated bound; exit 1 if one breaks.

A false-alarm share may exceed its level by four standard errors. Every simulation is seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import stats

from toque.functions.stats import (
    Adwin,
    CoMoments,
    Effect,
    Moments,
    TableSketch,
    asymptotic_cs,
    block_means,
    cuped,
    difference,
    drift,
    plan_run,
    ratio_effect,
    sequential_counts,
    stratified_effect,
    winsorize,
)
from toque.load.benchmarks.harness import bound, line, main, say, timed

Floats = npt.NDArray[np.float64]
Look = Callable[[np.random.Generator], Iterator[Effect]]

RUNS = 1_000
ALPHA = 0.05
LOOKS = 50


def run() -> bool:
    """Run every simulation; returns whether every bound held."""
    passed = [_null(*case) for case in NULLS] + [check() for check in CHECKS]
    say(f"{sum(passed)} of {len(passed)} bounds held")
    return all(passed)


def allowed(runs: int = RUNS) -> float:
    """Return the level plus four standard errors."""
    return ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def _null(name: str, looks: Look) -> bool:
    """Watch equal arms at every batch and count the runs in which a difference is ever found."""
    rng = np.random.default_rng(20_13)
    runs = (any(asymptotic_cs(effect, n_opt=2_000).reject for effect in looks(rng)) for _ in range(RUNS))
    return bound(f"false alarms, {name}, {LOOKS} looks", sum(runs) / RUNS, most=allowed())


def _watch(draw: Callable[[np.random.Generator, int], Floats]) -> Look:
    def looks(rng: np.random.Generator) -> Iterator[Effect]:
        a, b = Moments(), Moments()
        for _ in range(LOOKS):
            a, b = a + Moments.of(draw(rng, 50)), b + Moments.of(draw(rng, 50))
            yield difference(a, b)

    return looks


def _pareto(rng: np.random.Generator, n: int) -> Floats:
    """Simulate revenue with infinite variance, clipped to a limit fixed beforehand."""
    return winsorize(rng.pareto(1.5, n), upper=50.0)


def _ratios(rng: np.random.Generator) -> Iterator[Effect]:
    a, b = CoMoments(), CoMoments()
    for _ in range(LOOKS):
        views = 1 + rng.poisson(4, (2, 50))
        clicks = rng.binomial(views, rng.beta(1, 9, (2, 50)))
        a, b = a + CoMoments.of(clicks[0], views[0]), b + CoMoments.of(clicks[1], views[1])
        yield ratio_effect(a, b)


def _adjusted(rng: np.random.Generator) -> Iterator[Effect]:
    a, b = CoMoments(), CoMoments()
    for _ in range(LOOKS):
        before = rng.standard_normal((2, 50))
        after = 0.8 * before + 0.6 * rng.standard_normal((2, 50))
        a, b = a + CoMoments.of(after[0], before[0]), b + CoMoments.of(after[1], before[1])
        yield cuped(a, b)


def _ramp(rng: np.random.Generator) -> Iterator[Effect]:
    """Simulate shares of 5, 20 and 50 %, while the level falls from day to day."""
    days: list[tuple[Moments, Moments]] = []
    for share, level in ((0.05, 1.0), (0.2, 0.5), (0.5, 0.0)):
        days.append((Moments(), Moments()))
        for _ in range(LOOKS // 3):
            treated = max(2, int(100 * share))
            c, t = days[-1]
            days[-1] = (
                c + Moments.of(level + rng.standard_normal(100 - treated)),
                t + Moments.of(level + rng.standard_normal(treated)),
            )
            yield stratified_effect(days)


def _diurnal(rng: np.random.Generator) -> Iterator[Effect]:
    a, b = Moments(), Moments()
    for hour in range(LOOKS):
        level = math.sin(2 * math.pi * hour / 24)
        size = int(50 + 30 * math.sin(2 * math.pi * (hour - 6) / 24))
        a, b = (side + Moments.of(level + rng.standard_normal(size)) for side in (a, b))
        yield difference(a, b)


def _autocorrelated(rng: np.random.Generator) -> Iterator[Effect]:
    """Simulate latencies in which .8 of the last deviation remains, compared by blocks of 40."""
    noise = rng.standard_normal((2, 40 * 2 * LOOKS))
    for n in range(1, noise.shape[1]):
        noise[:, n] += 0.8 * noise[:, n - 1]
    blocks = block_means(noise[0] - noise[1], size=40)
    for n in range(2, len(blocks) + 1, 2):
        moments = Moments.of(blocks[:n])
        yield Effect(moments.mean, moments.standard_error, n)


NULLS: tuple[tuple[str, Look], ...] = (
    ("normal", _watch(lambda rng, n: rng.standard_normal(n))),
    ("Student t, 3 degrees of freedom", _watch(lambda rng, n: rng.standard_t(3, n))),
    ("Pareto 1.5, winsorised", _watch(_pareto)),
    ("1 % events", _watch(lambda rng, n: (rng.random(n) < 0.01).astype(float))),
    ("ratios", _ratios),
    ("CUPED", _adjusted),
    ("ramp over a falling level", _ramp),
    ("diurnal level and traffic", _diurnal),
    ("AR(1) with phi = .8 in blocks", _autocorrelated),
)


def _power() -> bool:
    """Watch an effect up to the size planned for 80 % power."""
    rng, effect = np.random.default_rng(1), 0.2
    plan = plan_run(1.0, effect, units_per_day=1.0)
    size, found = plan.n_worst // 2, 0
    looks = np.unique(np.geomspace(20, size, 100).astype(int)).tolist()
    for _ in range(RUNS):
        sums = np.cumsum(rng.standard_normal((2, size)) + np.array([[0.0], [effect]]), axis=1)
        z = (Effect(float(sums[1, n - 1] - sums[0, n - 1]) / n, math.sqrt(2 / n), 2 * n) for n in looks)
        found += any(asymptotic_cs(look, n_opt=plan.n_opt).reject for look in z)
    return bound("distance of the power from the planned .8", abs(found / RUNS - 0.8), most=0.05)


def _mismatch() -> bool:
    """Test for an arm that lost 2 % of its units, on a hundred looks at a million of them."""
    rng = np.random.default_rng(2)
    arrivals = np.cumsum(rng.multinomial(10_000, [0.5051, 0.4949], 100), axis=0)
    found = next((n for n, counts in enumerate(arrivals, 1) if sequential_counts(counts).reject), math.inf)
    return bound("looks (10,000 units each) until a split of 50.5 to 49.5 is found", found, most=30)


def _errors() -> bool:
    """Measure the minutes until errors that rise from .5 to 2 % at a tenth of 1,000 requests a minute are found."""
    rng, minutes, false = np.random.default_rng(3), [], 0
    for _ in range(RUNS):
        for rate in (0.005, 0.02):
            errors = np.cumsum(rng.binomial([[900, 100]] * 60, [0.005, rate]), axis=0)
            looks = (sequential_counts(counts, [0.9, 0.1], concentration=5).reject for counts in errors)
            minute = next((n for n, reject in enumerate(looks, 1) if reject), math.inf)
            false += rate == 0.005 and minute < math.inf
            minutes += [minute] if rate == 0.02 else []
    return all(
        [
            bound(
                "median minutes until errors of 2 % instead of .5 % are found",
                float(np.median(minutes)),
                most=6,
            ),
            bound("false alarms of equal error rates, 60 looks", false / RUNS, most=allowed()),
        ]
    )


def _concept() -> bool:
    """Find a loss that goes from .2 to .3 by ADWIN, after 10,000 labels in which it does not; `monitoring.bounds` does so by CUSUM."""
    rng, false, delays = np.random.default_rng(5), 0, []
    for _ in range(100):
        quiet = Adwin(rising_only=True).update(rng.random(10_000) < 0.2)
        false += quiet.alarm
        late = [n for n in quiet.update(rng.random(2_000) < 0.3).alarms if n > 10_000]
        delays.append(late[0] - 10_000 if late else math.inf)
    return all(
        [
            bound("false alarms of ADWIN in 10,000 labels", false / 100, most=allowed(100)),
            bound("median labels until ADWIN finds .2 -> .3", float(np.median(delays)), most=600),
        ]
    )


def _speed() -> bool:
    """Time drift of a large window against a stored reference; the baseline is scipy on the rows of both.

    The bound is on their ratio, which a busy machine hardly changes.
    """
    rng = np.random.default_rng(6)
    names = [f"c{n}" for n in range(20)]
    table = pa.table({name: rng.standard_normal(1_000_000) for name in names})
    reference = TableSketch.reference(table)
    other = {name: rng.standard_normal(1_000_000) for name in names}
    ours = timed(lambda: drift.compare(reference, reference.window(table)), repeats=3)
    base = timed(lambda: [stats.ks_2samp(table[name].to_numpy(), other[name]) for name in names], repeats=1)
    line(
        "drift.compare, 1M rows x 20 columns against a stored sketch, beside ks_2samp of 1M + 1M", ours, base
    )
    return bound("times as fast as ks_2samp", base.p50_s / ours.p50_s, least=5)


CHECKS = (_power, _mismatch, _errors, _concept, _speed)


if __name__ == "__main__":
    main(run, "numpy", "scipy", "pyarrow")
