"""Calls of tools that must come: what an engine is asked for by the tools' schemas, and what becomes of what it writes."""

from typing import Any

import openai
import orjson
import pytest
from jsonschema import Draft202012Validator

from tests.ray_apps.generative.conftest import MODEL, TOOLED
from tests.ray_apps.generative.test_openai_client import TOOL
from toque.ray_apps.generative.openai.answers import EventStream, with_completion_logprobs
from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.ray_apps.generative.openai.tools import calls_by_schema, check_tools, with_call

NAMED = {"type": "function", "function": {"name": "weather"}}
TREE = {
    "type": "function",
    "function": {
        "name": "plant",
        "parameters": {
            "type": "object",
            "properties": {"root": {"$ref": "#/$defs/Node"}},
            "required": ["root"],
            "$defs": {
                "Node": {
                    "type": "object",
                    "properties": {
                        "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                        "whole": {"$ref": "#"},
                    },
                    "additionalProperties": False,
                }
            },
        },
    },
}
BARE = {"type": "function", "function": {"name": "stop"}}


def asked(*tools: dict[str, Any], choice: Any = "required") -> dict[str, Any]:
    body = {"tools": [*tools], "tool_choice": choice, "messages": []}
    check_tools(body, None)
    assert calls_by_schema(body)
    return body


@pytest.mark.parametrize(
    ("tools", "call", "fits"),
    [
        ([TOOL], {"name": "weather", "arguments": {"city": "Rome"}}, True),
        ([TOOL], {"name": "weather", "arguments": {}}, False),
        ([TOOL], {"name": "stop", "arguments": {}}, False),
        ([TOOL, BARE], {"name": "stop", "arguments": {"any": 1}}, True),
        ([TOOL, BARE], {"name": "stop", "arguments": "text"}, False),
        ([TOOL, TREE], {"name": "plant", "arguments": {"root": {"next": {"next": None}}}}, True),
        ([TOOL, TREE], {"name": "plant", "arguments": {"root": {"whole": {"root": {}}}}}, True),
        ([TOOL, TREE], {"name": "plant", "arguments": {"root": {"other": 1}}}, False),
        ([TOOL, TREE], {"name": "plant", "arguments": {"city": "Rome"}}, False),
    ],
)
def test_a_required_call_is_of_one_of_the_tools_by_its_own_schema(tools: list[Any], call: Any, *, fits: bool):
    body = asked(*tools)
    schema = body["response_format"]["json_schema"]["schema"]
    Draft202012Validator.check_schema(schema)
    assert Draft202012Validator(schema).is_valid(call) is fits
    assert body["tools"] == tools
    assert body["tool_choice"] == "auto"


def test_a_named_tool_is_the_only_one_to_be_called():
    schema = asked(TOOL, BARE, choice=NAMED)["response_format"]["json_schema"]["schema"]
    assert [call["properties"]["name"]["const"] for call in schema["anyOf"]] == ["weather"]


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_a_call_that_need_not_come_is_left_to_the_model(choice: str | None):
    body = {"tools": [TOOL], **({"tool_choice": choice} if choice else {})}
    check_tools(body, None)
    assert not calls_by_schema(body)
    assert "response_format" not in body


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required"},
        {"tool_choice": NAMED},
        {"tools": [TOOL], "tool_choice": "sometimes"},
        {"tools": [TOOL], "tool_choice": 7},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": "weather"}},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "stop"}}},
        {"tools": ["weather"]},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "function", "function": {"name": 7}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": "any"}}]},
    ],
)
def test_tools_that_cannot_be_called_are_refused(fields: dict[str, Any]):
    with pytest.raises(ApiRefusal) as refusal:
        check_tools({**fields}, None)
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ('{"name": "weather", "arguments": {"city": "Rome"}}', {"name": "weather", "arguments": '{"city":"Rome"}'}),
        (' {\n "name":"a\\"b",\n "arguments": {}\n}', {"name": 'a"b', "arguments": "{}"}),
        ('{"name": "weather", "arguments": {"city": "Ro', {"name": "weather", "arguments": '{"city": "Ro'}),
    ],
)  # fmt: skip
def test_a_call_that_is_json_becomes_one(text: str, function: dict[str, str]):
    message = with_call({"role": "assistant", "content": text})
    assert message["content"] is None
    (call,) = message["tool_calls"]
    assert (call["type"], call["function"]) == ("function", function)
    assert call["id"] != with_call({"role": "assistant", "content": text})["tool_calls"][0]["id"]


@pytest.mark.parametrize("text", [None, "", '{"na'])
def test_what_is_cut_before_a_name_stays(text: str | None):
    assert with_call({"role": "assistant", "content": text}) == {"role": "assistant", "content": text}


PROBABLE = [
    {"token": " Ro", "logprob": -0.5, "top_logprobs": [{"token": " Ro", "logprob": -0.5}, {"token": " Mi", "logprob": -1.0}]},
    {"token": "me", "logprob": -0.25, "top_logprobs": []},
]  # fmt: skip
OF_COMPLETIONS = {
    "tokens": [" Ro", "me"],
    "token_logprobs": [-0.5, -0.25],
    "top_logprobs": [{" Ro": -0.5, " Mi": -1.0}, {}],
    "text_offset": [0, 3],
}


def test_probabilities_of_a_completion_have_the_shape_of_completions():
    choice = {"index": 0, "text": " Rome", "logprobs": {"content": PROBABLE}}
    assert with_completion_logprobs(choice) == {**choice, "logprobs": OF_COMPLETIONS}
    for other in (None, OF_COMPLETIONS):
        assert with_completion_logprobs({**choice, "logprobs": other})["logprobs"] == other


def test_probabilities_of_a_stream_go_on_where_they_were():
    stream = EventStream("cmpl-1", "m@1", wants_usage=False, begin_s=0.0)
    sent = b""
    for token in PROBABLE:
        choice = {"index": 0, "text": token["token"], "logprobs": {"content": [token]}}
        event = {"id": "engine's", "model": "engine's", "choices": [choice]}
        sent += stream.feed(b"data: " + orjson.dumps(event) + b"\n\n", 1.0)
    events = [orjson.loads(event.removeprefix(b"data: ")) for event in sent.strip().split(b"\n\n")]
    assert {(event["id"], event["model"]) for event in events} == {("cmpl-1", "m@1")}
    shown = [event["choices"][0]["logprobs"] for event in events]
    for name, values in OF_COMPLETIONS.items():
        assert [value for logprobs in shown for value in logprobs[name]] == values


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_comes_where_the_model_would_say_something(
    client: openai.OpenAI, choice: Any, *, stream: bool
):
    sent: Any = {
        "model": TOOLED, "messages": [{"role": "user", "content": "Say hello."}], "tools": [TOOL], "tool_choice": choice,
        "temperature": 0, "max_tokens": 60, "stream": stream,
    }  # fmt: skip
    found: Any = client.chat.completions.create(**sent)
    if stream:
        pieces = list(found)
        calls = [call for piece in pieces for call in piece.choices[0].delta.tool_calls or ()]
        reason = pieces[-1].choices[0].finish_reason
    else:
        calls, reason = found.choices[0].message.tool_calls, found.choices[0].finish_reason
    assert [call.function.name for call in calls] == ["weather"]
    assert reason in {"tool_calls", "length"}
    tools: Any = [{"type": "function", **TOOL["function"]}]
    by_name: Any = choice if choice == "required" else {"type": "function", "name": "weather"}
    response = client.responses.create(
        model=TOOLED,
        input="Say hello.",
        tools=tools,
        tool_choice=by_name,
        temperature=0,
        max_output_tokens=60,
    )
    assert [(item.type, getattr(item, "name", None)) for item in response.output] == [
        ("function_call", "weather")
    ]


def test_the_client_reads_probabilities_and_vectors(client: openai.OpenAI):
    sent: Any = {
        "model": MODEL,
        "prompt": "The capital of Italy is",
        "max_tokens": 3,
        "logprobs": 2,
        "temperature": 0,
    }
    logprobs = client.completions.create(**sent).choices[0].logprobs
    assert logprobs is not None
    assert [len(getattr(logprobs, name)) for name in OF_COMPLETIONS] == [3, 3, 3, 3]
    vectors = [
        item.embedding for item in client.embeddings.create(model=MODEL, input=[[1, 2, 3], [4, 5]]).data
    ]
    alone = [
        client.embeddings.create(model=MODEL, input=ids).data[0].embedding for ids in ([1, 2, 3], [4, 5])
    ]
    assert len(vectors) == 2
    for vector, single in zip(vectors, alone, strict=True):
        assert vector == pytest.approx(single, abs=1e-4)
    with pytest.raises(openai.BadRequestError, match="tokens"):
        client.embeddings.create(model=MODEL, input=[[1] * 1_500])
