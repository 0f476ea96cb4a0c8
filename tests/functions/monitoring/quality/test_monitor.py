from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from toque.functions.monitoring.quality.monitor import (
    CONVERSIONS,
    CohortSummary,
    ColumnProfile,
    QualityMonitor,
    QualityState,
    QualityVerdict,
    ViewAge,
    jump_of,
)
from toque.functions.monitoring.quality.watch import judge, spoiled

MONITOR = QualityMonitor(ranges={"humid": (0.0, 100.0)}, units={"temp": "F"})
ROWS = 200


def feed(rng: np.random.Generator, day: int) -> dict[str, np.ndarray[Any, Any]]:
    """A day of weather in degrees F, warming through the year, with days that are dry from end to end."""
    warm = 55 + 25 * np.sin(2 * np.pi * (day - 100) / 365) + rng.normal(0, 5)
    return {
        "temp": warm + rng.normal(0, 6, ROWS),
        "humid": rng.uniform(30, 100, ROWS),
        "rain": rng.exponential(0.1, ROWS) * (rng.random(ROWS) < 0.5) * (rng.random() < 0.4),
    }


def look(index: int, values: dict[str, Any], **fields: Any) -> CohortSummary:
    columns = {
        name: ColumnProfile.of_numbers(
            index, np.asarray(column, float), MONITOR.ranges.get(name, (None, None))
        )
        for name, column in values.items()
    }
    return CohortSummary(index=index, columns=columns, **({"rows": ROWS} | fields))


def run(
    days: int, broken: Any = None, *, at: int = 10**9, until: int = 10**9, seed: int = 0
) -> tuple[QualityState, list[QualityVerdict]]:
    """Judge `days` days; `broken(values)` changes those from day `at` to before `until`."""
    rng, state, seen = np.random.default_rng(seed), QualityState(version=1, next_cohort=0), []
    for day in range(days):
        values = feed(rng, day)
        changed = broken(values) if at <= day < until else {}
        state, verdict = judge(state, look(day, values | changed), MONITOR)
        state = QualityState.model_validate_json(state.model_dump_json())
        seen.append(verdict)
    return state, seen


def test_a_year_of_seasons_and_dry_days_raises_nothing() -> None:
    assert not any(verdict.faults for verdict in run(365)[1])


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        (lambda v: {"temp": np.full_like(v["temp"], 41.0)}, "constant"),
        (lambda v: {"temp": v["temp"] * np.nan}, "nulls"),
        (lambda v: {"temp": np.where(np.arange(ROWS) % 3, v["temp"], np.nan)}, "nulls"),
        (lambda v: {"temp": (v["temp"] - 32) / 1.8}, "unit"),
        (lambda v: {"humid": v["humid"] * 10}, "ranges"),
        (lambda v: {"humid": np.where(np.arange(ROWS) % 5, v["humid"], np.inf)}, "ranges"),
    ],
)
@pytest.mark.parametrize("at", [40, 130, 220])
def test_a_broken_weather_feed_is_named_in_the_first_cohort(broken: Any, kind: str, at: int) -> None:
    state, seen = run(at + 20, broken, at=at, until=at + 10)
    (begun,) = [verdict for verdict in seen if verdict.changed.get(kind)]
    assert begun.cohort == at
    column = "humid" if kind == "ranges" else "temp"
    assert [one.about for one in begun.changed[kind]] == [column]
    if kind == "unit":
        assert "F to C" in begun.changed[kind][0].text
    over = [verdict.cohort for verdict in seen if verdict.changed.get(kind) == ()]
    assert over == [at + 10]
    assert state.open == {}
    told = f"quality/{kind}/{at}"
    assert spoiled(state, at + 9, at + 30) == {column: told}
    assert spoiled(state, at + 10, at + 30) == spoiled(state, 0, at - 1) == {}


def test_a_step_that_no_unit_explains_is_left_to_drift() -> None:
    assert not any(v.faults for v in run(60, lambda v: {"temp": v["temp"] + 60}, at=40)[1])


def test_a_long_break_does_not_become_the_norm() -> None:
    state, _ = run(200, lambda v: {"temp": v["temp"] * np.nan}, at=40)
    assert set(state.open) == {"nulls:temp"}
    assert state.open["nulls:temp"].since == 40


def test_columns_that_break_together_are_one_incident_and_recover_together() -> None:
    def broken(v: Any) -> Any:
        return {name: np.full(ROWS, np.nan) for name in v}

    _, seen = run(40, broken, at=20, until=25)
    changes = [v.changed for v in seen if v.changed]
    assert [[one.about for one in changed["nulls"]] for changed in changes] == [["temp", "humid", "rain"], []]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"rows": 10}, "volume"),
        ({"rows": 0}, "volume"),
        ({"rows": 5_000}, "volume"),
        ({"misfit": 20}, "schema"),
        ({"duplicates": 60}, "duplicates"),
        (
            {"views": (ViewAge(view="w", columns=("temp",), age=timedelta(days=3), most=timedelta(days=1)),)},
            "freshness",
        ),
        ({"views": (ViewAge(view="w", columns=("temp",), age=None, most=timedelta(days=1)),)}, "freshness"),
    ],
)
def test_rows_and_views_have_incidents_too(fields: Any, kind: str) -> None:
    rng = np.random.default_rng(1)
    state = run(30)[0]
    state, verdict = judge(state, look(30, feed(rng, 30), **fields), MONITOR)
    assert [one.fault for one in verdict.faults] == [kind]
    fresh = ViewAge(view="w", columns=("temp",), age=timedelta(0), most=timedelta(days=1))
    state, verdict = judge(state, look(31, feed(rng, 31), views=(fresh,)), MONITOR)
    assert verdict.changed == {kind: ()}
    assert state.open == {}


def test_what_cannot_be_judged_stays_as_it_was() -> None:
    state, _ = run(41, lambda v: {"temp": v["temp"] * np.nan}, at=40)
    few = {"temp": [1.0] * 5, "humid": [1.0] * 5, "rain": [1.0] * 5}
    state, verdict = judge(state, look(41, few, rows=200), MONITOR)
    assert set(state.open) == {"nulls:temp"}
    state, verdict = judge(state, look(42, {"humid": [50.0] * 5}), MONITOR)  # a champion without the column
    assert state.open == {}
    assert verdict.changed == {"nulls": ()}


@pytest.mark.parametrize(
    "bad", [{"cohort": timedelta(0)}, {"ranges": {"x": (2.0, 1.0)}}, {"units": {"x": "cubit"}}]
)
def test_a_monitor_that_makes_no_sense_is_refused(bad: Any) -> None:
    with pytest.raises(ValidationError):
        QualityMonitor(**bad)


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=lambda one: f"{one.source}-{one.target}")
def test_every_change_of_unit_is_told_from_those_from_the_same_unit(conversion: Any) -> None:
    rng = np.random.default_rng(2)
    days = [np.quantile(rng.normal(70 + rng.normal(), 8, 500), [0.25, 0.5, 0.75]) for _ in range(14)]
    now = conversion.slope * np.mean(days, axis=0) + conversion.offset
    found = jump_of([list(day) for day in days], list(now), unit=conversion.source)
    assert found is not None
    assert found.conversion is not None
    assert found.conversion.target == conversion.target


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=lambda one: f"{one.source}-{one.target}")
def test_no_change_of_unit_is_looked_for_where_none_is_declared(conversion: Any) -> None:
    declared = QualityMonitor(units={"level": conversion.source})
    for monitor, found in ((QualityMonitor(), []), (declared, ["unit"])):
        rng, state = np.random.default_rng(3), QualityState(version=1, next_cohort=0)
        for day in range(20):
            state, _ = judge(state, look(day, {"level": rng.normal(30, 4, ROWS)}), monitor)
        changed = conversion.slope * rng.normal(30, 4, ROWS) + conversion.offset
        _, verdict = judge(state, look(20, {"level": changed}), monitor)
        assert [one.fault for one in verdict.faults] == found


def test_a_column_without_spread_has_no_unit() -> None:
    assert jump_of([[1.0] * 3] * 7, [5.0] * 3, unit="C") is None


def test_words_are_profiled() -> None:
    found = ColumnProfile.of_words(3, pa.array(["a", "a", "b", None]))
    assert (found.rows, found.nulls, found.present, found.top_share) == (4, 1, 3, pytest.approx(2 / 3))
    assert ColumnProfile.of_words(3, pa.array([], pa.string())).null_share == 0.0
