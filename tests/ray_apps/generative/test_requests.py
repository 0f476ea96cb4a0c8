"""Requests that no engine should get: each is refused by its field, before a version is asked."""

from typing import Any

import orjson
import pytest

from tests.conditions.messages import LOOK_ALIKE_ROLES, NOT_TEXTS, hidden
from toque.functions.generative import Guardrails, check_request
from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.ray_apps.generative.openai.requests import CHAT, COMPLETION, EMBEDDING, RESPONSE, parse_request


def refused(kind: str, **fields: Any) -> ApiRefusal:
    with pytest.raises(ApiRefusal) as refusal:
        parse_request(kind, orjson.dumps({"model": "m", **fields}))
    assert refusal.value.status == 400
    return refusal.value


@pytest.mark.parametrize("role", LOOK_ALIKE_ROLES, ids=repr)
def test_a_role_that_is_spelled_otherwise_is_refused_at_every_door(role: Any):
    assert "role" in str(refused(CHAT, messages=[{"role": role, "content": "Hi"}]))
    assert "role" in str(refused(RESPONSE, input=[{"role": role, "content": "Hi"}]))


@pytest.mark.parametrize("part", NOT_TEXTS, ids=repr)
def test_a_part_that_is_no_text_is_refused(part: Any):
    for beside in ([], [{"type": "text", "text": "What is this?"}]):
        error = refused(CHAT, messages=[{"role": "user", "content": [*beside, part]}])
        assert error.param == "messages[0].content"
        refused(RESPONSE, input=[{"role": "user", "content": [*beside, part]}])


@pytest.mark.parametrize(
    "message",
    [None, "Hi", {}, {"role": "user"}, {"role": "user", "content": 7}, {"role": "assistant", "content": None},
     {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
     {"role": "assistant", "tool_calls": ["f"]}],
)  # fmt: skip
def test_a_message_that_says_nothing_is_refused(message: Any):
    assert (refused(CHAT, messages=[message]).param or "").startswith("messages[0]")


@pytest.mark.parametrize("place", hidden("forbidden"))
def test_a_rule_finds_a_word_wherever_a_model_reads_it(place: str):
    rules = Guardrails.model_validate({"before": [{"kind": "deny", "patterns": [r"\bforbidden\b"]}]})
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}, hidden("forbidden")[place]]}
    ask = parse_request(CHAT, orjson.dumps(body))
    assert check_request(rules, ask.body).refused is not None
    assert check_request(rules, body).refused is not None


def test_an_engine_gets_the_text_that_the_rules_saw():
    ask = parse_request(CHAT, orjson.dumps({"model": "m", "messages": [hidden("forbidden")["letters"]]}))
    assert ask.for_engine()["messages"] == [{"role": "user", "content": "forbidden"}]


BOUNDS = {
    "temperature": (99, -1, "hot", True, [1]),
    "top_p": (7, -0.1, "1"),
    "min_p": (1.5, -1),
    "top_k": (1.5, -2, "4"),
    "presence_penalty": (3, -3),
    "frequency_penalty": (3, -3),
    "repeat_penalty": (-1, 1e9),
    "seed": (1 << 63, 0.5, "one"),
    "stop": (7, [7], {}),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BOUNDS for value in BOUNDS[name]])
def test_a_parameter_of_sampling_beyond_its_bounds_is_refused_by_name(name: str, value: Any):
    assert refused(CHAT, messages=[{"role": "user", "content": "Hi"}], **{name: value}).param == name
    assert refused(COMPLETION, prompt="Hi", **{name: value}).param == name


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ([[1]], [[1]]),
        (["a", [1]], ["a", [1]]),
    ],
)
def test_each_text_to_embed_is_one(given: Any, texts: list[Any]):
    assert parse_request(EMBEDDING, orjson.dumps({"model": "m", "input": given})).body["input"] == texts


@pytest.mark.parametrize(
    "given", ["", [], [""], [[]], [[1], []], [True], [-1], [1 << 31], [1, "a"], [1.5], [[[1]]], [None], 7, {}]
)
def test_what_is_no_text_to_embed_is_refused(given: Any):
    assert refused(EMBEDDING, input=given).param == "input"


def test_another_length_of_vectors_is_refused():
    assert refused(EMBEDDING, input="a", dimensions=64).param == "dimensions"
