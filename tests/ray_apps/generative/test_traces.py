"""Requests for language models in traces: each is answered though it is kept, and a collector gets what it was about."""

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from tests.otlp_receiver import Receiver, receiving
from tests.ray_apps.generative.conftest import MODEL
from toque.clusters.telemetry.tracing import Keeper, Tracing, use_tracing
from toque.clusters.telemetry.tracing.active import provider_of

ASKED: Any = [{"role": "user", "content": "What is 2+2?"}]
SHORT: dict[str, Any] = {"model": MODEL, "max_tokens": 2}


@pytest.fixture
def collector() -> Iterator[Receiver]:
    """A collector that gets the spans of every request of this process."""
    with receiving() as receiver:
        exporter = OTLPSpanExporter(endpoint=f"{receiver.url}/v1/traces")
        provider = provider_of("generative", exporter)
        with use_tracing(Tracing(Keeper(1.0, 60.0), provider=provider)):
            yield receiver
        provider.shutdown()


def whole(client: openai.OpenAI) -> Any:
    return client.chat.completions.with_raw_response.create(messages=ASKED, **SHORT)


def stream(client: openai.OpenAI) -> Any:
    return client.chat.completions.with_raw_response.create(messages=ASKED, stream=True, **SHORT)


def completion(client: openai.OpenAI) -> Any:
    return client.completions.with_raw_response.create(prompt="One, two,", **SHORT)


def response(client: openai.OpenAI) -> Any:
    return client.responses.with_raw_response.create(model=MODEL, input="What is 2+2?", max_output_tokens=2)


def embedding(client: openai.OpenAI) -> Any:
    return client.embeddings.with_raw_response.create(model=MODEL, input="a cat sat")


@pytest.mark.parametrize(
    ("ask", "operation", "stages"),
    [
        (whole, "chat", ["token", "read", "prompt", "queue", "engine", "log"]),
        (stream, "chat", ["token", "read", "prompt", "queue", "first token", "engine", "log"]),
        (completion, "text_completion", ["token", "read", "prompt", "queue", "engine", "log"]),
        (response, "chat", ["token", "read", "prompt", "queue", "engine", "log"]),
        (embedding, "embeddings", ["token", "read", "prompt", "engine", "log"]),
    ],
)
def test_an_answer_that_is_kept_is_a_trace_with_the_digits_of_its_id(
    client: openai.OpenAI,
    collector: Receiver,
    ask: Callable[[openai.OpenAI], Any],
    operation: str,
    stages: list[str],
):
    answer = ask(client)
    assert answer.status_code == 200
    answer_id = answer.headers["x-toque-prediction-id"]
    if ask is stream:
        assert list(answer.parse())[-1].choices[0].finish_reason == "length"
    trace_id = answer_id[-32:]

    def door(spans: list[Any]) -> list[Any]:
        return [each for each in spans if each.trace_id == trace_id and not each.parent_id]

    collector.wait_for(lambda spans: bool(door(spans)))
    (found,) = door(collector.spans)
    told = found.attributes
    assert told["toque.prediction.id"] == told["gen_ai.response.id"] == answer_id
    assert (told["gen_ai.operation.name"], told["gen_ai.provider.name"]) == (operation, "llama.cpp")
    assert (told["gen_ai.request.model"], told["gen_ai.response.model"]) == (MODEL, f"{MODEL}@1")
    assert told["gen_ai.usage.input_tokens"] > 0
    assert 0 <= told["gen_ai.usage.cache_read.input_tokens"] <= told["gen_ai.usage.input_tokens"]
    below = [each for each in collector.of_trace(trace_id) if each.parent_id == found.span_id]
    assert [each.name for each in sorted(below, key=lambda each: each.end_ns)] == stages


def test_a_refused_request_is_traced_and_names_its_trace(client: openai.OpenAI, collector: Receiver):
    with pytest.raises(openai.BadRequestError, match="not a field") as refusal:
        client.chat.completions.create(messages=ASKED, extra_body={"temprature": 1}, **SHORT)
    trace_id = refusal.value.response.headers["x-request-id"]
    collector.wait_for(lambda spans: any(each.trace_id == trace_id for each in spans))
    (found,) = (each for each in collector.of_trace(trace_id) if not each.parent_id)
    assert found.attributes["http.response.status_code"] == 400
