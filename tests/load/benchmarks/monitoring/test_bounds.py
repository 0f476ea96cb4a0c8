"""The monitors' simulations in short; `python -m toque.load.benchmarks.monitoring.bounds` runs them at length. Bounds allow four standard errors."""

from __future__ import annotations

import math

import pytest

from toque.load.benchmarks.monitoring import bounds as bench


@pytest.mark.parametrize(
    "family",
    [
        bench.NullFamily(50, 50, 20, 40),
        bench.NullFamily(5_000, 100, 20, 20),
        bench.NullFamily(1_000, 1_000, 1, 40),
    ],
    ids=str,
)
def test_a_family_where_nothing_changed_alarms_no_more_than_declared(family: bench.NullFamily) -> None:
    assert bench.false_alarms(family) <= bench.allowed(family.runs)


def test_an_hour_is_held_against_the_same_hours() -> None:
    assert bench.diurnal_alarms(4, season=True) <= bench.allowed(4)
    assert bench.diurnal_alarms(4, season=False) == 1.0


def test_rows_of_one_unit_count_once() -> None:
    assert bench.unit_alarms(40, thinned=True) <= bench.allowed(40)
    assert bench.unit_cohort_alarms(10) <= bench.allowed(10)
    assert bench.unit_alarms(20, thinned=False) > bench.allowed(20)


@pytest.mark.parametrize("outlier", [0.0, 1e9])
def test_a_small_shift_is_found_whatever_one_value_is(outlier: float) -> None:
    assert bench.shifts_found(12, outliers=outlier) >= 0.9


@pytest.mark.parametrize("detector", [bench.cusum_alarms, bench.monitor_alarms])
def test_a_concept_flip_is_found_within_six_hundred_labels(detector: object) -> None:
    delays = bench.flip_delays(detector, 30)  # type: ignore[arg-type]
    assert delays.false <= bench.allowed(30)
    assert delays.within >= 0.9 - 4 * math.sqrt(0.9 * 0.1 / 30)
