"""Latency, errors, saturation and cost from the log."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pyarrow as pa
import pytest

from tests.functions.monitoring.conftest import MODEL, START, ServedModel
from toque.functions.monitoring import OperationsMonitor, results_table, standing_alarms, watch_operations
from toque.functions.monitoring.operations import Served, judge
from toque.functions.prediction_log import predictions_table
from toque.functions.prediction_log.records import PREDICTIONS
from toque.functions.runtime import use_context
from toque.functions.runtime.receipt import Prices
from toque.registry import Table

HOUR = timedelta(hours=1)
MONITOR = OperationsMonitor(p99_ms=100, capacity=2, max_busy=0.5, delay=timedelta(0))


def log(
    served: ServedModel,
    start: datetime,
    requests: int,
    *,
    ms: float = 10.0,
    slow: int = 0,
    failed: int = 0,
    rows: int = 1,
) -> None:
    """So many requests in the hour from `start`, of which some are slow and some have no answer."""
    served.now = start + HOUR
    at = [start + HOUR * i / requests for i in range(requests)]
    values = [
        {
            "prediction_id": f"{at[i]:%Y%j%H}-{i}" + (f":{row}" if rows > 1 else ""), "model": MODEL, "version": 1,
            "arm": "champion", "shadow": False, "predicted_at": at[i], "day": f"{at[i]:%Y-%m-%d}",
            "latency_ms": 500.0 if i < slow else ms, "outputs": None if i >= requests - failed else [0.5],
        }
        for i in range(requests)
        for row in range(rows)
    ]  # fmt: skip
    Table(served.store, predictions_table(MODEL)).append(
        pa.Table.from_pylist(values, schema=PREDICTIONS), partition_by=["day"]
    )


def found(served: ServedModel) -> dict[str, float]:
    """The figures of the last cohort that was judged."""
    rows = Table(served.store, results_table(MODEL)).read().to_pylist()
    last = max(row["start"] for row in rows)
    return {
        row["subject"]: row["value"]
        for row in rows
        if row["start"] == last and row["monitor"] == "operations"
    }


def test_figures_are_on_record_and_a_request_of_many_rows_counts_once(served: ServedModel) -> None:
    served.register()
    log(served, START, 200, ms=20, rows=5)
    priced = replace(served.context(), prices=Prices(currency="EUR", cpu_hour=0.9, gpu_hour=0))
    with use_context(priced):
        assert watch_operations(MODEL, MONITOR).alarms == ()
        assert watch_operations(MODEL, MONITOR).text.startswith("no cohort is due")
    figures = found(served)
    assert (figures["requests"], figures["p50_ms"], figures["errors"]) == (200.0, 20.0, 0.0)
    assert figures["busy"] == pytest.approx(200 * 0.02 / 3600)
    assert figures["cost"] == pytest.approx(200 * 0.02 / 3600 * 0.9)


def test_a_broken_limit_is_told_once_and_its_end_too(served: ServedModel) -> None:
    served.register()
    log(served, START, 1_000)
    with use_context(served.context()):
        assert watch_operations(MODEL, MONITOR).alarms == ()
        for hour in (1, 2):
            log(served, START + hour * HOUR, 1_000, slow=60, failed=40)
            told = {(one.subject, one.recovered) for one in watch_operations(MODEL, MONITOR).alarms}
            assert told == ({("latency", False), ("errors", False)} if hour == 1 else set())
        log(served, START + 3 * HOUR, 5)  # too few to say that it is over
        assert watch_operations(MODEL, MONITOR).alarms == ()
        assert {one.subject for one in standing_alarms(MODEL)} == {"latency", "errors"}
        log(served, START + 4 * HOUR, 1_000)
        assert {one.recovered for one in watch_operations(MODEL, MONITOR).alarms} == {True}
        assert standing_alarms(MODEL) == []


def test_what_chance_explains_breaks_no_limit() -> None:
    served = Served(0, requests=100, errors=2, slow=2, busy=0.5, percentiles=(1, 2, 3), cost=None)
    assert [one.broken for one in judge(served, MONITOR)] == [False, False, False]
    many = replace(served, requests=10_000, errors=200, slow=200)
    assert [one.broken for one in judge(many, MONITOR)] == [True, True, False]
    assert judge(replace(served, requests=19), MONITOR) == []
    strict = MONITOR.model_copy(update={"max_error_share": 0.0})
    assert judge(replace(served, errors=1), strict)[0].broken


def test_replicas_that_are_all_at_work_are_saturated() -> None:
    served = Served(0, requests=100, errors=0, slow=0, busy=1.2, percentiles=(1, 2, 3), cost=None)
    assert [(one.subject, one.broken) for one in judge(served, MONITOR)][-1] == ("saturation", True)


def test_an_empty_log_says_nothing(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        seen = watch_operations(MODEL, MONITOR)
    assert (seen.text, seen.alarms) == ("too few requests to judge", ())
