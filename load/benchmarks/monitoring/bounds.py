"""Simulation of the monitors against stated bounds; exit 1 if one breaks.

`--only PART` runs one part of it: `bounds`, the simulations; `rows`, `window`, `models`, what watching costs at size
(`load/benchmarks/monitoring/scale.py`). A family is one comparison of all columns of a table; it alarms falsely if any column is called
drifted where nothing changed. Its share may exceed the declared level by four standard errors. The floors under the effect
are off there, so that it is the tests that are judged. Every simulation is seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.monitoring import DriftMonitor, PerformanceMonitor
from toque.functions.monitoring.drift.monitor import compare_window
from toque.functions.monitoring.drift.reference import Cycle, NumberedSketch, Reference
from toque.functions.monitoring.performance import Cohort, PerformanceState, judge
from toque.functions.stats import ClusterSums, Cusum, Moments, TableSketch, drift, one_row_per_unit
from toque.load.benchmarks.harness import bound, main, say
from toque.load.benchmarks.monitoring.scale import an_hour_of_models, day_from_hours, rows_beyond_memory

Draw = Callable[[np.random.Generator, int], object]
Alarms = Callable[[npt.NDArray[np.float64], np.random.Generator], list[int]]
"""Positions (from 1) at which a detector fires on a stream."""
LEVEL = 0.05
SHIFT_SD, SHIFT_ROWS, SHIFT_COLUMNS = 0.2, 5_000, 20
QUIET_LABELS, FEW_LABELS, COHORT_LABELS = 10_000, 600, 100
_DAY_HOURS, _REFERENCE_DAYS, _UNIT_ROWS = 24, 14, 10
_UNIT_COLUMNS = [f"n{place}" for place in range(5)]

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


def run(
    *, only: Annotated[Literal["window", "models", "rows", "bounds"] | None, "one part of it"] = None
) -> None:
    """Run every simulation, or one part of them."""
    parts = {"window": day_from_hours, "models": an_hour_of_models, "rows": rows_beyond_memory}
    parts["bounds"] = _bounds
    for name in [only] if only else parts:
        parts[name]()


def _bounds() -> None:
    shares = [(false_alarms(family), family.runs, f"A/A, {family}") for family in FAMILIES]
    shares += [
        (diurnal_alarms(200, season=True), 200, "A/A, an hour, seasonal reference, 5 columns"),
        (unit_alarms(1_000, thinned=True), 1_000, "A/A, 10 rows a unit, one row a unit kept"),
        (unit_cohort_alarms(200), 200, "A/A, 10 rows a unit, 7 days, likeness of rows learnt"),
    ]
    say(f"for comparison: an hour against all hours {diurnal_alarms(50, season=False):.3f}")
    say(f"for comparison: 10 rows a unit, taken as independent {unit_alarms(200, thinned=False):.3f}")
    for share, runs, what in shares:
        bound(f"{what}, {runs} runs", share, most=allowed(runs))
    for outlier in (0.0, 1e9):
        what = f"a shift of .2 sd in 1 of 20 columns, 5,000 rows, one value of {outlier:g}"
        bound(what, shifts_found(300, outliers=outlier), least=0.9)
    for name, detector in (("CUSUM", cusum_alarms), ("monitor", monitor_alarms)):
        delays = flip_delays(detector, 400)
        bound(f"{name}: false alarm in 10,000 labels", delays.false, most=allowed(400))
        what = f"{name}: .2 -> .3 found within 600 labels; median {delays.median:.0f}"
        bound(what, delays.within, least=0.9)


def allowed(runs: int) -> float:
    """Return the level plus four standard errors."""
    return LEVEL + 4 * math.sqrt(LEVEL * (1 - LEVEL) / runs)


def false_alarms(family: NullFamily, *, seed: int = 1) -> float:
    """Return the share of the family's runs in which a column is called drifted."""
    rng, alarms = np.random.default_rng(seed), 0
    kinds = list(DRAWS.values()) if family.kind == "all" else [DRAWS[family.kind]]

    def table(rows: int) -> pa.Table:
        return pa.table(
            {f"c{place}": kinds[place % len(kinds)](rng, rows) for place in range(family.columns)}
        )

    for _ in range(family.runs):
        reference = TableSketch.reference(table(family.reference))
        alarms += _drifted(reference, reference.window(table(family.window)))
    return alarms / family.runs


def _drifted(reference: TableSketch, window: TableSketch) -> bool:
    return bool(drift.compare(reference, window, alpha=LEVEL, min_effect=0, min_null_change=0).drifted)


def _window_drifted(reference: Reference, window: Sequence[NumberedSketch], monitor: DriftMonitor) -> bool:
    return bool(compare_window(reference, window, monitor)[0].drifted)


def diurnal_alarms(runs: int, *, season: bool, seed: int = 2) -> float:
    """Return the share of false alarms of one hour against two weeks of hours whose level and traffic follow the time of day."""
    rng, alarms = np.random.default_rng(seed), 0
    monitor = DriftMonitor(
        cohort=timedelta(hours=1), window=1, alpha=LEVEL, min_effect=0, min_null_change=0, season="day"
    )
    for _ in range(runs):
        hours = [_hour(rng, index) for index in range(_DAY_HOURS * _REFERENCE_DAYS)]
        whole = TableSketch.reference(pa.concat_tables(hours))
        reference = Reference.of(whole, [])  # rows taken as independent, whatever the hour
        if season:
            cohorts = [(index, whole.window(rows)) for index, rows in enumerate(hours)]
            reference = Reference.seasonal(cohorts, Cycle(_DAY_HOURS))
        index = len(hours) + int(rng.integers(_DAY_HOURS))
        alarms += _window_drifted(reference, [(index, whole.window(_hour(rng, index)))], monitor)
    return alarms / runs


def _hour(rng: np.random.Generator, index: int) -> pa.Table:
    phase = 2 * math.pi * index / _DAY_HOURS
    rows = 30 + int(rng.poisson(60 + 50 * math.sin(phase)))
    columns: dict[str, object] = {
        f"n{place}": math.sin(phase + place) + rng.standard_normal(rows) for place in range(4)
    }
    night = rng.random(rows) < (1 + math.sin(phase)) / 2
    return pa.table(columns | {"word": pa.array(np.where(night, "night", "day"))})


def unit_alarms(runs: int, *, thinned: bool, seed: int = 3) -> float:
    """Return the share of false alarms with ten equal rows a unit, of which one or all are kept."""
    rng, alarms = np.random.default_rng(seed), 0
    for _ in range(runs):
        tables = [_units(rng, units) for units in (500, 200)]
        if thinned:
            tables = [one_row_per_unit(table, "unit", rng=rng) for table in tables]
        reference = TableSketch.reference(tables[0], numeric=_UNIT_COLUMNS, categorical=[])
        alarms += _drifted(reference, reference.window(tables[1]))
    return alarms / runs


def _units(rng: np.random.Generator, units: int) -> pa.Table:
    unit = np.repeat(np.arange(units), _UNIT_ROWS)
    columns: dict[str, object] = {"unit": pa.array(unit.astype(str))}
    for name in _UNIT_COLUMNS:
        columns[name] = rng.standard_normal(units)[unit] + 0.3 * rng.standard_normal(len(unit))
    return pa.table(columns)


def unit_cohort_alarms(runs: int, *, seed: int = 4) -> float:
    """Return the share of false alarms where the likeness of a day's rows is learnt from the training set."""
    rng, alarms = np.random.default_rng(seed), 0
    monitor = DriftMonitor(window=7, alpha=LEVEL, min_effect=0, min_null_change=0)
    for _ in range(runs):
        days = [_units(rng, 30) for _ in range(60)]
        whole = TableSketch.reference(pa.concat_tables(days), numeric=_UNIT_COLUMNS, categorical=[])
        reference = Reference.of(whole, [whole.window(day) for day in days])
        window = [(60 + day, whole.window(_units(rng, 30))) for day in range(7)]
        alarms += _window_drifted(reference, window, monitor)
    return alarms / runs


def shifts_found(runs: int, *, outliers: float = 0.0, seed: int = 5) -> float:
    """Return the share of runs in which one column of twenty that moved by .2 sd is named, at the floors that `compare` has.

    outliers: one such value in the column, in the reference and in the window.
    """
    rng, named = np.random.default_rng(seed), 0
    for _ in range(runs):
        tables = []
        for shift in (0.0, SHIFT_SD):
            values = rng.standard_normal((SHIFT_COLUMNS, SHIFT_ROWS))
            values[0] += shift
            if outliers:
                values[0, 0] = outliers
            tables.append(pa.table({f"c{place}": column for place, column in enumerate(values)}))
        reference = TableSketch.reference(tables[0])
        named += "c0" in drift.compare(reference, reference.window(tables[1]), alpha=LEVEL).drifted
    return named / runs


@dataclass(frozen=True, slots=True)
class Delays:
    """Delays on streams whose mean goes from .2 to .3: share with an alarm before, share found within 600 labels, and median labels."""

    false: float
    within: float
    median: float


def flip_delays(alarms: Alarms, runs: int) -> Delays:
    """Measure the delay of a flip after 10,000 quiet labels."""
    rng, false, delays = np.random.default_rng(6), 0, []
    for _ in range(runs):
        rates = np.repeat([0.2, 0.3], [QUIET_LABELS, 3_000])
        fired = alarms((rng.random(len(rates)) < rates).astype(np.float64), rng)
        false += any(place <= QUIET_LABELS for place in fired)
        late = [place - QUIET_LABELS for place in fired if place > QUIET_LABELS]
        delays.append(min(late, default=math.inf))
    return Delays(false / runs, float(np.mean(np.array(delays) <= FEW_LABELS)), float(np.median(delays)))


def cusum_alarms(stream: npt.NDArray[np.float64], rng: np.random.Generator) -> list[int]:
    """Run a CUSUM over single labels, tuned on 5,000 others."""
    return list(Cusum.tuned(Moments.of(rng.random(5_000) < 0.2)).update(stream).alarms)


def monitor_alarms(stream: npt.NDArray[np.float64], _: np.random.Generator) -> list[int]:
    """Run the performance monitor with its defaults over cohorts of a hundred labels, against a validated loss of .2."""
    state, fired = PerformanceState.begin(1, 0, validated_loss=0.2), []
    monitor, units = PerformanceMonitor(measures=("loss",)), np.arange(COHORT_LABELS).astype(str)
    for index, labels in enumerate(stream.reshape(-1, COHORT_LABELS)):
        cohort = Cohort(index=index, requests=COHORT_LABELS, sums={"loss": ClusterSums.of(labels, units)})
        state, verdicts = judge(state, cohort, monitor)
        if verdicts[0].kind == "alarm":
            fired.append((index + 1) * COHORT_LABELS)
    return fired


if __name__ == "__main__":
    main(run, "numpy", "scipy", "pyarrow", "ray", "deltalake")
