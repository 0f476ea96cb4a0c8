"""What a run does for a language model is spans at the collector, named as OpenTelemetry's conventions want them."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from tests.otlp_receiver import Receiver, Span, receiving
from toque.clusters.telemetry.tracing import Keeper, Tracing, flush_spans, use_tracing
from toque.clusters.telemetry.tracing.active import provider_of
from toque.functions import Context
from toque.functions.generative import GenerativeError, call_tool
from toque.functions.retrieval import document_view
from toque.functions.retrieval.jobs import refresh_documents, retrieve
from toque.functions.runtime.telemetry import run_span
from toque.registry import Table

OPERATION = "gen_ai.operation.name"


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiving() as receiver:
        provider = provider_of("function", OTLPSpanExporter(endpoint=f"{receiver.url}/v1/traces"))
        with use_tracing(Tracing(Keeper(0.0, 60.0), provider=provider)):
            yield receiver
        provider.shutdown()


def called(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "call_7", "type": "function", "function": {"name": name, "arguments": arguments}}


def sent(collector: Receiver, run: str) -> list[Span]:
    """Spans of a run that has ended, its own last."""
    flush_spans()
    spans = collector.wait_for(lambda found: any(each.name == run for each in found))
    return sorted(spans, key=lambda each: each.end_ns)


def test_a_tool_that_looks_something_up_is_a_span_with_the_retrieval_and_the_embedding_below(
    context: Context, collector: Receiver
):
    context.features().apply([document_view("docs", length=64)])
    pages = pa.table({"document": ["ovens"], "text": ["An oven is heated to 200 degrees."]})
    refresh_documents("docs", Table(context.store, "pages").overwrite(pages))

    def look_up(question: str) -> Any:
        return retrieve("docs", question, k=2)

    with run_span("run answer", None):
        told = call_tool(called("look_up", '{"question": "How hot is it?"}'), {"look_up": look_up})
    assert (told["role"], told["tool_call_id"]) == ("tool", "call_7")
    assert '"document":"ovens"' in told["content"]
    embedding, retrieval, tool, run = sent(collector, "run answer")
    assert [each.name for each in (tool, retrieval, embedding)] == [
        "execute_tool look_up",
        "retrieval docs",
        "embeddings words",
    ]
    assert [tool.parent_id, retrieval.parent_id, embedding.parent_id] == [
        run.span_id,
        tool.span_id,
        retrieval.span_id,
    ]
    assert tool.attributes == {
        OPERATION: "execute_tool",
        "gen_ai.tool.name": "look_up",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "call_7",
    }
    assert retrieval.attributes == {
        OPERATION: "retrieval",
        "gen_ai.data_source.id": "docs",
        "gen_ai.request.top_k": 2,
    }
    assert embedding.attributes == {
        OPERATION: "embeddings",
        "gen_ai.request.model": "words",
        "gen_ai.embeddings.dimension.count": 64,
    }


def test_a_tool_that_fails_is_a_failed_span_and_its_error_is_the_caller_s(collector: Receiver):
    with run_span("run answer", None), pytest.raises(ZeroDivisionError):
        call_tool(called("share", '{"by": 0}'), {"share": lambda by: 1 / by})
    tool, _ = sent(collector, "run answer")
    assert (tool.name, tool.failed) == ("execute_tool share", True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (called("burn", "{}"), "'burn' is not one of share, tell"),
        (called("tell", "{"), "'tell' are not JSON"),
        (called("tell", "[1]"), r"expected an object, got \[1\]"),
    ],
)
def test_a_call_that_cannot_be_made_says_why(call: dict[str, Any], message: str):
    with pytest.raises(GenerativeError, match=message):
        call_tool(call, {"tell": str, "share": int})


def test_a_text_is_told_as_it_is():
    assert call_tool(called("tell", ""), {"tell": lambda: "warm"})["content"] == "warm"
