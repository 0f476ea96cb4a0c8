import pytest
from pydantic import ValidationError

from toque.functions.generative import GenerativeError, Prompt, difference

PROMPT = Prompt.model_validate(
    {
        "messages": [
            {"role": "system", "content": "You answer about {{ city }} in {{language}}, at most {{n}} words."}
        ],
        "variables": {
            "city": {"max_length": 10},
            "language": {"choices": ["English", "Dutch"], "default": "English"},
            "n": {"type": "integer", "default": 20},
        },
        "examples": [{"user": "Is it large?", "assistant": "Yes."}],
        "parameters": {"temperature": 0.2, "max_tokens": 30},
        "tools": [{"type": "function", "function": {"name": "look_up"}}],
    }
)
ASKED = [{"role": "user", "content": "Hello {{ city }}"}]


def test_a_prompt_stands_before_the_requests_own_messages():
    body = PROMPT.request({"messages": ASKED, "seed": 1}, {"city": "Rome", "n": 5})
    assert [each["role"] for each in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][0]["content"] == "You answer about Rome in English, at most 5 words."
    assert body["messages"][-1] == ASKED[0]  # a request's own text is no template
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.2, 30, 1)
    assert body["tools"][0]["function"]["name"] == "look_up"


def test_a_value_is_never_read_as_a_template():
    body = PROMPT.request({"messages": ASKED}, {"city": "{{n}}"})
    assert body["messages"][0]["content"].startswith("You answer about {{n}} in")


def test_a_request_that_says_its_own_has_its_way():
    body = PROMPT.request(
        {"messages": ASKED, "temperature": 1.0, "max_completion_tokens": 7}, {"city": "Rome"}
    )
    assert body["temperature"] == 1.0
    assert "max_tokens" not in body


def test_two_system_messages_become_one():
    own = [{"role": "system", "content": "Be kind."}, *ASKED]
    body = PROMPT.request({"messages": own}, {"city": "Rome"})
    assert [each["role"] for each in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][0]["content"].endswith("words.\n\nBe kind.")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"variables\.city: missing; the prompt needs a string"),
        ({"city": 3}, r"variables\.city: expected string, got 3"),
        ({"city": "x" * 11}, r"variables\.city: 11 characters, at most 10"),
        ({"city": "Rome", "n": True}, r"variables\.n: expected integer"),
        ({"city": "Rome", "language": "French"}, r"variables\.language: 'French' is not one of"),
        ({"city": "Rome", "town": "x"}, r"variables\.town: the prompt has none of that name"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(given, message):
    with pytest.raises(GenerativeError, match=message):
        PROMPT.request({"messages": ASKED}, given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [{"role": "system", "content": "{{x}}"}]}, r"\['x'\] are not in variables"),
        ({"variables": {"x": {}}}, r"\['x'\] stand in no message"),
        ({"parameters": {"id_slot": 1}}, r"\['id_slot'\] are not of"),
        ({"messages": [{"role": "tool", "content": ""}]}, "role"),
    ],
)
def test_a_prompt_is_checked_where_it_is_declared(fields, message):
    with pytest.raises(ValidationError, match=message):
        Prompt.model_validate(fields)


def test_a_difference_shows_what_changed_line_by_line():
    other = PROMPT.model_copy(update={"parameters": {"temperature": 0.7}})
    shown = difference(PROMPT, other, names=("support@1", "support@2"))
    assert shown.startswith("--- support@1\n+++ support@2")
    assert '- "max_tokens": 30' in shown
    assert difference(PROMPT, PROMPT) == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"messages": []}, "chat_template_kwargs.messages"),
        ({"a": float("nan")}, "chat_template_kwargs.a: expected JSON"),
        ({"a": object()}, "chat_template_kwargs.a: expected JSON"),
        ({"a": {7: 1}}, "chat_template_kwargs.a: expected a text as the name"),
        ("enable_thinking", "expected an object"),
    ],
)
def test_a_prompt_with_arguments_that_its_template_may_not_have_is_refused(arguments: object, words: str):
    with pytest.raises(ValidationError, match=words):
        Prompt(parameters={"chat_template_kwargs": arguments})


def test_arguments_of_the_template_are_a_default_of_the_prompt():
    prompt = Prompt(parameters={"chat_template_kwargs": {"enable_thinking": False}})
    own = {"chat_template_kwargs": {"enable_thinking": True}}
    assert prompt.request({"messages": ASKED}, {})["chat_template_kwargs"] == {"enable_thinking": False}
    assert prompt.request({"messages": ASKED, **own}, {})["chat_template_kwargs"] == {"enable_thinking": True}
