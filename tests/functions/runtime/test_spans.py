"""Runs are spans at the collector, below the request or run that started them, across processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.functions.runtime import span_functions
from tests.otlp_receiver import Receiver, receiving
from toque.clusters.telemetry.logs import current_work
from toque.clusters.telemetry.tracing import Keeper, Tracing, begin_request, use_tracing
from toque.functions import Context
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.telemetry import current_position

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def nothing_going_on() -> Iterator[None]:
    """Tests share one thread, and so the request that it works on."""
    yield
    current_work.set(None)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A collector that the processes of runs send to, and a request in this process that starts them."""
    with receiving() as receiver, use_tracing(Tracing(Keeper(0.0, 60.0))):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver


@pytest.mark.usefixtures("used")
def test_a_workflow_is_spans_below_its_request_with_its_steps_and_their_runs(collector: Receiver):
    request = begin_request({b"traceparent": f"00-{TRACE}-{CALLER}-00".encode()})
    assert span_functions.cook.submit("leek").result(timeout_s=60) == "chopped leek with salt"
    wanted = {"invoke cook", "step chop", "run chop", "sharpen", "step season", "run season"}
    spans = collector.wait_for(lambda found: wanted <= {each.name for each in found})
    by_name = {each.name: each for each in spans}
    assert {each.trace_id for each in spans} == {TRACE}
    parents = {name: by_name[name].parent_id for name in wanted}
    assert parents == {
        "invoke cook": request.span_id,
        "step chop": by_name["invoke cook"].span_id,
        "run chop": by_name["step chop"].span_id,
        "sharpen": by_name["run chop"].span_id,
        "step season": by_name["invoke cook"].span_id,
        "run season": by_name["step season"].span_id,
    }
    whole = by_name["invoke cook"]
    assert all(whole.start_ns <= each.start_ns <= each.end_ns <= whole.end_ns for each in spans)
    assert (whole.service, whole.attributes["toque.attempt"], whole.failed) == ("toque-function", 1, False)


def test_a_failed_attempt_is_a_failed_span_and_each_attempt_has_one(used: Context, collector: Receiver):
    begin_request({b"traceparent": f"00-{TRACE}-{CALLER}-00".encode()})
    invocation = span_functions.burn.submit()
    assert invocation.wait(60).status == "dead"
    ledger_of(used).redrive(invocation.id)
    assert invocation.wait(60).status == "dead"
    spans = collector.wait_for(lambda found: len(found) >= 2)
    assert [(each.name, each.failed, each.attributes["error.type"]) for each in spans] == [
        ("invoke burn", True, "ValueError")
    ] * 2


@pytest.mark.usefixtures("used")
def test_a_run_without_a_request_begins_a_trace(collector: Receiver):
    invocation = span_functions.cook.submit("leek")
    assert invocation.record().trace is None
    invocation.result(timeout_s=60)
    (whole,) = (each for each in collector.wait_for(lambda found: len(found) >= 6) if not each.parent_id)
    assert whole.name == "invoke cook"


@pytest.mark.usefixtures("used")
def test_without_tracing_runs_are_recorded_as_before():
    begin_request({b"traceparent": f"00-{TRACE}-{CALLER}-01".encode()})
    assert current_position() is None
    assert span_functions.chop.submit("leek").record().trace is None


def test_the_digest_of_a_function_does_not_depend_on_whether_its_process_is_traced():
    from toque.functions.training.loop.training_loop import train
    from toque.registry.code_digest import digest_of

    with use_tracing(None):
        without = digest_of(train)
    with use_tracing(Tracing(Keeper(0.0, 60.0))):
        assert digest_of(train) == without
