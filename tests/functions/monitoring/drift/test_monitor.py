from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from toque.functions.monitoring.drift.monitor import DriftMonitor, DriftState, DriftVerdict, judge
from toque.functions.monitoring.drift.reference import Reference, likeness
from toque.functions.stats.sketch import TableSketch

MONITOR = DriftMonitor()
COLUMNS = 10


def day(
    rng: np.random.Generator, rows: int, *, alike: float = 0.0, shift: float = 0.0, outlier: float = 0.0
) -> pa.Table:
    """Ten normal columns and a category; a share `alike` of each column's variance is common to the day."""
    columns: dict[str, Any] = {}
    for index in range(COLUMNS):
        values = rng.normal(size=rows) * np.sqrt(1 - alike) + rng.normal() * np.sqrt(alike)
        columns[f"x{index}"] = values + (shift if index == 0 else 0.0)
    if outlier:
        columns["x0"][0] = outlier
    columns["kind"] = rng.choice(list("abcd"), rows)
    return pa.table(columns)


def reference(rng: np.random.Generator, *, days: int = 90, rows: int = 200, alike: float = 0.0) -> Reference:
    tables = [day(rng, rows, alike=alike) for _ in range(days)]
    sketch = TableSketch.reference(pa.concat_tables(tables), bins=20)
    return Reference.of(sketch, [sketch.window(table) for table in tables])


def watch(
    rng: np.random.Generator, ref: Reference, days: int, *, rows: int = 200, **day_of: Any
) -> list[DriftVerdict]:
    state, verdicts = DriftState(version=1, next_cohort=0), []
    for index in range(days):
        state, verdict = judge(state, ref, ref.sketch.window(day(rng, rows, **day_of)), index, MONITOR)
        state = DriftState.model_validate_json(state.model_dump_json())
        verdicts.append(verdict)
    return verdicts


@pytest.mark.parametrize(
    ("alike", "rows"),
    [
        (0.1, 50),
        *(pytest.param(alike, rows, marks=pytest.mark.long) for alike, rows in ((0.0, 400), (0.3, 200))),
    ],
)
def test_nothing_drifted_and_it_stays_quiet(alike: float, rows: int) -> None:
    # 20 seasons of 30 days over 11 columns each: seasons with any news <= .05 + 4 s.e.
    rng = np.random.default_rng(1)
    loud = 0
    for _ in range(20):
        ref = reference(rng, alike=alike)
        loud += any(verdict.news for verdict in watch(rng, ref, 30, rows=rows, alike=alike))
    assert loud / 20 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 20)


def test_a_shift_of_one_column_is_found_once_and_named() -> None:
    rng = np.random.default_rng(2)
    found = [verdict.news for verdict in watch(rng, reference(rng), 30, shift=0.6)]
    assert [news for news in found if news] == [("x0",)]


def test_a_drift_that_ended_recovers_and_can_be_told_again() -> None:
    rng = np.random.default_rng(3)
    ref = reference(rng)
    state = DriftState(version=1, next_cohort=0)
    news, recovered = [], []
    for index in range(60):
        shift = 0.8 if index < 15 or index >= 40 else 0.0
        state, verdict = judge(state, ref, ref.sketch.window(day(rng, 200, shift=shift)), index, MONITOR)
        news += verdict.news
        recovered += verdict.recovered
    assert news == ["x0", "x0"]
    assert recovered == ["x0"]


def test_a_column_that_is_watched_no_longer_is_well() -> None:
    rng = np.random.default_rng(4)
    sketch = TableSketch.reference(day(rng, 400).drop_columns("x0"), bins=20)
    ref, seen = Reference.of(sketch, [sketch]), set()
    state = DriftState(version=1, next_cohort=0, alarmed=("x0",), excused=("x0",))
    for index in range(15):
        state, verdict = judge(state, ref, ref.sketch.window(day(rng, 200)), index, MONITOR)
        seen |= {("recovered", *verdict.recovered), ("forgiven", *verdict.forgiven)}
    assert {("recovered", "x0"), ("forgiven", "x0")} <= seen
    assert "x0" not in state.alarmed + state.excused


def test_one_enormous_outlier_hides_nothing() -> None:
    rng = np.random.default_rng(4)
    found = [verdict.news for verdict in watch(rng, reference(rng), 30, shift=0.6, outlier=1e9)]
    assert [news for news in found if news] == [("x0",)]


def test_a_column_that_vanished_is_told() -> None:
    rng = np.random.default_rng(5)
    ref = reference(rng)
    state = DriftState(version=1, next_cohort=0)
    news = []
    for index in range(12):
        gone = ref.sketch.window(day(rng, 200).drop_columns(["x3"]))
        state, verdict = judge(state, ref, gone, index, MONITOR)
        news += verdict.news
    assert news == ["x3"]
    assert {c.column: c.status for c in verdict.columns}["x3"] == "vanished"


def test_few_rows_are_insufficient_and_empty_days_say_nothing() -> None:
    rng = np.random.default_rng(6)
    ref = reference(rng)
    few = watch(rng, ref, 10, rows=2)
    assert {column.status for column in few[-1].columns} == {"insufficient"}
    empty = watch(rng, ref, 10, rows=0)
    assert not any(verdict.columns for verdict in empty)
    assert empty[-1].rows == 0


def test_rows_of_a_day_that_are_alike_are_found_out() -> None:
    rng = np.random.default_rng(7)
    for alike in (0.0, 0.1, 0.5):
        ref = reference(rng, alike=alike, days=120)
        mean = np.mean([ref.alike[f"x{index}"] for index in range(COLUMNS)])
        assert 0.4 * alike - 0.01 <= mean <= 1.2 * alike + 0.01
    assert likeness([]) == 0.0


def test_the_reference_survives_json() -> None:
    ref = reference(np.random.default_rng(8), days=5)
    assert Reference.from_dict(json.loads(json.dumps(ref.to_dict()))) == ref
