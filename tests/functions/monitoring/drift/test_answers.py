"""Drift of answers of every outcome: quiet while they are as in a version's first days, and named by column when they change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest

from toque.functions.evaluation.meanings import Outcome
from toque.functions.evaluation.outcome_kinds import GROUP_TAG, kind_for
from toque.functions.monitoring import AnswerMonitor, MonitorResult, standing_alarms
from toque.functions.monitoring.drift.answers import answer_table, watch_version
from toque.functions.monitoring.watch import MonitorRun, alarms
from toque.functions.runtime.context import Context, use_context
from toque.registry import Lineage, ModelVersion, ObjectStore, open_store
from toque.registry.models import Signature, TensorSpec

START, DAY, ROWS = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=1), 200
NAMES = ("fog", "rain", "sun")
MONITOR = AnswerMonitor(delay=timedelta(0), lookback=40 * DAY)
DRIFTED: dict[Outcome, set[str]] = {
    "binary": {"probability"},
    "multiclass": {"class"},
    "multilabel": {"label fog", "label rain", "label sun", "labels"},
    "number": {"value"},
    "count": {"rate"},
    "ranking": {"item_score"},
    "vector": {"embedding mean"},
    "text": {"length"},
}


def answers(outcome: Outcome, rng: np.random.Generator, shift: float) -> Any:
    """Answers of a day (rows, values) as the log holds them; a shift of 1 is a standard deviation."""
    x = rng.normal(size=ROWS) + shift
    if outcome == "multiclass":
        logits = x[:, None] * np.array([-1.0, 0.0, 1.0]) + rng.normal(size=(ROWS, 3))
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if outcome == "multilabel":
        return 1 / (1 + np.exp(-x[:, None] - rng.normal(size=(ROWS, 3))))
    if outcome == "vector":
        return rng.normal(size=(ROWS, 5)) + shift
    if outcome == "text":
        return rng.poisson(30 + 10 * shift, size=(ROWS, 1))
    return {"binary": 1 / (1 + np.exp(-x)), "count": np.exp(x)}.get(outcome, x)[:, None]


def logged(outcome: Outcome, day: int, shift: float, version: int = 1) -> pa.Table:
    values = answers(outcome, np.random.default_rng(day), shift)
    at = [START + day * DAY + DAY * row / ROWS for row in range(ROWS)]
    return pa.table(
        {
            "prediction_id": [f"{day}-{row}" for row in range(ROWS)],
            "version": [version] * ROWS,
            "shadow": [False] * ROWS,
            "predicted_at": pa.array(at, pa.timestamp("us", "UTC")),
            "latency_ms": pa.array([1.0] * ROWS, pa.float32()),
            "outputs": pa.array(values.tolist(), pa.list_(pa.float32())),
        }
    )


def served(outcome: Outcome, number: int = 1) -> ModelVersion:
    kind = kind_for(outcome, NAMES, "request", 5)
    given = TensorSpec(name="numeric", datatype="FP32", shape=[-1, 1], columns=["a"])
    tags = {GROUP_TAG: "request"} if outcome == "ranking" else {}
    signature = Signature(inputs=[given], outputs=[kind.answer_spec])
    return ModelVersion.model_construct(
        model="m", version=number, signature=signature, tags=tags, lineage=Lineage()
    )


def watched(
    store: ObjectStore, version: ModelVersion, days: list[pa.Table], monitor: AnswerMonitor = MONITOR
) -> list[MonitorResult]:
    """Run the monitor after each day of a log."""

    def read(start: datetime, end: datetime) -> pa.Table:
        first, last = ((moment - START) // DAY for moment in (start, end))
        rows = pa.concat_tables(days[max(first, 0) : last] or [days[0].slice(0, 0)])
        return answer_table(rows, version)

    return [
        watch_version(
            MonitorRun(model="m", store=store, alarms=alarms("m"), now=START + (day + 1) * DAY),
            version,
            monitor,
            read,
        )
        for day in range(len(days))
    ]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def test_every_outcome_is_watched() -> None:
    assert set(DRIFTED) == set(get_args(Outcome))


@pytest.mark.parametrize("outcome", DRIFTED)
def test_answers_that_change_raise_one_alarm_and_recover(store: ObjectStore, outcome: Outcome) -> None:
    days = [logged(outcome, day, 1.0 if 16 <= day < 26 else 0.0) for day in range(36)]
    with use_context(Context(store, store.url, actor="tests")):
        found = watched(store, served(outcome), days)
        assert "6 of the 7 first cohorts" in found[5].text
        raised = [(day, one) for day, each in enumerate(found) for one in each.alarms]
        (first, alarm), *others = raised
        assert 16 <= first <= 18  # within a window of three days
        assert (alarm.monitor, alarm.subject, alarm.recovered) == ("answers", "answers", False)
        assert set(alarm.columns) & DRIFTED[outcome], alarm.columns
        assert others[-1][1].recovered
        assert standing_alarms("m") == []


# 8 outcomes, 30 quiet windows each: no alarm, whose chance a window is far below alpha by the floor and the k of n
@pytest.mark.parametrize("outcome", DRIFTED)
def test_answers_as_at_first_raise_no_alarm(store: ObjectStore, outcome: Outcome) -> None:
    with use_context(Context(store, store.url, actor="tests")):
        found = watched(store, served(outcome), [logged(outcome, day, 0.0) for day in range(40)])
    assert [one for each in found for one in each.alarms] == []
    assert found[-1].text == "600 answers; drifted in k of n windows: nothing"


def test_a_new_version_has_a_reference_of_its_own(store: ObjectStore) -> None:
    with use_context(Context(store, store.url, actor="tests")):
        old = [logged("number", day, 0.0) for day in range(12)]
        watched(store, served("number"), old)
        both = old + [logged("number", day, 3.0, version=2) for day in range(12, 30)]
        later = watched(store, served("number", 2), both)
    assert [one for each in later for one in each.alarms] == []
    assert later[-1].text == "600 answers; drifted in k of n windows: nothing"


@pytest.mark.parametrize("settings", [{"bins": 5}, {"reference_cohorts": 5}, {"bins": 5, "window": 2}])
def test_settings_that_change_the_bins_begin_the_windows_anew(
    store: ObjectStore, settings: dict[str, int]
) -> None:
    days = [logged("number", day, 0.0) for day in range(30)]
    changed = AnswerMonitor(**{**MONITOR.model_dump(), **settings})
    with use_context(Context(store, store.url, actor="tests")):
        watched(store, served("number"), days[:15])
        later = watched(store, served("number"), days, changed)
    assert later[-1].text == f"{ROWS * changed.window} answers; drifted in k of n windows: nothing"


def test_shadows_and_missing_answers_are_left_out() -> None:
    day = logged("number", 0, 0.0)
    shadows = day.set_column(2, "shadow", pa.array([True] * ROWS))
    failed = day.set_column(5, "outputs", pa.nulls(ROWS, pa.list_(pa.float32())))
    found = answer_table(pa.concat_tables([day, shadows, failed]), served("number"))
    assert (found.num_rows, found.column_names) == (ROWS, ["predicted_at", "value"])
