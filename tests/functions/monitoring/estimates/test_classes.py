from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.functions.monitoring.conftest import ServedModel
from toque.functions.monitoring import (
    Alarm,
    EstimateMonitor,
    estimate_performance,
    results_table,
    standing_alarms,
    watch_performance,
)
from toque.functions.retraining.policy import RetrainingPolicy
from toque.functions.runtime import use_context
from toque.registry import Table, open_store

MODEL = "late"
MONITOR = EstimateMonitor(min_labels=300)
DAY = timedelta(days=1)


def said(served: ServedModel, subject: str = "log_loss") -> list[dict[str, Any]]:
    rows = Table(served.store, results_table(MODEL)).read().to_pylist()
    mine = [row for row in rows if row["monitor"] == "estimate" and row["subject"] == subject]
    return sorted(mine, key=lambda row: (row["start"], row["verdict"]))


def test_a_cohort_is_estimated_before_its_labels_and_settled_after(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        served.serve(1)
        watched = estimate_performance(MODEL, MONITOR)
        (estimate,) = said(served)
        assert (estimate["verdict"], estimate["value"]) == ("estimate", None)
        assert "not health" in estimate["text"]
        assert "uncalibrated" in estimate["text"]
        assert "estimate" in watched.text
        served.serve(6)
        estimate_performance(MODEL, MONITOR)
        assert estimate_performance(MODEL, MONITOR).text.startswith("no cohort is due")
    rows = said(served)
    assert [row["verdict"] for row in rows].count("estimate") == 7
    compared_with_labels = [row for row in rows if row["value"] is not None]
    assert {row["verdict"] for row in compared_with_labels} == {"agreed"}
    assert len(compared_with_labels) == 6  # the last cohort's labels are due a day after its end
    assert any("calibrated on" in row["text"] and "uncalibrated" not in row["text"] for row in rows)
    assert {row["verdict"] for row in said(served, "auc")} == {"estimate"}


def test_concept_drift_leaves_the_estimate_calm_and_is_found_out_when_labels_land(
    served: ServedModel,
) -> None:
    served.register()
    with use_context(served.context()):
        served.serve(8)
        estimate_performance(MODEL, MONITOR)
        served.bias = 2.5
        served.serve(6)
        watched = estimate_performance(MODEL, MONITOR)
        assert watched.alarms == ()
        assert standing_alarms(MODEL) == []
        rows = said(served)
        late = [row for row in rows if row["start"] >= served.now - 6 * DAY]
        calm = [row["reference"] for row in rows if row["start"] < served.now - 6 * DAY]
        first = next(row for row in late if row["verdict"] == "estimate")
        assert min(calm) < first["reference"] < max(calm) + 0.05
        assert "contradicted" in {row["verdict"] for row in late}
        assert not {"ok", "well", "stable"} & {row["verdict"] for row in rows}
        # the truth is the other monitor's to tell
        assert {alarm.monitor for alarm in watch_performance(MODEL).alarms} == {"performance"}


def test_estimates_do_not_depend_on_how_often_the_monitor_runs(served: ServedModel, tmp_path: Path) -> None:
    other = type(served)(open_store(f"file://{tmp_path}/other"), tmp_path)
    found = []
    for model, days in ((served, [1] * 6), (other, [6])):
        model.register()
        with use_context(model.context()):
            for some in days:
                model.serve(some, requests=60)
                estimate_performance(MODEL, EstimateMonitor(lookback=6 * DAY, min_labels=100))
        found.append([(row["start"], row["verdict"], row["reference"], row["value"]) for row in said(model)])
    assert found[0] == found[1]
    assert len(found[0]) == 11


def test_few_answers_are_not_estimated_and_another_champion_starts_afresh(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        served.serve(1, requests=10)
        assert estimate_performance(MODEL, MONITOR).text == "too few answers to estimate"
        served.register()
        served.serve(1)
        assert "uncalibrated" in estimate_performance(MODEL, MONITOR).text
    assert {row["version"] for row in said(served)} == {2}


def test_an_estimate_can_neither_be_an_alarm_nor_a_trigger() -> None:
    at = "2013-05-01T00:00:00Z"
    fields = {"key": "k", "model": MODEL, "subject": "s", "version": 1, "text": "t"}
    with pytest.raises(ValidationError, match="monitor"):
        Alarm.model_validate(fields | {"monitor": "estimate", "raised_at": at, "start": at, "end": at})
    with pytest.raises(ValidationError):
        RetrainingPolicy(triggers=("estimate",))  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=r"cohort\n.*greater than 0"):
        EstimateMonitor(cohort=timedelta(0))
