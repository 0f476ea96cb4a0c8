"""Answers that decline, and those that only look like it."""

from typing import Any

import pytest

from toque.functions.generative import declines
from toque.registry import ModelPolicy

DECLINING = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, I cannot assist with this request.",
    "Unfortunately, I am not able to provide medical advice.",
    "As an AI language model, I don't have feelings.",
    "I must decline.",
    "That would be against my guidelines.",
    "\"I'm sorry, but I can't help with that.\"",
    "We won't share details of other customers.",
    "I'm unable to answer that.",
    "I can't really discuss it.",
]
ANSWERING = [
    "Paris",
    "",
    "I'm sorry to hear that. Your order was sent on Monday.",
    "I cannot find your order; what is its number?",
    "You can't help it: water boils at 100 degrees.",
    "If you can't provide a receipt, send us the number of the order.",
    "An artificial lake cannot drain by itself.",
    "The capital of Italy is Rome. " * 20 + "I can't help with anything else.",
]


@pytest.mark.parametrize("text", DECLINING)
def test_an_answer_that_declines_is_seen(text: str):
    assert declines({"role": "assistant", "content": text})


@pytest.mark.parametrize("text", ANSWERING)
def test_an_answer_that_does_not_is_left(text: str):
    assert not declines({"role": "assistant", "content": text})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Es tut mir leid, dabei kann ich nicht helfen.", True),
        ("JE NE PEUX PAS répondre à cela.", True),
        ("Je l’ignore.", True),
        ("I can't help with that.", True),
        ("Rom ist die Hauptstadt.", False),
        ("Rom ist die Hauptstadt. " * 20 + "Es tut mir leid, mehr weiß ich nicht.", False),
    ],
)
def test_patterns_of_a_policy_stand_beside_the_english_ones(text: str, *, found: bool):
    also = ModelPolicy(declining=("^es tut mir leid", r"\bje (ne peux pas|l'ignore)")).declining
    assert declines({"role": "assistant", "content": text}, also=also) is found


@pytest.mark.parametrize(
    ("message", "reason", "found"),
    [
        ({"content": "", "refusal": "no"}, "stop", True),
        ({"content": "The"}, "content_filter", True),
        ({"content": "I can't help with that.", "tool_calls": [{"type": "function"}]}, "tool_calls", False),
        ({"content": None}, "stop", False),
    ],
)
def test_what_the_engine_says_itself_comes_first(message: dict[str, Any], reason: str, *, found: bool):
    assert declines(message, reason) is found
