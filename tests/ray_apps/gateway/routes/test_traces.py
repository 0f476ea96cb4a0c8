"""What the gateway tells of a request by the id of its prediction or trace, and how it traces its own."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from tests.ray_apps.gateway.conftest import NOW, Gateway
from toque.clusters.telemetry.logs import AccessLog
from toque.clusters.telemetry.tracing import Keeper, Tracing, use_tracing
from toque.functions.monitoring.results import RESULTS, results_table
from toque.functions.prediction_log import LABELS_TABLE, predictions_table
from toque.functions.prediction_log.records import LABELS, PREDICTIONS, TRACED_PREDICTIONS
from toque.functions.runtime.durable.invocation import ledger_of
from toque.registry import Journal, Registry, Table

TRACE = "0af7651916cd43dd8448eb211c80319c"
STAGES = {
    "span": "b7ad6b7169203331",
    "kept": "slow",
    "began_us": 0,
    "stages_us": [["token", 12], ["model", 612]],
}
ASKED_AT = NOW - timedelta(hours=30)


def row(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "prediction_id": name, "model": "late", "version": 3, "arm": "champion", "shadow": False, "unit": "ada",
        "predicted_at": ASKED_AT, "latency_ms": 0.75, "numeric": [1.0], "categorical": None, "outputs": [0.25],
        "missing": None, "entities": '{"who": "ada"}', "day": f"{ASKED_AT:%Y-%m-%d}",
    } | changes  # fmt: skip


@pytest.fixture
def logged(gateway: Gateway) -> Gateway:
    store = gateway.context.store
    registry = Registry(store, actor="tests", clock=gateway.context.clock)
    for model in ("late", "other"):
        registry.create_model(model)
    late = Table(store, predictions_table("late"))
    late.append(pa.Table.from_pylist([row("untraced")], schema=PREDICTIONS), partition_by=["day"])
    traced = [
        row("p1", trace_id=TRACE, stages=json.dumps(STAGES)),
        row("p1", trace_id=TRACE, version=4, arm="shadow", shadow=True),
        row("many:0"), row("many:1"),
        row("old", predicted_at=NOW - timedelta(days=20), day=f"{NOW - timedelta(days=20):%Y-%m-%d}"),
    ]  # fmt: skip
    late.append(pa.Table.from_pylist(traced, schema=TRACED_PREDICTIONS), merge_schema=True)
    label = {"label": 1.0, "observed_at": NOW, "received_at": NOW, "day": f"{NOW:%Y-%m-%d}"}
    labels = [{"prediction_id": name} | label for name in ("p1", "another")]
    Table(store, LABELS_TABLE).append(pa.Table.from_pylist(labels, schema=LABELS), partition_by=["day"])
    return gateway


async def asked(gateway: Gateway, wanted: str, status: int = 200, **params: Any) -> Any:
    answer = await gateway.client.get(f"/traces/{wanted}", params=params, headers=gateway.headers("viewer"))
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_a_prediction_is_told_with_its_stages_and_label_and_without_its_inputs(logged: Gateway):
    answered, shadow = (await asked(logged, "p1"))["predictions"]
    assert (answered["version"], answered["kept"], answered["trace_id"]) == (3, "slow", TRACE)
    assert (answered["label"], answered["outputs"]) == (1.0, [0.25])
    assert answered["stages"] == [
        {"name": "token", "begin_ms": 0.0, "duration_ms": 0.012},
        {"name": "model", "begin_ms": 0.012, "duration_ms": 0.6},
    ]
    assert (shadow["shadow"], shadow["version"], shadow["stages"]) == (True, 4, [])
    assert not {"numeric", "unit", "entities"} & set(answered)


async def test_a_trace_id_leads_to_its_predictions_and_a_request_to_all_its_rows(logged: Gateway):
    by_trace = await asked(logged, TRACE)
    assert [each["prediction_id"] for each in by_trace["predictions"]] == ["p1", "p1"]
    rows = (await asked(logged, "many"))["predictions"]
    assert [each["prediction_id"] for each in rows] == ["many:0", "many:1"]
    (before,) = (await asked(logged, "untraced", model="late"))["predictions"]
    assert (before["trace_id"], before["stages"]) == (None, [])


async def test_only_the_days_that_are_asked_for_are_read(logged: Gateway):
    refused = await asked(logged, "old", status=404)
    assert "look back further" in refused["detail"]
    assert len((await asked(logged, "old", days=30))["predictions"]) == 1
    await asked(logged, "p1", status=404, model="other")


async def test_verdicts_that_used_a_prediction_are_told(logged: Gateway):
    store = logged.context.store
    finding = {
        "monitor": "performance", "subject": "surprise", "version": 3, "start": ASKED_AT - timedelta(hours=1),
        "end": ASKED_AT + timedelta(hours=1), "rows": 9, "verdict": "alarm", "text": "losses are too high",
        "judged_at": NOW,
    }  # fmt: skip
    beside = [finding | {"version": 4}, finding | {"start": ASKED_AT + timedelta(minutes=1)}]
    Table(store, results_table("late")).append(pa.Table.from_pylist([finding, *beside], schema=RESULTS))
    journal = Journal(store, "rollouts/late", actor="tests", clock=logged.context.clock)
    begun = ASKED_AT - timedelta(hours=2)
    journal.append({"event": "started", "at": begun.isoformat(), "champion": 3, "challenger": 4}, at=0)
    found = [{"rule": "errors", "text": "too many errors"}, {"rule": "loss", "text": "as good"}]
    for number, at in enumerate((ASKED_AT - timedelta(hours=1), NOW), start=1):
        decision = {"action": "roll_back", "rule": "errors", "findings": found}
        journal.append(
            {"event": "decided", "at": at.isoformat(), "stage": "rolled_back", "decision": decision},
            at=number,
        )
    answered, shadow = (await asked(logged, "p1"))["predictions"]
    monitor, rollout = answered["verdicts"]
    assert (monitor["by"], monitor["name"], monitor["subject"], monitor["verdict"]) == (
        "monitor", "performance", "surprise", "alarm",
    )  # fmt: skip
    assert (rollout["by"], rollout["subject"], rollout["text"]) == ("rollout", "errors", "too many errors")
    assert [each["by"] for each in shadow["verdicts"]] == ["rollout"]


async def test_another_workspaces_predictions_are_not_told(logged: Gateway):
    response = await logged.client.get(
        "/traces/p1", headers=logged.headers("viewer") | {"X-Toque-Workspace": "payments"}
    )
    assert response.status_code in {403, 404}
    assert "0.25" not in response.text


async def test_a_durable_call_carries_the_callers_trace(gateway: Gateway, sample_functions: None):
    sent = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-00", "Prefer": "respond-async"}
    with use_tracing(Tracing(Keeper(0.0, 60.0))):
        answer = await gateway.client.post(
            "/functions/gateway_add",
            params={"wait": "0"},
            json={"a": 1},
            headers=gateway.headers("operator") | sent,
        )
    assert answer.status_code in {200, 202}, answer.text
    (record,) = ledger_of(gateway.context).invocations()
    assert record.trace is not None
    version, trace_id, span_id, flags = record.trace.split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "01")
    assert span_id != "b7ad6b7169203331"


async def test_refusals_say_the_request_that_was_sent_or_one_that_is_made(gateway: Gateway):
    named = await gateway.client.get("/models", headers={"X-Request-Id": "order-7"})
    assert (named.status_code, named.headers["x-request-id"]) == (401, "order-7")
    unnamed = await gateway.client.get("/models")
    assert len(unnamed.headers["x-request-id"]) == 32
    answered = await gateway.client.get("/healthz")
    assert "x-request-id" not in answered.headers


async def test_the_access_log_names_the_caller_and_never_the_token(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
):
    with use_tracing(Tracing(None, access=AccessLog(1.0))), caplog.at_level(logging.INFO, "toque.access"):
        await gateway.client.get(
            "/models", params={"password": "pa55-word"}, headers=gateway.headers("viewer")
        )
    fields = caplog.records[-1].fields  # type: ignore[attr-defined]
    assert (fields["path"], fields["status"], fields["caller"]) == ("/models", 200, "a-viewer")
    assert gateway.tokens["viewer"] not in caplog.text
    assert "pa55-word" not in caplog.text
