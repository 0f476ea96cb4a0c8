"""The loss of numbers before their labels are there: a cohort's squared error, learnt from the cohorts before it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from functions.monitoring import EstimateMonitor, estimate_performance, results_table, standing_alarms
from functions.runtime import use_context
from registry import Table, open_store

MODEL = "late"
MONITOR = EstimateMonitor(loss="squared_error", min_labels=600)
DAY = timedelta(days=1)


def said(diner: Any) -> list[dict[str, Any]]:
    rows = Table(diner.store, results_table(MODEL)).read().to_pylist()
    mine = [row for row in rows if row["monitor"] == "estimate"]
    return sorted(mine, key=lambda row: (row["start"], row["verdict"]))


def test_cohorts_are_estimated_once_there_are_labels_and_settled_when_theirs_come(diner: Any) -> None:
    diner.register()
    with use_context(diner.context()):
        diner.serve(3)
        assert "too few" in estimate_performance(MODEL, MONITOR).text
        diner.serve(9)
        estimate_performance(MODEL, MONITOR)
        assert estimate_performance(MODEL, MONITOR).text == "no cohort is due"
        rows = said(diner)
        assert {row["subject"] for row in rows} == {"squared_error"}
        assert {row["verdict"] for row in rows} == {"estimate", "agreed"}
        first = next(row for row in rows if row["verdict"] == "estimate")
        assert first["value"] is None
        assert "learnt from 600 labels" in first["text"]
        assert "not health" in first["text"]
        estimated = {row["start"] for row in rows}
        assert len(estimated) == 12 - 4  # the first four days are learnt from
        diner.bias = 2.5  # the relation of features and labels changes: the estimate cannot know
        diner.serve(3, requests=600)
        assert estimate_performance(MODEL, MONITOR).alarms == ()
        assert standing_alarms(MODEL) == []
        assert "contradicted" in {
            row["verdict"] for row in said(diner) if row["start"] >= diner.now - 3 * DAY
        }


def test_estimates_do_not_depend_on_how_often_the_monitor_runs(diner: Any, tmp_path: Path) -> None:
    other = type(diner)(open_store(f"file://{tmp_path}/other"), tmp_path)
    found = []
    for kitchen, days in ((diner, [1] * 8), (other, [8])):
        kitchen.register()
        with use_context(kitchen.context()):
            for count in days:
                kitchen.serve(count)
                estimate_performance(MODEL, MONITOR)
        found.append([(row["start"], row["verdict"], row["reference"]) for row in said(kitchen)])
    assert found[0] == found[1]
    assert found[0]
