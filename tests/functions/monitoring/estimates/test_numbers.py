"""The loss of numbers before their labels are there: a cohort's squared error, learnt from the cohorts before it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.functions.monitoring.conftest import ServedModel
from toque.functions.monitoring import EstimateMonitor, estimate_performance, results_table, standing_alarms
from toque.functions.runtime import use_context
from toque.registry import Table, open_store

MODEL = "late"
MONITOR = EstimateMonitor(loss="squared_error", min_labels=600)
DAY = timedelta(days=1)


def said(served: ServedModel) -> list[dict[str, Any]]:
    rows = Table(served.store, results_table(MODEL)).read().to_pylist()
    mine = [row for row in rows if row["monitor"] == "estimate"]
    return sorted(mine, key=lambda row: (row["start"], row["verdict"]))


def test_cohorts_are_estimated_once_there_are_labels_and_settled_when_theirs_come(
    served: ServedModel,
) -> None:
    served.register()
    with use_context(served.context()):
        served.serve(3)
        assert "too few" in estimate_performance(MODEL, MONITOR).text
        served.serve(9)
        estimate_performance(MODEL, MONITOR)
        assert estimate_performance(MODEL, MONITOR).text.startswith("no cohort is due")
        rows = said(served)
        assert {row["subject"] for row in rows} == {"squared_error"}
        assert {row["verdict"] for row in rows} == {"estimate", "agreed"}
        first = next(row for row in rows if row["verdict"] == "estimate")
        assert first["value"] is None
        assert "learnt from 600 labels" in first["text"]
        assert "not health" in first["text"]
        estimated = {row["start"] for row in rows}
        assert len(estimated) == 12 - 4  # the first four days are learnt from
        served.bias = 2.5  # the relation of features and labels changes: the estimate cannot know
        served.serve(3, requests=600)
        assert estimate_performance(MODEL, MONITOR).alarms == ()
        assert standing_alarms(MODEL) == []
        assert "contradicted" in {
            row["verdict"] for row in said(served) if row["start"] >= served.now - 3 * DAY
        }


def test_estimates_do_not_depend_on_how_often_the_monitor_runs(served: ServedModel, tmp_path: Path) -> None:
    other = type(served)(open_store(f"file://{tmp_path}/other"), tmp_path)
    found = []
    for model, days in ((served, [1] * 8), (other, [8])):
        model.register()
        with use_context(model.context()):
            for count in days:
                model.serve(count)
                estimate_performance(MODEL, MONITOR)
        found.append([(row["start"], row["verdict"], row["reference"]) for row in said(model)])
    assert found[0] == found[1]
    assert found[0]
