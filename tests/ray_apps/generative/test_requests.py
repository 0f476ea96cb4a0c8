"""Requests that no engine should get: each is refused by its field, before a version is asked."""

from typing import Any

import orjson
import pytest

from tests.conditions.messages import (
    LOOK_ALIKE_ROLES,
    NOT_TEXTS,
    NOT_TOKEN_IDS,
    hidden,
    hidden_in_template_arguments,
)
from toque.functions.generative import Guardrails, check_request
from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.ray_apps.generative.openai.requests import CHAT, COMPLETION, EMBEDDING, RESPONSE, parse_request

HI = [{"role": "user", "content": "Hi"}]


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


@pytest.mark.parametrize("place", hidden_in_template_arguments("forbidden"))
@pytest.mark.parametrize(("word", "is_refused"), [("forbidden", True), ("forbid", False)])
def test_a_rule_finds_a_word_wherever_a_template_may_write_it(place: str, word: str, *, is_refused: bool):
    rules = Guardrails.model_validate({"before": [{"kind": "deny", "patterns": [r"\bforbidden\b"]}]})
    arguments = hidden_in_template_arguments(word)[place]
    ask = parse_request(CHAT, orjson.dumps({"model": "m", "messages": HI, "chat_template_kwargs": arguments}))
    assert (check_request(rules, ask.body).refused is not None) is is_refused
    assert ask.for_engine()["chat_template_kwargs"] == arguments


def test_what_a_rule_masks_of_a_templates_arguments_reaches_no_engine():
    rules = Guardrails.model_validate({"before": [{"kind": "personal_data", "action": "redact"}]})
    body = {"chat_template_kwargs": {"thinking": True, "asker": ["ada@example.com"], "budget": 7}}
    checked = check_request(rules, body).body["chat_template_kwargs"]
    assert checked == {"thinking": True, "asker": ["[email]"], "budget": 7}


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize("kind", [CHAT, RESPONSE])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *(({name: value}, f"chat_template_kwargs.{name}: got") for value in (None, [{"role": "user", "content": "Hi"}], False) for name in (
            "messages", "conversation", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
            "return_dict", "bos_token", "eos_token", "image_token", "raise_exception", "namespace", "range",
        )),
        *(({name: 1}, "expected names of up to 64") for name in ("", "_hidden", "a b", "a.b", "é", "x" * 65, "7")),
        ({"a": nested(4)}, "nested deeper than 4"),
        ({"a": {"b": {"c": {"d": {"e": 1}}}}}, "nested deeper than 4"),
        ({"a": "é" * 8_192}, "at most 16384 bytes, got 16393"),
        ({f"a{number}": 1 for number in range(33)}, "at most 32 names, got 33"),
        ([], "expected an object"), ("enable_thinking", "expected an object"), (7, "expected an object"),
        ({"a": (1 << 64) - 1}, "numbers of 64 bits"),
    ],
)  # fmt: skip
def test_arguments_of_a_template_beyond_their_bounds_are_refused(kind: str, arguments: Any, words: str):
    asked = {"messages": HI} if kind == CHAT else {"input": "Hi"}
    error = refused(kind, **asked, chat_template_kwargs=arguments)
    assert error.param == "chat_template_kwargs"
    assert words in str(error)


@pytest.mark.parametrize(
    "arguments",
    [
        {}, {"enable_thinking": False}, {"reasoning_effort": "high"}, {"thinking_budget": 512, "temperature": 0.5, "x": None},
        {"a": nested(3)}, {"a": "é" * 8_187}, {f"a{number}": 1 for number in range(32)}, {"x" * 64: -1}, {"tools_in_user_message": True},
    ],
)  # fmt: skip
def test_arguments_of_a_template_go_on_to_the_engine(arguments: Any):
    for kind, asked in ((CHAT, {"messages": HI}), (RESPONSE, {"input": "Hi"})):
        ask = parse_request(kind, orjson.dumps({"model": "m", **asked, "chat_template_kwargs": arguments}))
        assert ask.for_engine()["chat_template_kwargs"] == arguments


def test_turns_of_a_conversation_stay_on_their_version_whatever_its_template_is_told():
    keys = {
        parse_request(CHAT, orjson.dumps({"model": "m", "messages": HI, **more})).split_key
        for more in ({}, *({"chat_template_kwargs": {"enable_thinking": on}} for on in (True, False)))
    }
    assert len(keys) == 1


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


@pytest.mark.parametrize(
    ("prompt", "text", "ids"),
    [
        ("Hi", "Hi", None),
        (["Hi"], "Hi", None),
        ([0], [0], [0]),
        ([1, 2, 3], [1, 2, 3], [1, 2, 3]),
        ([[1, 2, 3]], [1, 2, 3], [1, 2, 3]),
        ([(1 << 31) - 1], [(1 << 31) - 1], [(1 << 31) - 1]),
    ],
)
def test_a_prompt_is_one_text_or_its_token_ids(prompt: Any, text: Any, ids: Any):
    ask = parse_request(COMPLETION, orjson.dumps({"model": "m", "prompt": prompt}))
    assert (ask.body["prompt"], ask.token_ids) == (text, ids)
    assert ask.for_engine()["prompt"] == text


@pytest.mark.parametrize("value", NOT_TOKEN_IDS, ids=repr)
def test_what_is_no_token_id_is_refused_by_its_place(value: Any):
    for prompt, place in (([5, 6, value], 2), ([value, 5], 0), ([[5, value, 6]], 1)):
        error = refused(COMPLETION, prompt=prompt)
        assert error.param == "prompt"
        assert f"prompt[{place}]: expected a token id" in str(error)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "got none"), ([[]], "got none"), ([[1], [2]], "one is answered for a request, got 2"),
        (["a", "b"], "one is answered for a request, got 2"), ([[1], "a"], "one is answered for a request, got 2"),
        ([[[1]]], "prompt[0]: expected a token id"), (7, "expected str or list"), (True, "expected str or list"), ({}, "expected str or list"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_refused(prompt: Any, words: str):
    error = refused(COMPLETION, prompt=prompt)
    assert error.param == "prompt"
    assert words in str(error)
