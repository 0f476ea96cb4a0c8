"""The monitors against the real log, registry and tables in a folder."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.functions.monitoring.conftest import START, ServedModel
from toque.functions.monitoring import (
    Alarm,
    DriftMonitor,
    OperationsMonitor,
    QualityMonitor,
    SkewMonitor,
    monitor_status,
    results_table,
    running_figures,
    standing_alarms,
    unknown_labels,
    watch_drift,
    watch_operations,
    watch_performance,
    watch_quality,
    watch_skew,
)
from toque.functions.monitoring import alarms as alarms_of
from toque.functions.monitoring.drift import watch as drift_watch
from toque.functions.monitoring.performance import PerformanceMonitor
from toque.functions.prediction_log import LABELS_TABLE
from toque.functions.prediction_log.records import LABELS
from toque.functions.runtime import use_context
from toque.registry import Table

MODEL = "late"
build_reference = drift_watch._build


def inspect(served: ServedModel, days: int) -> list[Alarm]:
    """Serve, and watch every other day; the alarms that were raised."""
    raised: list[Alarm] = []
    for left in reversed(range(days)):
        served.serve()
        if left % 2:
            continue
        raised += watch_performance(MODEL).alarms
        raised += watch_drift(MODEL).alarms
    return raised


def test_a_healthy_month_is_quiet_and_on_record(served: ServedModel) -> None:
    served.register(metrics={"log_loss": 0.6})
    with use_context(served.context()):
        assert inspect(served, 25) == []
        assert standing_alarms(MODEL) == []
    found = Table(served.store, results_table(MODEL)).read().to_pylist()
    losses = [row for row in found if row["subject"] == "loss"]
    assert len({row["start"] for row in losses}) == len(losses)  # each cohort once
    assert len(losses) == 24  # the last day still waits for labels
    aucs = [row["value"] for row in found if row["subject"] == "auc"]
    assert len(aucs) == 24
    # The truth follows its probability, 1 / (1 + exp(-x)) of a normal x: its AUC is .74 (numerically), a day's error .04.
    assert np.mean(aucs) == pytest.approx(0.74, abs=4 * 0.04 / np.sqrt(24))
    gaps = [row["value"] / row["statistic"] for row in found if row["subject"] == "calibration"]
    assert sum(abs(gap) > 1.96 for gap in gaps) <= 24 * 0.05 + 4 * np.sqrt(24 * 0.05 * 0.95)
    assert {row["subject"] for row in found if row["monitor"] == "drift"} == {"wind", "hour", "carrier"}


def test_a_model_that_no_longer_fits_is_told_by_its_surprise(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        assert inspect(served, 10) == []
        served.bias = 1.5
        raised = inspect(served, 10)
        assert {(alarm.monitor, alarm.subject) for alarm in raised} >= {("performance", "surprise")}
        assert {alarm.version for alarm in standing_alarms(MODEL)} == {1}


def test_a_shifted_feature_is_named_once_and_recovers(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        served.shift = 1.0
        raised = [alarm for alarm in inspect(served, 14) if alarm.monitor == "drift"]
        assert len(raised) == 1
        assert raised[0].text.startswith("wind: effect")
        served.shift = 0.0
        raised = [alarm for alarm in inspect(served, 14) if alarm.monitor == "drift"]
        assert [alarm.recovered for alarm in raised] == [True]
        assert [alarm for alarm in standing_alarms(MODEL) if alarm.monitor == "drift"] == []


def test_a_new_champion_that_learnt_from_the_shift_is_well(served: ServedModel) -> None:
    served.register()
    served.shift = 1.0
    with use_context(served.context()):
        assert [alarm.version for alarm in inspect(served, 14) if alarm.monitor == "drift"] == [1]
        served.register(shift=1.0)
        assert [alarm for alarm in inspect(served, 14) if alarm.monitor == "drift"] == []


def test_watching_twice_finds_nothing_new(served: ServedModel) -> None:
    served.register()
    served.serve(5)
    with use_context(served.context()):
        assert watch_performance(MODEL).cohorts > 0
        assert watch_performance(MODEL).text.startswith("no cohort is due")
        assert watch_drift(MODEL).cohorts > 0
        assert watch_drift(MODEL).text.startswith("no cohort is due")


@pytest.mark.parametrize("monitor", ["performance", "drift"])
def test_a_run_killed_before_it_remembered_is_repeated_to_the_same_effect(
    served: ServedModel, monitor: str
) -> None:
    served.register()
    served.bias = 2.0 if monitor == "performance" else 0.0
    served.shift = 1.5 if monitor == "drift" else 0.0
    watch = {"performance": watch_performance, "drift": watch_drift}[monitor]
    with use_context(served.context()):
        served.serve(20)
        first = watch(MODEL)
        assert first.alarms
        rows = Table(served.store, results_table(MODEL)).read().num_rows
        served.store.delete(f"monitoring/{MODEL}/state/{monitor}.json")
        again = watch(MODEL)
        assert again.alarms == ()
        assert Table(served.store, results_table(MODEL)).read().num_rows == rows
        assert len(alarms_of(MODEL).all()) == len(first.alarms)


def test_a_lost_reference_is_built_again(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        inspect(served, 8)
        served.store.delete(f"monitoring/{MODEL}/reference/1.json")
        assert inspect(served, 2) == []
    assert served.store.find(f"monitoring/{MODEL}/reference/1.json") is not None


SETTINGS = [{"reference_rows": 500}, {"bins": 5}, {"cohort": timedelta(hours=12)}, {"season": "week"}, {"columns": ("wind",)}]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: next(iter(one)))
def test_a_training_set_is_sketched_once_for_each_monitor_and_again_when_a_setting_changes(
    served: ServedModel, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    served.register()
    served.shift = 4.0  # the skew does not end, so that its monitor looks at each run
    sketched: list[DriftMonitor] = []

    def build(*given: Any) -> Any:
        sketched.append(given[-1])
        return build_reference(*given)

    monkeypatch.setattr(drift_watch, "_build", build)
    changed, skew = DriftMonitor(**settings), SkewMonitor(hours=24, delay=timedelta(0), sample=0)
    with use_context(served.context()):
        served.serve(2)
        watch_drift(MODEL)
        for _ in range(3):
            served.serve()
            watch_drift(MODEL, changed)
            watch_skew(MODEL, skew)
    assert len(sketched) == 3
    assert sketched[:2] == [DriftMonitor(), changed]


@pytest.mark.parametrize("days", [3, 12])
@pytest.mark.parametrize(
    "settings", [{"reference_rows": 500}, {"bins": 5}, {"columns": ("wind",)}, {"bins": 5, "window": 3}]
)
def test_windows_go_on_without_a_gap_when_a_setting_changes_their_bins(
    served: ServedModel, settings: dict[str, Any], days: int
) -> None:
    served.register()
    monitor = DriftMonitor(lookback=timedelta(days=2), delay=timedelta(0), window=6)
    changed = DriftMonitor(**{**monitor.model_dump(), **settings})
    with use_context(served.context()):
        for day in range(days + 8):
            served.serve()
            watched = watch_drift(MODEL, monitor if day < days else changed)
            if day > 8 or (day > 5 and days > 8):
                assert watched.text.startswith(f"{150 * changed.window if day >= days else 900} rows")
    found = [
        row
        for row in Table(served.store, results_table(MODEL)).read().to_pylist()
        if row["monitor"] == "drift"
    ]
    judged = [(row["subject"], row["end"]) for row in found]
    assert len(set(judged)) == len(judged)


def test_a_reference_that_does_not_say_of_how_many_rows_it_is_stays_under_the_default(
    served: ServedModel,
) -> None:
    served.register()
    key = f"monitoring/{MODEL}/reference/1.json"
    with use_context(served.context()):
        served.serve(2)
        watch_drift(MODEL)
        of_old = json.loads(served.store.get(key))
        del of_old["reference_rows"]
        served.store.put(key, json.dumps(of_old).encode())
        served.serve()
        watch_drift(MODEL)
        assert json.loads(served.store.get(key)) == of_old
        served.serve()
        watch_drift(MODEL, DriftMonitor(reference_rows=500))
        assert json.loads(served.store.get(key))["reference_rows"] == 500


def test_a_season_is_declared_or_looked_for_in_the_training_set(served: ServedModel) -> None:
    served.register()
    key = f"monitoring/{MODEL}/reference/1.json"
    with use_context(served.context()):
        served.serve(12)
        for season, period in (("week", 7), ("auto", None)):
            watched = watch_drift(MODEL, DriftMonitor(season=season))
            assert watched.alarms == ()
            assert json.loads(served.store.get(key))["period"] == period
            served.serve(1)
    assert watched.cohorts == 1


def test_labels_that_stopped_are_said_and_raise_no_false_alarm(served: ServedModel) -> None:
    served.register()
    served.labelled = 0.1
    with use_context(served.context()):
        served.serve(6)
        watched = watch_performance(MODEL)
    assert watched.alarms == ()
    assert "are needed" in watched.text


def test_no_champion_and_no_traffic_are_answers(served: ServedModel) -> None:
    with use_context(served.context()):
        assert watch_performance(MODEL).text == "no champion serves this model"
        assert watch_drift(MODEL).text == "no champion serves this model"
        served.register()
        assert watch_performance(MODEL).alarms == ()
        assert watch_drift(MODEL).text == "0 rows; drifted in k of n windows: nothing"


def test_the_validated_loss_is_the_baseline(served: ServedModel) -> None:
    served.register(metrics={"log_loss": 0.2})
    monitor = PerformanceMonitor(label_delay=PerformanceMonitor().label_delay)
    with use_context(served.context()):
        served.serve(12)
        watched = watch_performance(MODEL, monitor)
    assert {alarm.subject for alarm in watched.alarms} == {"loss"}


def test_only_answers_of_the_arms_that_count_are_judged(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.register()
    row = served._row

    def one_in_three(*args: Any) -> dict[str, Any]:
        made = row(*args)
        return made | {"arm": "holdout" if args[1] % 3 == 0 else "champion"}

    monkeypatch.setattr(served, "_row", one_in_three)
    with use_context(served.context()):
        served.serve(4)
        watch_performance(MODEL, PerformanceMonitor(arms=("holdout",)))
    found = Table(served.store, results_table(MODEL)).read().to_pylist()
    assert {row["rows"] for row in found if row["subject"] == "loss"} == {50}


@pytest.mark.parametrize("length", [timedelta(hours=1), timedelta(days=7)])
def test_a_monitor_with_other_cohorts_goes_on_where_it_was(served: ServedModel, length: timedelta) -> None:
    served.register()
    with use_context(served.context()):
        served.shift = 1.0
        assert any(alarm.monitor == "drift" for alarm in inspect(served, 14))
        served.serve(8)
        looked = [
            watch_performance(MODEL, PerformanceMonitor(cohort=length)),
            watch_drift(MODEL, DriftMonitor(cohort=length, window=2), QualityMonitor(cohort=length)),
            watch_quality(MODEL, QualityMonitor(cohort=length)),
            watch_operations(MODEL, OperationsMonitor(cohort=length)),
        ]
        assert all(result.cohorts <= timedelta(days=40) / length for result in looked), looked
        assert looked[0].cohorts >= timedelta(days=7) / length - 1  # what was not judged yet is
        starts = [row["start"] for row in Table(served.store, results_table(MODEL)).read().to_pylist()]
        assert min(starts) > START - timedelta(days=40)
        assert [alarm.subject for alarm in standing_alarms(MODEL) if alarm.monitor == "drift"] == ["features"]
        assert watch_performance(MODEL).cohorts <= 40  # and back again


def test_a_state_of_the_last_release_is_taken_up_and_one_of_another_grid_is_not(served: ServedModel) -> None:
    served.register()
    key = f"monitoring/{MODEL}/state/performance.json"
    with use_context(served.context()):
        inspect(served, 5)
        saved = json.loads(served.store.get(key))
        assert saved.pop("cohort_s") == 86_400
        served.store.put(key, json.dumps(saved).encode())
        assert watch_performance(MODEL).cohorts == 0
        served.store.put(key, json.dumps(saved).encode())
        assert watch_performance(MODEL, PerformanceMonitor(cohort=timedelta(hours=1))).cohorts <= 28 * 24


def test_a_run_before_the_first_cohort_is_due_says_when_that_is(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        inspect(served, 2)
        served.now += timedelta(hours=5)
        watch_drift(MODEL)
        waiting = {status.monitor: status.next_end for status in monitor_status(MODEL)}
        assert waiting == {"drift": START + timedelta(days=3), "performance": START + timedelta(days=2)}
        assert running_figures(MODEL).answers == 0
        served.now = START + timedelta(days=2)
        served.serve(requests=20)
        served.now -= timedelta(hours=6)
        today = running_figures(MODEL)
        assert (today.answers, today.unanswered) == (15, 0)
        assert today.labels >= 1
        assert today.logged_until == START + timedelta(days=2, hours=17, minutes=24)
        served.now = START + timedelta(days=2, hours=5)
        assert "is judged from 2013-05-04 01:00 UTC on" in watch_drift(MODEL).text
        assert (
            "from 2013-05-02 00:00 to 2013-05-03 00:00 is judged from 2013-05-04 00:00 UTC"
            in watch_performance(MODEL).text
        )


def test_labels_of_no_prediction_are_counted_with_an_example(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        assert unknown_labels().labels == 0
        served.serve(requests=20)
        before = unknown_labels()
        assert (before.labels, before.unknown) == (20, 0)
        row = {
            "prediction_id": "fligth-7",
            "label": 1.0,
            "observed_at": served.now,
            "received_at": served.now,
        }
        labels = pa.Table.from_pylist([row | {"day": f"{served.now:%Y-%m-%d}"}], schema=LABELS)
        Table(served.store, LABELS_TABLE).append(labels, partition_by=["day"])
        after = unknown_labels()
        assert (after.labels, after.unknown, after.examples) == (21, 1, ("fligth-7",))
