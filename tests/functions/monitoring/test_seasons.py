"""Like is held against like: hours with the same hours, weekdays with the same weekdays, and the last month with this."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from toque.functions.monitoring.drift.monitor import DriftMonitor, DriftState, DriftVerdict, judge
from toque.functions.monitoring.drift.reference import Cycle, Months, Reference, season_of
from toque.functions.stats import LordPlusPlus
from toque.functions.stats.sketch import TableSketch

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
HOURLY = DriftMonitor(cohort=HOUR, window=3, season="week", min_effect=0.1)
ROWS, TRAINED = 80, 24 * 28


def hour(
    rng: np.random.Generator, index: int, *, shift: float = 0.0, rows: int = ROWS, weekend: float = 0.6
) -> pa.Table:
    """A day's cycle of .8 sd, weekends apart, and a category that is asked for at night."""
    daily = 0.8 * np.sin(2 * np.pi * index / 24) + weekend * (index // 24 % 7 >= 5)
    night = 0.8 if index % 24 < 6 else 0.2
    return pa.table(
        {
            "load": rng.normal(daily + shift, 1.0, rows),
            "still": rng.normal(0.0, 1.0, rows),
            "kind": np.where(rng.random(rows) < night, "night", "day"),
        }
    )


def trained(rng: np.random.Generator, period: int | None) -> Reference:
    tables = [hour(rng, index) for index in range(TRAINED)]
    layout = TableSketch.reference(pa.concat_tables(tables), bins=20)
    cohorts = [(index, layout.window(table)) for index, table in enumerate(tables)]
    assert season_of(cohorts, HOURLY.periods) == Cycle(168)
    if period is None:
        return Reference.of(layout, [one for _, one in cohorts])
    return Reference.seasonal(cohorts, Cycle(period))


class Budget:
    """The false alarms that a workspace with this monitor alone may spend."""

    def __init__(self) -> None:
        self.rule = LordPlusPlus()

    def __call__(self, _cohort: int, q: Mapping[str, float]) -> list[str]:
        self.rule, level, _ = self.rule.step(min(q.values(), default=1.0))
        return [name for name, p in q.items() if p <= level]


def watch(
    rng: np.random.Generator, reference: Reference, hours: int, monitor: DriftMonitor, **given: Any
) -> list[DriftVerdict]:
    state, verdicts, decide = DriftState(version=1, next_cohort=TRAINED), [], Budget()
    for index in range(TRAINED, TRAINED + hours):
        table = hour(rng, index, **given)
        window = reference.sketch.window(table)
        state, verdict = judge(state, reference, window, index, monitor, decide=decide)
        verdicts.append(verdict)
    return verdicts


@pytest.fixture(scope="module")
def seasonal() -> Reference:
    return trained(np.random.default_rng(1), 168)


def test_days_and_weekends_are_quiet_and_a_shift_in_it_is_not(seasonal: Reference) -> None:
    # 190 windows of 3 columns, whose levels sum to less than .025: any news would be a fault.
    rng = np.random.default_rng(2)
    assert not any(verdict.news for verdict in watch(rng, seasonal, 8 * 24, HOURLY))
    found = [
        (verdict.cohort, verdict.news)
        for verdict in watch(rng, seasonal, 24, HOURLY, shift=0.6)
        if verdict.news
    ]
    assert [news for _, news in found] == [("load",)]
    assert found[0][0] - TRAINED < 12


def test_without_the_season_the_shift_is_lost_in_the_days(seasonal: Reference) -> None:
    # A week's mean of all hours is what an hour is held against, and its cohorts are taken for accidents of one another.
    rng = np.random.default_rng(3)
    plain = Reference.of(seasonal.sketch, list(seasonal.phases.values()))
    assert plain.alike["load"] > 10 * seasonal.alike["load"]
    assert not any(verdict.news for verdict in watch(rng, plain, 24, HOURLY, shift=0.6))


def test_a_rolling_reference_alarms_once_and_then_knows_the_new_world(seasonal: Reference) -> None:
    monitor = HOURLY.model_copy(update={"reference": "rolling", "rolling": 48, "season": "day"})
    rng, daily = np.random.default_rng(4), replace(seasonal, season=Cycle(24))
    state, news, confirmed, decide = DriftState(version=1, next_cohort=0), [], [], Budget()
    for index in range(240):
        table = hour(rng, index, shift=0.8 if index >= 120 else 0.0, weekend=0.0)
        window = seasonal.sketch.window(table)
        state, verdict = judge(state, daily, window, index, monitor, decide=decide)
        news += [(index, name) for name in verdict.news]
        confirmed += [index] if verdict.confirmed else []
    assert [name for _, name in news] == ["load"]
    assert 120 < news[0][0] < 132
    assert max(confirmed) < 120 + 48 + 24


def test_phases_without_reference_rows_are_left_out_and_none_is_insufficient(seasonal: Reference) -> None:
    mornings = Reference.seasonal(
        [(phase, one) for phase, one in seasonal.phases.items() if phase % 24 < 12], Cycle(168)
    )
    layout = seasonal.sketch
    window = [(at, layout.window(hour(np.random.default_rng(5), at))) for at in (9, 10, 11, 12, 13)]
    reference, here = mornings.matched(window)
    assert here.columns["load"].rows == 3 * ROWS
    assert reference.columns["load"].rows > 0
    reference, here = mornings.matched(window[3:])
    assert reference.columns["load"].rows == here.columns["load"].rows == 0


def test_the_mix_of_phases_is_that_of_the_window(seasonal: Reference) -> None:
    rng = np.random.default_rng(6)
    window = [
        (0, seasonal.sketch.window(hour(rng, 0, rows=300))),
        (12, seasonal.sketch.window(hour(rng, 12, rows=100))),
    ]
    reference, here = seasonal.matched(window)
    night = reference.columns["kind"].bins.index("night")
    share = reference.columns["kind"].counts[night] / reference.columns["kind"].present
    assert share == pytest.approx(0.75 * 0.8 + 0.25 * 0.2, abs=0.04)
    assert here.columns["kind"].present == 400


def test_a_seasonal_reference_survives_json(seasonal: Reference) -> None:
    assert Reference.from_dict(json.loads(json.dumps(seasonal.to_dict()))) == seasonal


YEARLY = DriftMonitor(window=7, season="year", min_effect=0.1)


def summery(rng: np.random.Generator, day: int, *, shift: float = 0.0) -> pa.Table:
    """A day of a year with a summer of 1 sd."""
    daily = np.sin(2 * np.pi * (day - 100) / 365.25) + shift
    return pa.table({"load": rng.normal(daily, 1.0, ROWS)})


def a_year_on(season: Months | None, days: range, *, shift: float = 0.0) -> list[tuple[int, tuple[str, ...]]]:
    """News of the days after a year that was learnt from."""
    rng = np.random.default_rng(8)
    tables = {day: summery(rng, day) for day in range(365)}
    layout = TableSketch.reference(pa.concat_tables(tables.values()), bins=20)
    cohorts = [(day, layout.window(table)) for day, table in tables.items()]
    sketches = [one for _, one in cohorts]
    reference = Reference.of(layout, sketches) if season is None else Reference.seasonal(cohorts, season)
    state, news = DriftState(version=1, next_cohort=days.start), []
    for day in days:
        state, verdict = judge(state, reference, layout.window(summery(rng, day, shift=shift)), day, YEARLY)
        news += [(day, verdict.news)] if verdict.news else []
    return news


def test_a_month_is_held_against_the_same_month_of_the_year_before() -> None:
    july = range(365 + 181, 365 + 212)
    assert a_year_on(Months(DAY), july) == []
    assert [names for _, names in a_year_on(Months(DAY), july, shift=0.8)] == [("load",)]
    january = range(365, 365 + 31)  # its winter shifted by as much looks like spring
    assert [names for _, names in a_year_on(Months(DAY), january, shift=0.8)] == [("load",)]
    assert a_year_on(None, january, shift=0.8) == []


def test_months_are_those_of_the_calendar_and_survive_json() -> None:
    months = Months(timedelta(hours=6))
    for at, month in ((0, 1), (31 * 4 - 1, 1), (31 * 4, 2), (59 * 4 - 1, 2), (365 * 4, 1), (365 * 4 - 1, 12)):
        assert months.phase(at) == month
    layout = TableSketch.reference(summery(np.random.default_rng(9), 0), bins=5)
    reference = Reference.seasonal([(0, layout), (40, layout)], Months(DAY))
    assert set(reference.phases) == {1, 2}
    assert Reference.from_dict(json.loads(json.dumps(reference.to_dict()))) == reference


def test_seasons_that_do_not_fit_the_cohorts_are_refused() -> None:
    with pytest.raises(ValidationError, match="a season of a year needs cohorts within a month"):
        DriftMonitor(cohort=timedelta(days=30), season="year")

    assert DriftMonitor(cohort=DAY, season="auto").periods == (7,)
    assert DriftMonitor(cohort=HOUR, season="auto").periods == (24, 168)
    assert DriftMonitor(cohort=HOUR, season="day").periods == (24,)
    for cohort in (DAY, timedelta(hours=7)):
        with pytest.raises(ValidationError, match="shorten cohort"):
            DriftMonitor(cohort=cohort, season="day")
