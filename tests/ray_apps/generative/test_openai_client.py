"""The unmodified `openai` client against a real engine: what it can ask, and what it is told when it may not."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from tests import waiting
from tests.ray_apps.generative.conftest import MODEL, SLOTS, TOOLED, VLLM, ServedDoor
from toque.functions.generative import EngineSettings, register_generative
from toque.functions.generative.engines import EngineProcess, EngineSpec
from toque.functions.generative.engines.programs import Vllm
from toque.ray_apps.generative.answering.engine_request import check_context
from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.ray_apps.generative.openai.requests import EMBEDDING, parse_request

EMBEDDER = "embedder"
ASKED = [{"role": "user", "content": "What is 2+2?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 16}


def test_chat(client: openai.OpenAI, served: ServedDoor):
    answer = client.chat.completions.create(
        model=MODEL, messages=ASKED, prompt_cache_key="conversation-7", **GREEDY
    )
    assert "4" in (answer.choices[0].message.content or "")
    assert answer.model == f"{MODEL}@1"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_a_stream_says_the_same_in_pieces_under_the_id_of_the_prediction(
    client: openai.OpenAI, served: ServedDoor
):
    whole = client.chat.completions.create(model=MODEL, messages=ASKED, **GREEDY)
    before = len(served.log.payloads)
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=ASKED, stream=True, stream_options={"include_usage": True}, **GREEDY
    ) as response:
        prediction = response.headers["x-toque-prediction-id"]
        pieces = list(response.parse())
    text = "".join(each.choices[0].delta.content or "" for each in pieces if each.choices)
    assert text == whole.choices[0].message.content
    assert {each.id for each in pieces} == {prediction}
    assert {each.model for each in pieces} == {f"{MODEL}@1"}
    assert pieces[-1].usage == whole.usage or pieces[-1].usage is not None
    assert len(pieces) > 4
    (row,) = served.log.rows()[before:]
    assert row[0] == prediction


def test_without_the_option_no_piece_tells_the_usage(client: openai.OpenAI):
    pieces = list(client.chat.completions.create(model=MODEL, messages=ASKED, stream=True, **GREEDY))
    assert all(each.choices for each in pieces)
    assert pieces[-1].choices[0].finish_reason in {"stop", "length"}


def test_json_schema(client: openai.OpenAI):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "large": {"type": "boolean"}},
        "required": ["city", "large"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Name a city in Italy."}],
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
        temperature=0,
        max_tokens=60,
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert set(found) == {"city", "large"}
    assert isinstance(found["large"], bool)


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
}


def called(city: str) -> list[Any]:
    """Turns in which the tool was called; so small a model does as it has seen it done."""
    call = {"name": "weather", "arguments": json.dumps({"city": city})}
    return [
        {"role": "user", "content": f"How is the weather in {city}?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": city, "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": city, "content": "sunny"},
        {"role": "assistant", "content": f"It is sunny in {city}."},
    ]


@pytest.mark.parametrize("choice", ["auto", {"type": "function", "function": {"name": "weather"}}])
def test_tools(client: openai.OpenAI, served: ServedDoor, choice: Any):
    turns = [turn for city in ("Paris", "Berlin", "Madrid") for turn in called(city)]
    pieces = list(
        client.chat.completions.create(
            model=TOOLED,
            messages=[*turns, {"role": "user", "content": "How is the weather in Rome?"}],
            tools=[TOOL],
            tool_choice=choice,
            temperature=0,
            stream=True,
        )
    )
    calls = [call for each in pieces for call in each.choices[0].delta.tool_calls or ()]
    assert calls[0].function is not None
    assert calls[0].function.name == "weather"
    arguments = "".join(call.function.arguments or "" for call in calls if call.function)
    assert json.loads(arguments) == {"city": "Rome"}
    assert pieces[-1].choices[0].finish_reason == "tool_calls"
    message = json.loads(served.log.outputs(served.log.rows()[-1])["message"])
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": arguments}


def test_tools_that_the_model_would_not_see_are_refused(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="no place for them") as refusal:
        client.chat.completions.create(model=MODEL, messages=ASKED, tools=[TOOL])
    assert refusal.value.param == "tools"


def test_completions_and_logprobs(client: openai.OpenAI):
    answer = client.completions.create(
        model=MODEL, prompt="The capital of Italy is", temperature=0, max_tokens=4
    )
    assert "Rome" in answer.choices[0].text
    chat = client.chat.completions.create(
        model=MODEL, messages=ASKED, logprobs=True, top_logprobs=2, temperature=0, max_tokens=3
    )
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content[0].top_logprobs) == 2


@pytest.mark.skipif(VLLM is not None, reason="vLLM embeds in an engine that does nothing else")
def test_embeddings(client: openai.OpenAI):
    found = client.embeddings.create(model=MODEL, input=["a cat sat", "a dog sat", "stock exchange"])
    vectors = [each.embedding for each in found.data]
    assert [len(each) for each in vectors] == [576] * 3
    assert abs(sum(value * value for value in vectors[0]) - 1) < 1e-3


async def test_an_engine_that_makes_no_embeddings_is_not_asked_for_them(tmp_path: Path):
    process = EngineProcess(Vllm("never-started"), EngineSpec(tmp_path), tmp_path / "log")
    ask = parse_request(EMBEDDING, b'{"model": "m", "input": "a"}')
    with pytest.raises(ApiRefusal, match=r"this one's is 'generate'; register one with .*task='embed'"):
        await check_context(process, process.spec.settings, ask, {})
    await process.close()


@pytest.mark.skipif(VLLM is None, reason="vLLM needs a card; llama.cpp embeds beside its answers")
def test_embeddings_of_a_version_that_answers_are_refused_with_the_setting_that_it_takes(
    client: openai.OpenAI,
):
    with pytest.raises(
        openai.BadRequestError, match=r"register one with EngineSettings\(task='embed'\)"
    ) as refusal:
        client.embeddings.create(model=MODEL, input="a cat sat")
    assert (refusal.value.param, refusal.value.code) == ("model", "unsupported_parameter")


def test_a_version_that_embeds_alone_makes_the_vectors_of_texts_and_says_what_it_does_not(
    client: openai.OpenAI, served: ServedDoor, served_weights: Path
):
    settings = EngineSettings(context_length=128, slots=2, task="embed")
    version = register_generative(
        served.registry, EMBEDDER, weights=served_weights, settings=settings
    ).version
    served.registry.promote(EMBEDDER, version)
    texts = ["a cat sat", "stock exchange", "a cat sat"]
    for encoding in (
        {"encoding_format": "float"},
        {},
    ):  # the client's own default is base64, which it decodes
        found = client.embeddings.create(model=EMBEDDER, input=texts, **encoding)  # type: ignore[arg-type]
        vectors = np.array([each.embedding for each in found.data])
        assert vectors.shape == (3, 576)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)
        np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-3)
        assert vectors[0] @ vectors[1] < 0.999
    assert found.model == f"{EMBEDDER}@{version}"
    assert found.usage.prompt_tokens >= 3
    logged = served.log.outputs(served.log.rows()[-1])
    assert np.reshape(logged["embedding"], (3, 576)) == pytest.approx(vectors, abs=1e-6)
    with pytest.raises(openai.BadRequestError, match="makes embeddings alone; ask /v1/embeddings"):
        client.chat.completions.create(model=EMBEDDER, messages=ASKED)  # type: ignore[call-overload]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 128 tokens"):
        client.embeddings.create(model=EMBEDDER, input="word " * 200)


@pytest.mark.skipif(VLLM is not None, reason="vLLM embeds in an engine that does nothing else")
def test_a_text_has_the_same_vector_whatever_is_embedded_beside_it(client: openai.OpenAI, served: ServedDoor):
    texts = ["a cat sat", "stock exchange of London and others", "a cat sat", "rain " * 40]

    def vector(text: str) -> np.ndarray:
        return np.array(client.embeddings.create(model=MODEL, input=text).data[0].embedding)

    alone = [vector(each) for each in texts]
    together = client.embeddings.create(model=MODEL, input=texts)
    assert [each.index for each in together.data] == [0, 1, 2, 3]
    assert together.usage.prompt_tokens > 48
    np.testing.assert_allclose([each.embedding for each in together.data], alone, atol=1e-3)
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_allclose(list(pool.map(vector, texts)), alone, atol=1e-3)


def test_models(client: openai.OpenAI):
    listed = [each.id for each in client.models.list()]
    assert listed == sorted(listed)
    assert {MODEL, TOOLED} <= {*listed}  # among those that other tests have registered
    assert client.models.retrieve(MODEL).owned_by == "default"
    for known in (f"{MODEL}@1", f"{MODEL}@champion"):
        assert client.models.retrieve(known).id == known
    for unknown in ("other", "other@1", f"{MODEL}@77", f"{MODEL}@none", f"{MODEL}@"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(unknown)


def test_a_version_by_number(client: openai.OpenAI):
    assert client.chat.completions.create(model=f"{MODEL}@1", messages=ASKED, **GREEDY).model == f"{MODEL}@1"
    for unknown in (f"{MODEL}@77", f"{MODEL}@staging"):
        with pytest.raises(openai.NotFoundError) as refusal:
            client.chat.completions.create(model=unknown, messages=ASKED)
        assert refusal.value.code == "model_not_found"


def test_errors_are_those_that_the_client_tells_apart(client: openai.OpenAI, served: ServedDoor):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="none", messages=ASKED)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError) as denied:
        served.client("no-token").chat.completions.create(model=MODEL, messages=ASKED)
    assert denied.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError):
        served.client(served.viewer).chat.completions.create(model=MODEL, messages=ASKED)
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model=MODEL, messages=ASKED, extra_body={"id_slot": 1})
    assert (unknown.value.param, unknown.value.code) == ("id_slot", "unknown_parameter")
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=0)


@pytest.mark.parametrize("messages", [[], [{"role": "system", "content": "Be brief."}]])
def test_a_chat_that_asks_nothing_is_refused(client: openai.OpenAI, messages: Any):
    with pytest.raises(openai.BadRequestError, match="messages: nothing is asked"):
        client.chat.completions.create(model=MODEL, messages=messages)


def test_a_context_that_is_too_long_is_refused_before_it_costs(client: openai.OpenAI, served: ServedDoor):
    before = len(served.log.payloads)
    long = [{"role": "user", "content": "word " * 600}]
    for asked in ({"messages": long}, {"messages": ASKED, "max_tokens": 500}):
        with pytest.raises(openai.BadRequestError, match="maximum context length is 512 tokens") as refusal:
            client.chat.completions.create(model=MODEL, **asked)  # type: ignore[call-overload]
        assert refusal.value.code == "context_length_exceeded"
    with pytest.raises(
        openai.BadRequestError, match="maximum context length is 512 tokens" if VLLM is None else "'embed'"
    ):
        client.embeddings.create(model=MODEL, input="word " * 600)
    client.chat.completions.create(model=MODEL, messages=ASKED, **GREEDY)

    def logged() -> list[Any]:
        return served.log.rows()[before:]

    waiting.until(logged)
    assert (
        len(logged()) == 1
    )  # of the refused ones nothing was computed, and a row without outputs counts against the version


def test_a_text_that_fits_though_its_bytes_do_not_is_answered(client: openai.OpenAI):
    text = "international " * 200  # 2800 bytes, some 205 tokens
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=2
    )
    assert answer.usage is not None
    assert 150 < answer.usage.prompt_tokens < 400


def test_tokens_beyond_a_budget_are_refused_with_the_time_when_they_may_come(served: ServedDoor):
    frugal = served.client(served.bounded["frugal"])
    frugal.chat.completions.create(model=MODEL, messages=ASKED, **GREEDY)
    with pytest.raises(openai.RateLimitError, match="of its 300 tokens a minute left") as refusal:
        frugal.chat.completions.create(model=MODEL, messages=ASKED, temperature=0, max_tokens=300)
    assert refusal.value.code == "rate_limit_exceeded"
    assert 1 <= int(refusal.value.response.headers["retry-after"]) <= 60


async def _running(process: EngineProcess) -> int:
    """Count the requests that an engine is computing, by its own account."""
    if VLLM is None:
        async with process.client.get(f"{process.base}/slots") as answer:
            return sum(bool(slot["is_processing"]) for slot in await answer.json())
    async with process.client.get(f"{process.base}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(int(float(each.split()[-1])) for each in lines if each.startswith("vllm:num_requests_running"))


def test_hanging_up_frees_the_slot_at_once_and_costs_what_was_made(served: ServedDoor):
    client = served.client(served.bounded["hasty"])

    def busy() -> int:
        process = next(each for each in served.engines.processes if each.spec.settings.slots == SLOTS)
        return int(served.run(_running(process)))

    asked = [{"role": "user", "content": "Write a long story about the sea."}]
    stream = client.chat.completions.create(
        model=MODEL,
        messages=asked,
        stream=True,
        max_tokens=440,
        extra_body={"min_p": 0.2},
        logit_bias={"2": -100},
    )
    next(iter(stream))
    assert busy() == 1
    stream.close()
    waiting.until(lambda: not busy(), within_s=20)
    waiting.until(lambda: not served.door.in_flight, within_s=20)
    left = served.budgets._buckets["token hasty"].left
    assert 100_000 - 440 < left < 100_000
