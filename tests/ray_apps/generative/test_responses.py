"""OpenAI's Responses API: requests as chats, answers as items and events, and the unmodified client against a real engine."""

from typing import Any

import openai
import orjson
import pytest

from tests.ray_apps.generative.conftest import MODEL, TOOLED, ServedDoor
from tests.ray_apps.generative.test_openai_client import TOOL
from toque.ray_apps.generative.openai.answers import ResponseStream
from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.ray_apps.generative.openai.requests import CHAT, RESPONSE, parse_request

FUNCTION = {"type": "function", **TOOL["function"]}


def chat(**fields: Any) -> dict[str, Any]:
    asked = parse_request(RESPONSE, orjson.dumps({"model": "m", **fields}))
    assert (asked.kind, asked.as_response) == (CHAT, True)
    return asked.body


def test_items_become_messages():
    found = chat(
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "You sell tea."},
            {"role": "user", "content": [{"type": "input_text", "text": "Is it "}, {"type": "input_text", "text": "sunny?"}]},
            {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "b", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "sunny"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]},
        ],
        max_output_tokens=5,
        tools=[FUNCTION],
        tool_choice={"type": "function", "name": "weather"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    )  # fmt: skip
    assert [(each["role"], each.get("content")) for each in found["messages"]] == [
        ("system", "Be brief."),
        ("system", "You sell tea."),
        ("user", "Is it sunny?"),
        ("assistant", None),
        ("tool", "sunny"),
        ("assistant", "Yes."),
    ]
    assert [each["id"] for each in found["messages"][3]["tool_calls"]] == ["a", "b"]
    assert found["max_completion_tokens"] == 5
    assert found["tools"] == [TOOL]
    assert found["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert found["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}},
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "Hi", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "Hi", "background": True}, "background"),
        ({}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content"),
        ({"input": "Hi", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "Hi", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "Hi", "truncation": "auto"}, "truncation"),
        ({"input": "Hi", "text": "json"}, "text"),
    ],
)  # fmt: skip
def test_what_there_is_not_is_refused_by_its_name(fields: dict[str, Any], param: str):
    with pytest.raises(ApiRefusal) as refusal:
        chat(**fields)
    assert refusal.value.param == param


def events_of(*chunks: dict[str, Any]) -> list[dict[str, Any]]:
    stream = ResponseStream("resp_1", "m@1", asked={"tools": [TOOL]}, begin_s=0.0)
    sent = b"".join(stream.feed(b"data: " + orjson.dumps(each) + b"\n\n", 1.0) for each in chunks)
    sent += stream.feed(b"data: [DONE]\n\n", 1.0)
    stream.finish()
    found = []
    for event in (sent + stream.last()).decode().strip().split("\n\n"):
        kind, _, data = event.partition("\n")
        found.append(orjson.loads(data.removeprefix("data: ")))
        assert kind == f"event: {found[-1]['type']}"
    assert [each["sequence_number"] for each in found] == [*range(len(found))]
    return found


def test_a_text_and_a_call_are_items_one_after_the_other():
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "weather", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"city":1}'}}
    found = events_of(
        {"choices": [{"delta": {"role": "assistant", "content": "I "}}]},
        {"choices": [{"delta": {"content": "look."}}]},
        {"choices": [{"delta": {"tool_calls": [call]}}]},
        {"choices": [{"delta": {"tool_calls": [more]}}]},
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}},
    )
    assert [each["type"].removeprefix("response.") for each in found] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_item.added", "function_call_arguments.delta", "output_text.done", "content_part.done", "output_item.done",
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    text, called = found[-1]["response"]["output"]
    assert text["content"][0]["text"] == "I look."
    assert (called["name"], called["arguments"], called["call_id"]) == ("weather", '{"city":1}', "c")
    assert found[-1]["response"]["usage"]["total_tokens"] == 10
    assert found[0]["response"]["usage"] is None


def test_the_client_gets_a_response_and_its_log_has_the_messages(client: openai.OpenAI, served: ServedDoor):
    found = client.responses.create(
        model=MODEL, instructions="Answer.", input="What is 2+2?", temperature=0, max_output_tokens=16
    )
    assert "4" in found.output_text
    assert found.model == f"{MODEL}@1"
    assert found.id.startswith("resp_")
    assert found.usage is not None
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    row = served.log.rows()[-1]
    assert row[0] == found.id
    assert orjson.loads(served.log.outputs(row)["message"])["content"] == found.output_text


def test_the_client_gets_the_events_of_a_stream(client: openai.OpenAI):
    asked: dict[str, Any] = {
        "model": MODEL,
        "input": "What is 2+2?",
        "temperature": 0,
        "max_output_tokens": 3,
    }
    whole = client.responses.create(**asked)
    events = list(client.responses.create(stream=True, **asked))
    assert (
        "".join(each.delta for each in events if each.type == "response.output_text.delta")
        == whole.output_text
    )
    assert events[-1].type == "response.incomplete"  # three tokens are too few
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.output_tokens == 3


def test_the_client_gets_a_call_of_a_tool(client: openai.OpenAI):
    turns: list[Any] = []
    for city in ("Paris", "Berlin", "Madrid"):
        turns += [
            {"role": "user", "content": f"How is the weather in {city}?"},
            {
                "type": "function_call",
                "call_id": city,
                "name": "weather",
                "arguments": f'{{"city":"{city}"}}',
            },
            {"type": "function_call_output", "call_id": city, "output": "sunny"},
            {"role": "assistant", "content": f"It is sunny in {city}."},
        ]
    tools: list[Any] = [FUNCTION]
    found = client.responses.create(
        model=TOOLED, input=[*turns, {"role": "user", "content": "How is the weather in Rome?"}], tools=tools,
        tool_choice="required", temperature=0,
    )  # fmt: skip
    (call,) = [each for each in found.output if each.type == "function_call"]
    assert (call.name, orjson.loads(call.arguments)) == ("weather", {"city": "Rome"})


def test_an_error_is_raised_by_the_client(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="previous_response_id: not a field of /v1/responses"):
        client.responses.create(model=MODEL, input="Hi", previous_response_id="resp_1")
