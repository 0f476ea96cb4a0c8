"""What goes wrong around a monitor: an answer, nothing lost, nothing done twice."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.functions.monitoring.conftest import DAY, MODEL, ServedModel
from toque.functions.monitoring import (
    PerformanceMonitor,
    alarms,
    results_table,
    standing_alarms,
    watch_drift,
    watch_performance,
    watch_quality,
)
from toque.functions.prediction_log import LABELS_TABLE, predictions_table
from toque.functions.prediction_log.records import LABELS, PREDICTIONS
from toque.functions.runtime import use_context
from toque.registry import NotFound, Table

WATCHES = (watch_quality, watch_performance, watch_drift)


def findings(served: ServedModel) -> list[tuple[Any, ...]]:
    rows = Table(served.store, results_table(MODEL)).read().to_pylist()
    return [(row["monitor"], row["subject"], row["start"]) for row in rows]


def test_two_tickers_at_once_say_and_record_everything_once(served: ServedModel) -> None:
    served.register()
    served.shift, served.bias = 1.5, 2.0
    served.serve(14, requests=80)

    def tick(_: int) -> None:
        with use_context(served.context()):
            for watch in WATCHES:
                watch(MODEL)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(tick, range(3)))
    with use_context(served.context()):
        told = [one.key for one in alarms(MODEL).all()]
    assert told
    assert len(told) == len(set(told))
    assert len(findings(served)) == len(set(findings(served)))


def test_a_training_set_that_was_deleted_is_remembered_by_its_sketch_or_missed_by_name(
    served: ServedModel,
) -> None:
    served.register()
    served.serve(3)
    with use_context(served.context()):
        watch_drift(MODEL)
        shutil.rmtree(Path(Table(served.store, "training/late").uri))
        served.serve(1)
        assert watch_drift(MODEL).cohorts == 1
        served.store.delete(f"monitoring/{MODEL}/reference/1.json")
        served.serve(1)
        with pytest.raises(NotFound, match="training/late"):
            watch_drift(MODEL)


def test_labels_that_come_twice_or_late_change_nothing_that_was_judged(served: ServedModel) -> None:
    served.register()
    served.serve(6)
    labels = Table(served.store, LABELS_TABLE)
    sent = labels.read().to_pylist()
    labels.append(pa.Table.from_pylist(sent, schema=LABELS))  # every one again
    with use_context(served.context()):
        watch_performance(MODEL)
        counted = Table(served.store, results_table(MODEL)).read().to_pylist()
        assert {row["rows"] for row in counted if row["subject"] == "loss"} == {150}
        late = [
            row | {"label": 1.0 - row["label"], "received_at": served.now, "day": f"{served.now:%Y-%m-%d}"}
            for row in sent
        ]
        labels.append(pa.Table.from_pylist(late, schema=LABELS))  # all of them wrong, as is said days after
        assert watch_performance(MODEL).text.startswith("no cohort is due")
        served.serve(1)
        assert watch_performance(MODEL).cohorts == 1
        losses = [row for row in findings(served) if row[1] == "loss"]
    assert len(losses) == len(set(losses)) == 6


def test_answers_of_a_clock_that_is_ahead_wait_for_their_cohort(served: ServedModel) -> None:
    served.register()
    served.serve(3)
    ahead = Table(served.store, predictions_table(MODEL)).read().to_pylist()[:40]
    for number, row in enumerate(ahead):
        at = served.now + timedelta(hours=20)
        row |= {"prediction_id": f"ahead-{number}", "predicted_at": at, "day": f"{at:%Y-%m-%d}"}
    Table(served.store, predictions_table(MODEL)).append(pa.Table.from_pylist(ahead, schema=PREDICTIONS))
    with use_context(served.context()):
        served.now += timedelta(hours=2)
        watch_quality(MODEL)
        rows = {
            row["start"]: row["rows"] for row in Table(served.store, results_table(MODEL)).read().to_pylist()
        }
        assert sorted(rows.values())[-3:] == [150, 150, 150]
        served.now += DAY
        watch_quality(MODEL)
        rows = {
            row["start"]: row["rows"] for row in Table(served.store, results_table(MODEL)).read().to_pylist()
        }
    assert rows[max(rows)] == 40  # once, on the day that they say


@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: row | {"numeric": [float("nan"), float("nan")], "categorical": [None]},
        lambda row: row | {"numeric": [float("inf"), 1e30], "categorical": ["AA"]},
        lambda row: row | {"numeric": [0.0, 0.0], "categorical": ["AA"]},
        lambda row: row | {"categorical": [row["prediction_id"]]},
        lambda row: row | {"numeric": [1.0]},
        lambda row: row | {"numeric": None, "categorical": None, "outputs": None},
    ],
    ids=["all null", "infinite", "constant", "category explosion", "a column vanished", "nothing logged"],
)
def test_a_day_of_broken_rows_is_an_answer_to_every_monitor(served: ServedModel, spoil: Any) -> None:
    served.register()
    served.serve(4, requests=60)
    table = Table(served.store, predictions_table(MODEL))
    rows = table.read().to_pylist()
    broken = [
        spoil(row | {"prediction_id": f"x{number}", "predicted_at": row["predicted_at"] + 4 * DAY})
        for number, row in enumerate(rows[:60])
    ]
    for row in broken:
        row["day"] = f"{row['predicted_at']:%Y-%m-%d}"
    table.append(pa.Table.from_pylist(broken, schema=PREDICTIONS))
    served.now += DAY + timedelta(hours=2)
    with use_context(served.context()):
        for watch in WATCHES:
            assert watch(MODEL).cohorts > 0
        watch_performance(MODEL, PerformanceMonitor(label_delay=timedelta(0)))
        standing = standing_alarms(MODEL)
    assert not any(one.monitor == "drift" and not one.explained_by for one in standing)
