"""Simulation of the monitors against stated bounds: `python -m toque.load.benchmarks.monitoring.bounds`; exit 1 if one breaks.

`--only PART` runs one part of it: `bounds`, the simulations; `rows`, `window`, `models`, what watching costs at size
(`load/benchmarks/monitoring/scale.py`); `peers`, a table beside Evidently, and with `--peer-python PYTHON` beside NannyML too, run by the
interpreter of an environment that has it (`load/peers/monitoring.py`). A family is one comparison of all columns of a table; it alarms falsely if any column is called
drifted where nothing changed. Its share may exceed the declared level by four standard errors. The floors under the effect
are off there, so that it is the tests that are judged. Every simulation is seeded.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.monitoring import DriftMonitor, PerformanceMonitor
from toque.functions.monitoring.drift.monitor import compare_window
from toque.functions.monitoring.drift.reference import Cycle, NumberedSketch, Reference
from toque.functions.monitoring.performance import Cohort, PerformanceState, judge
from toque.functions.stats import ClusterSums, Cusum, Moments, TableSketch, drift, one_row_per_unit
from toque.load.benchmarks.monitoring.scale import an_hour_of_models, day_from_hours, rows_beyond_memory
from toque.load.benchmarks.monitoring.table import compare_with_peers
from toque.load.benchmarks.timing import print_machine

Draw = Callable[[np.random.Generator, int], object]
LEVEL = 0.05
SHIFT_SD, SHIFT_ROWS, SHIFT_COLUMNS = 0.2, 5_000, 20
QUIET_LABELS, FEW_LABELS, COHORT_LABELS = 10_000, 600, 100
_DAY_HOURS, _REFERENCE_DAYS, _UNIT_ROWS = 24, 14, 10

DRAWS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "Cauchy": lambda rng, n: rng.standard_cauchy(n),
    "Pareto": lambda rng, n: rng.pareto(1.1, n),
    "ties": lambda rng, n: rng.poisson(1.0, n).astype(np.float64),
    "0 or 1": lambda rng, n: (rng.random(n) < 0.1).astype(np.float64),
    "words": lambda rng, n: pa.array(np.minimum(rng.zipf(1.6, n), 2_000).astype(str)),
}


@dataclass(frozen=True, slots=True)
class NullFamily:
    """Family of null comparisons: rows of the reference, of the window, columns, what they hold ("all": each kind in turn)."""

    reference: int
    window: int
    columns: int
    runs: int
    kind: str = "all"

    def __str__(self) -> str:
        return f"{self.reference:,} and {self.window:,} rows, {self.columns} columns ({self.kind})"


FAMILIES = (
    *(NullFamily(50, 50, columns, 1_000) for columns in (1, 20, 100)),
    *(NullFamily(1_000, 1_000, 20, 500, kind) for kind in DRAWS),
    *(NullFamily(a, b, 20, 500) for a, b in ((50, 5_000), (5_000, 50), (5_000, 500), (5_000, 5_000))),
    *(NullFamily(5_000, 500, columns, 300) for columns in (1, 100)),
    *(NullFamily(a, b, 20, 100) for a, b in ((100_000, 500), (500, 100_000), (100_000, 100_000))),
    *(NullFamily(a, b, 6, 40) for a, b in ((1_000_000, 50), (50, 1_000_000), (1_000_000, 1_000_000))),
)


def false_alarms(family: NullFamily, *, seed: int = 1) -> float:
    """Return the share of the family's runs in which a column is called drifted."""
    rng, alarms = np.random.default_rng(seed), 0
    for _ in range(family.runs):
        reference = TableSketch.reference(_frame(rng, family.reference, family))
        alarms += _alarms(reference, reference.window(_frame(rng, family.window, family)))
    return alarms / family.runs


def _alarms(reference: TableSketch, window: TableSketch) -> bool:
    return bool(drift.compare(reference, window, alpha=LEVEL, min_effect=0, min_null_change=0).drifted)


def _frame(rng: np.random.Generator, rows: int, family: NullFamily) -> pa.Table:
    kinds = list(DRAWS.values()) if family.kind == "all" else [DRAWS[family.kind]]
    return pa.table({f"c{place}": kinds[place % len(kinds)](rng, rows) for place in range(family.columns)})


def diurnal_alarms(runs: int, *, season: bool, seed: int = 2) -> float:
    """Return the share of false alarms of one hour against two weeks of hours whose level and traffic follow the time of day."""
    rng, alarms = np.random.default_rng(seed), 0
    monitor = DriftMonitor(
        cohort=timedelta(hours=1), window=1, alpha=LEVEL, min_effect=0, min_null_change=0, season="day"
    )
    for _ in range(runs):
        hours = [_hour(rng, index) for index in range(_DAY_HOURS * _REFERENCE_DAYS)]
        whole = TableSketch.reference(pa.concat_tables(hours))
        cohorts = [(index, whole.window(rows)) for index, rows in enumerate(hours)]
        reference = (
            Reference.seasonal(cohorts, Cycle(_DAY_HOURS))
            if season
            else Reference.of(whole, [])  # rows taken as independent, whatever the hour
        )
        index = len(hours) + int(rng.integers(_DAY_HOURS))
        alarms += _window_alarms(reference, [(index, whole.window(_hour(rng, index)))], monitor)
    return alarms / runs


def _hour(rng: np.random.Generator, index: int) -> pa.Table:
    phase = 2 * math.pi * index / _DAY_HOURS
    rows = 30 + int(rng.poisson(60 + 50 * math.sin(phase)))
    level = [math.sin(phase + place) for place in range(4)]
    columns: dict[str, object] = {
        f"n{place}": mean + rng.standard_normal(rows) for place, mean in enumerate(level)
    }
    night = rng.random(rows) < (1 + math.sin(phase)) / 2
    return pa.table(columns | {"word": pa.array(np.where(night, "night", "day"))})


def _window_alarms(reference: Reference, window: Sequence[NumberedSketch], monitor: DriftMonitor) -> bool:
    return bool(compare_window(reference, window, monitor)[0].drifted)


def unit_alarms(runs: int, *, thinned: bool, seed: int = 3) -> float:
    """Return the share of false alarms with ten equal rows a unit, of which one or all are kept."""
    rng, alarms = np.random.default_rng(seed), 0
    for _ in range(runs):
        tables = [_units(rng, units) for units in (500, 200)]
        if thinned:
            tables = [one_row_per_unit(table, "unit", rng=rng) for table in tables]
        reference = TableSketch.reference(tables[0], numeric=_UNIT_COLUMNS, categorical=[])
        alarms += _alarms(reference, reference.window(tables[1]))
    return alarms / runs


_UNIT_COLUMNS = [f"n{place}" for place in range(5)]


def _units(rng: np.random.Generator, units: int) -> pa.Table:
    unit = np.repeat(np.arange(units), _UNIT_ROWS)
    columns: dict[str, object] = {
        name: rng.standard_normal(units)[unit] + 0.3 * rng.standard_normal(len(unit))
        for name in _UNIT_COLUMNS
    }
    return pa.table(columns | {"unit": pa.array(unit.astype(str))})


def unit_cohort_alarms(runs: int, *, seed: int = 4) -> float:
    """Return the share of false alarms where the likeness of a day's rows is learnt from the training set."""
    rng, alarms = np.random.default_rng(seed), 0
    monitor = DriftMonitor(window=7, alpha=LEVEL, min_effect=0, min_null_change=0)
    for _ in range(runs):
        days = [_units(rng, 30) for _ in range(60)]
        whole = TableSketch.reference(pa.concat_tables(days), numeric=_UNIT_COLUMNS, categorical=[])
        reference = Reference.of(whole, [whole.window(day) for day in days])
        window = [(60 + day, whole.window(_units(rng, 30))) for day in range(7)]
        alarms += _window_alarms(reference, window, monitor)
    return alarms / runs


def shifts_found(runs: int, *, outliers: float = 0.0, seed: int = 5) -> float:
    """Return the share of runs in which one column of twenty that moved by .2 sd is named, at the floors that `compare` has.

    outliers: one such value in the column, in the reference and in the window.
    """
    rng, found = np.random.default_rng(seed), 0
    for _ in range(runs):
        tables = []
        for shift in (0.0, SHIFT_SD):
            values = rng.standard_normal((SHIFT_COLUMNS, SHIFT_ROWS))
            values[0] += shift
            if outliers:
                values[0, 0] = outliers
            tables.append(pa.table({f"c{place}": column for place, column in enumerate(values)}))
        reference = TableSketch.reference(tables[0])
        report = drift.compare(reference, reference.window(tables[1]), alpha=LEVEL)
        found += "c0" in report.drifted
    return found / runs


@dataclass(frozen=True, slots=True)
class Delays:
    """Delays on streams whose mean goes from .2 to .3: share with an alarm before, and labels until one after."""

    false: float
    labels: tuple[float, ...]

    @property
    def within(self) -> float:
        """Share found within 600 labels."""
        return float(np.mean(np.array(self.labels) <= FEW_LABELS))

    @property
    def median(self) -> float:
        """Median labels until it was found; infinite where it was not."""
        return float(np.median(self.labels))


def flip_delays(
    alarms: Callable[[npt.NDArray[np.float64], np.random.Generator], list[int]], runs: int
) -> Delays:
    """Measure the delay of a flip after 10,000 quiet labels.

    alarms: positions (from 1) at which a detector fires on a stream.
    """
    rng, false, delays = np.random.default_rng(6), 0, []
    for _ in range(runs):
        rates = np.repeat([0.2, 0.3], [QUIET_LABELS, 3_000])
        fired = alarms((rng.random(len(rates)) < rates).astype(np.float64), rng)
        false += any(at <= QUIET_LABELS for at in fired)
        delays.append(min((at - QUIET_LABELS for at in fired if at > QUIET_LABELS), default=math.inf))
    return Delays(false / runs, tuple(delays))


def cusum_alarms(stream: npt.NDArray[np.float64], rng: np.random.Generator) -> list[int]:
    """Run a CUSUM over single labels, tuned on 5,000 others."""
    return list(Cusum.tuned(Moments.of(rng.random(5_000) < 0.2)).update(stream).alarms)


def monitor_alarms(stream: npt.NDArray[np.float64], _: np.random.Generator) -> list[int]:
    """Run the performance monitor with its defaults over cohorts of a hundred labels, against a validated loss of .2."""
    state, fired = PerformanceState.begin(1, 0, validated_loss=0.2), []
    monitor, units = PerformanceMonitor(measures=("loss",)), np.arange(COHORT_LABELS).astype(str)
    for index, labels in enumerate(stream.reshape(-1, COHORT_LABELS)):
        sums = ClusterSums.of(labels, units)
        state, verdicts = judge(
            state, Cohort(index=index, requests=COHORT_LABELS, sums={"loss": sums}), monitor
        )
        if verdicts[0].kind == "alarm":
            fired.append((index + 1) * COHORT_LABELS)
    return fired


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every simulation; the exit code says whether every bound held."""
    parser = argparse.ArgumentParser(prog="python -m toque.load.benchmarks.monitoring.bounds")
    parser.add_argument("--peer-python", help="interpreter that has evidently and nannyml")
    parser.add_argument("--only", choices=list(PARTS))
    chosen = parser.parse_args(arguments)
    print_machine("numpy", "scipy", "pyarrow", "ray", "deltalake")
    held: list[bool] = []
    for name in [chosen.only] if chosen.only else PARTS:
        start = time.perf_counter()
        held += PARTS[name](chosen.peer_python)
        print(f"# {name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{sum(held)} of {len(held)} bounds held")
    return 0 if all(held) else 1


def _beside_peers(peer_python: str | None) -> list[bool]:
    compare_with_peers(peer_python)
    return []


PARTS: dict[str, Callable[[str | None], list[bool]]] = {
    "window": lambda _: day_from_hours(),
    "models": lambda _: an_hour_of_models(),
    "rows": lambda _: rows_beyond_memory(),
    "bounds": lambda _: [*_null_bounds(), *_power_bounds()],
    "peers": _beside_peers,
}


def allowed(runs: int) -> float:
    """Return the level plus four standard errors."""
    return LEVEL + 4 * math.sqrt(LEVEL * (1 - LEVEL) / runs)


def _null_bounds() -> list[bool]:
    held = [_at_most(false_alarms(one), one.runs, f"A/A, {one}") for one in FAMILIES]
    held.append(
        _at_most(diurnal_alarms(200, season=True), 200, "A/A, an hour, seasonal reference, 5 columns")
    )
    held.append(_at_most(unit_alarms(1_000, thinned=True), 1_000, "A/A, 10 rows a unit, one row a unit kept"))
    held.append(
        _at_most(unit_cohort_alarms(200), 200, "A/A, 10 rows a unit, 7 days, likeness of rows learnt")
    )
    _say("      ", diurnal_alarms(50, season=False), "for comparison: an hour against all hours")
    _say("      ", unit_alarms(200, thinned=False), "for comparison: 10 rows a unit, taken as independent")
    return held


def _power_bounds() -> list[bool]:
    held = []
    for outlier in (0.0, 1e9):
        what = f"a shift of .2 sd in 1 of 20 columns, 5,000 rows, {'one value of 1e9' if outlier else 'no outlier'}"
        held.append(_at_least(shifts_found(300, outliers=outlier), 0.9, what))
    for name, detector in (("CUSUM", cusum_alarms), ("monitor", monitor_alarms)):
        delays = flip_delays(detector, 400)
        held.append(_at_most(delays.false, 400, f"{name}: false alarm in 10,000 labels"))
        held.append(_at_least(delays.within, 0.9, f"{name}: .2 -> .3 found within 600 labels"))
        _say("      ", delays.median, f"{name}: median labels until found")
    return held


def _at_most(share: float, runs: int, what: str) -> bool:
    held = share <= allowed(runs)
    _say("held  " if held else "BROKEN", share, f"<= {allowed(runs):.3f}  {what}, {runs} runs")
    return held


def _at_least(share: float, bound: float, what: str) -> bool:
    held = share >= bound
    _say("held  " if held else "BROKEN", share, f">= {bound:.3f}  {what}")
    return held


def _say(verdict: str, value: float, what: str) -> None:
    print(f"{verdict} {value:9.4f} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
