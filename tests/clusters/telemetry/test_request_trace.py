"""A request's stamps become spans at a collector, or a part of the prediction's row, if the request is kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from prometheus_client import REGISTRY

from tests.otlp_receiver import Receiver, receiving
from tests.ports import free_port
from toque.clusters.telemetry.logs import AccessLog
from toque.clusters.telemetry.tracing import Keeper, Tracing, begin_request, current_request, use_tracing
from toque.clusters.telemetry.tracing.active import provider_of

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = {b"traceparent": f"00-{TRACE}-{PARENT}-00".encode(), b"x-request-id": b"order-7"}


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def tracing_to(receiver: Receiver, **chosen: float) -> Tracing:
    settings = {"share": 0.0, "slow_s": 60.0} | chosen
    exporter = OTLPSpanExporter(endpoint=f"{receiver.url}/v1/traces")
    return Tracing(Keeper(**settings), provider=provider_of("predictor/late", exporter))


def test_a_failed_request_is_spans_at_the_collector_below_the_callers(collector: Receiver) -> None:
    with use_tracing(tracing := tracing_to(collector)):
        request = begin_request(SENT)
        request.mark("token")
        request.mark("model")
        request.answered_by("p-1", "late", 3, "canary", id_made_here=False)
        request.finish("POST", "/infer", 500, route="/v2/models/late/infer")
    assert tracing.provider is not None
    tracing.provider.force_flush()
    door, token, model = sorted(collector.spans, key=lambda span: span.name)
    assert [door.name, token.name, model.name] == ["POST /v2/models/late/infer", "model", "token"]
    assert {each.trace_id for each in collector.spans} == {TRACE}
    assert (door.parent_id, door.kind, door.failed, door.service) == (PARENT, 2, True, "toque-predictor")
    assert token.parent_id == model.parent_id == door.span_id
    first, second = model, token
    assert door.start_ns == first.start_ns <= first.end_ns == second.start_ns <= second.end_ns <= door.end_ns
    assert door.attributes["toque.kept"] == "failed"
    assert door.attributes["toque.prediction.id"] == "p-1"
    assert door.attributes["toque.model.version"] == 3
    assert door.attributes["error.type"] == "500"
    tracing.provider.shutdown()


def test_a_request_that_is_not_kept_leaves_nothing(collector: Receiver) -> None:
    with use_tracing(tracing := tracing_to(collector)):
        request = begin_request({})
        request.finish("POST", "/infer", 200)
        assert request.row() is None
        refused = begin_request({})
        refused.finish("POST", "/infer", 401)
    assert tracing.provider is not None
    tracing.provider.shutdown()
    assert collector.spans == []


def test_a_trace_that_begins_here_has_the_predictions_id(collector: Receiver) -> None:
    prediction = "5b" * 16
    with use_tracing(tracing := tracing_to(collector, slow_s=0.0)):
        request = begin_request({})
        request.answered_by(prediction, "late", 3, "champion", id_made_here=True)
        position = request.context()
        request.finish("POST", "/infer", 200)
    assert tracing.provider is not None
    tracing.provider.shutdown()
    (door,) = collector.spans
    assert (door.trace_id, door.parent_id) == (prediction, "")
    assert (position.trace_id, position.span_id) == (prediction, door.span_id)
    assert door.attributes["toque.kept"] == "slow"


def test_the_row_of_a_kept_request_has_its_stages() -> None:
    with use_tracing(Tracing(Keeper(0.0, 0.0))):
        request = begin_request(SENT)
        request.mark("token")
        request.mark("model")
        trace_id, text = request.row() or ("", None)
    assert trace_id == TRACE
    found = json.loads(text or "")
    assert (found["kept"], found["parent"], found["span"]) == ("slow", PARENT, request.span_id)
    assert [name for name, _ in found["stages_us"]] == ["token", "model"]


def test_the_row_of_a_traced_request_that_is_not_kept_has_the_trace_id_alone() -> None:
    with use_tracing(Tracing(Keeper(0.0, 60.0))):
        assert begin_request(SENT).row() == (TRACE, None)
    assert begin_request(SENT).row() is None  # without tracing a row is as it always was


def test_a_request_that_a_run_begins_with_is_kept() -> None:
    with use_tracing(Tracing(Keeper(0.0, 60.0))):
        request = begin_request({})
        position = request.keep_for_run()
        assert position is not None
        assert position.sampled
        assert request.kept == "sampled"
    with use_tracing(None):
        assert begin_request({}).keep_for_run() is None


def test_the_access_log_names_the_request_its_trace_and_its_model(caplog: pytest.LogCaptureFixture) -> None:
    with use_tracing(Tracing(None, access=AccessLog(1.0))), caplog.at_level(logging.INFO, "toque.access"):
        request = begin_request(SENT)
        request.answered_by("p-1", "late", 3, "champion", id_made_here=False)
        request.finish("POST", "/v2/models/late/infer", 200, caller="ada")
        assert current_request() is request
        assert request.row() is None
    fields = caplog.records[-1].fields  # type: ignore[attr-defined]
    assert fields["trace_id"] == TRACE
    assert (fields["request_id"], fields["model"], fields["version"]) == ("order-7", "late", 3)
    assert (fields["caller"], fields["status"], fields["prediction_id"]) == ("ada", 200, "p-1")


def test_spans_are_counted_by_whether_the_collector_took_them(collector: Receiver) -> None:
    before = {outcome: _spans(outcome) for outcome in ("sent", "lost")}
    one_that_is_gone = Receiver(f"http://127.0.0.1:{free_port()}")
    for receiver in (collector, one_that_is_gone):
        with use_tracing(tracing := tracing_to(receiver)):
            begin_request({}).finish("POST", "/infer", 500)
        assert tracing.provider is not None
        tracing.provider.shutdown()
    assert {outcome: _spans(outcome) - before[outcome] for outcome in before} == {"sent": 1, "lost": 1}


def _spans(outcome: str) -> float:
    return REGISTRY.get_sample_value("toque_spans_total", {"outcome": outcome}) or 0.0
