"""One budget of false alarms: tested once, however many tickers there are, whoever dies and however often it is run again."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.functions.monitoring.conftest import DAY, MODEL, START, ServedModel
from toque.functions.monitoring import (
    Alarm,
    alarm_history,
    alarms,
    call_false_alarm,
    false_alarm_budget,
    watch_drift,
)
from toque.functions.monitoring.alarms import Alarms
from toque.functions.monitoring.budget import budget_journal, spend
from toque.functions.monitoring.drift.monitor import DriftMonitor, DriftState, judge
from toque.functions.monitoring.drift.reference import Reference
from toque.functions.monitoring.watch import MonitorRun
from toque.functions.runtime import use_context
from toque.functions.stats.sketch import TableSketch
from toque.registry import NotFound

TODAY = START.date()


def test_two_tickers_at_once_spend_a_level_once_and_decide_alike(served: ServedModel) -> None:
    folds = [budget_journal(served.context()) for _ in range(2)]
    q = [{"wind": 1e-9, "hour": 0.5}, {"wind": 1e-9, "hour": 0.4}]

    def run(ticker: int) -> list[Any]:
        return [
            tuple(spend(folds[ticker], "late/drift", "1/86400", day, q[ticker], TODAY)) for day in range(20)
        ]

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(run, range(2))
    assert one == other == [("wind",)] * 20
    assert folds[0].refresh().tests == 20
    assert len(folds[0].state.alarms) == 20


@pytest.mark.parametrize("other", ["late/drift2", "late/answers", "late2/drift", "ate/drift"])
def test_a_window_tested_again_gets_the_decision_of_then_and_another_monitors_its_own(
    served: ServedModel, other: str
) -> None:
    fold = budget_journal(served.context())
    assert spend(fold, "late/drift", "1/86400", 5, {"wind": 0.5}, TODAY) == ()
    assert spend(fold, "late/drift", "1/86400", 6, {"wind": 0.0}, TODAY) == ("wind",)
    again = budget_journal(served.context())  # a process that began anew
    assert spend(again, "late/drift", "1/86400", 5, {"wind": 0.0}, TODAY) == ()
    assert spend(again, "late/drift", "1/86400", 6, {"wind": 1.0}, TODAY) == ("wind",)
    assert spend(again, "late/drift", "1/86400", 6, {}, TODAY) == ("wind",)
    assert again.refresh().tests == 2
    assert spend(again, other, "1/86400", 6, {"wind": 1.0}, TODAY) == ()
    assert spend(again, "late/drift", "2/86400", 5, {"wind": 0.0}, TODAY) == ("wind",)
    assert again.refresh().tests == 4


@pytest.mark.parametrize("dies_in", [(Alarms, "report"), (MonitorRun, "save_state")])
def test_a_run_killed_between_test_and_record_tells_its_alarm_and_spends_once(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch, dies_in: tuple[type, str]
) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise KilledError

    served.register()
    served.shift = 2.0
    served.serve(10)
    with use_context(served.context()):
        with monkeypatch.context() as patch:
            patch.setattr(*dies_in, killed)
            for _ in range(3):
                with pytest.raises(KilledError):
                    watch_drift(MODEL)
        spent = false_alarm_budget()
        assert spent.alarms == 1
        watch_drift(MODEL)
        assert false_alarm_budget() == spent
        assert [entry.alarm.columns for entry in alarm_history(MODEL)] == [("wind",)]


def test_a_standing_alarm_is_not_tested_again_and_earns_once(served: ServedModel) -> None:
    served.register()
    served.shift = 2.0
    with use_context(served.context()):
        for _ in range(20):
            served.serve(1)
            watch_drift(MODEL)
        assert false_alarm_budget().alarms == 1


def windows_until(monitor: DriftMonitor, news: Callable[[int], float]) -> list[int]:
    """Cohorts whose window raised an alarm on a column that is shifted by `news(cohort)`."""
    rng = np.random.default_rng(1)
    rows = [pa.table({"x": rng.normal(size=200)}) for _ in range(60)]
    sketch = TableSketch.reference(pa.concat_tables(rows), bins=20)
    reference, state, found = Reference.of(sketch, [sketch.window(one) for one in rows]), None, []
    state = DriftState(version=1, next_cohort=0)
    for index in range(45):
        day = sketch.window(pa.table({"x": rng.normal(size=200) + news(index)}))
        state, verdict = judge(state, reference, day, index, monitor)
        found += [index] * bool(verdict.news)
    return found


def test_windows_that_overlap_do_not_confirm_each_other() -> None:
    def blip(index: int) -> float:
        """Shift of two days, which lie in six windows together, but in no two that share no day."""
        return 3.0 if index in (20, 21) else 0.0

    assert windows_until(DriftMonitor(k=3, n=4), blip) == []
    assert windows_until(DriftMonitor(), blip) == [21]
    # A lasting shift from day 20 on reaches the floor in the windows that end on 21, 28 and 35.
    assert windows_until(DriftMonitor(k=3, n=4), lambda index: 3.0 * (index >= 20)) == [35]


def test_what_people_call_false_is_counted_once_and_must_have_been_raised(served: ServedModel) -> None:
    with use_context(served.context()):
        for day in (12, 123):
            alarm = Alarm(
                key=f"late/drift/1/{day}", model=MODEL, monitor="drift", subject=f"wind {day}", version=1,
                raised_at=START, start=START - DAY, end=START, text="the wind drifts",
            )  # fmt: skip
            assert alarms(MODEL).report(alarm)
        for _ in range(2):
            assert call_false_alarm("late/drift/1/12").called_false == 1
        for unknown in ("late/drift/1/1", "late", "ate/drift/1/12", "", "/", "späte/drift/1/12"):
            with pytest.raises(NotFound, match="no alarm has the key"):
                call_false_alarm(unknown)
        assert false_alarm_budget().called_false == 1


def test_the_page_says_how_many_to_expect_of_the_last_thirty_days(served: ServedModel) -> None:
    fold = budget_journal(served.context())
    for day in range(60):
        spend(fold, "late/drift", "1/86400", day, {"wind": 1.0}, TODAY + timedelta(days=day))
    served.now = START + timedelta(days=59)
    with use_context(served.context()):
        found = false_alarm_budget()
    assert 0 < found.expected_a_month < found.spent < found.spent + found.left <= 0.025 + 1e-12
    assert found.tests == 60
