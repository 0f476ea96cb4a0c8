"""Drift of what language models are asked and answer: quiet while both are as before, and named by figure when they change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from tests.functions.monitoring.language.conftest import MODEL, Talk
from toque.functions.monitoring import AnswerMonitor, standing_alarms
from toque.functions.monitoring.history import monitor_findings
from toque.functions.monitoring.language import LanguageMonitors
from toque.functions.monitoring.language.jobs import set_language_monitors, watch_language_model
from toque.functions.prediction_log import outcomes
from toque.functions.runtime import use_context
from toque.functions.runtime.receipt import TokenPrice
from toque.registry import ModelPolicy

DAY = timedelta(days=1)
DAILY = 60
PRICE = TokenPrice(prompt_million=1.0, answer_million=4.0)
MONITORS = LanguageMonitors(share=1.0, drift=AnswerMonitor(delay=timedelta(0)))
ASKED = "How do I cook rice for the two of us, and what is it that you would do with the rest?"
GERMAN = "Wie koche ich Reis für zwei, und was kann man mit dem Rest machen, wenn er nicht reicht?"
SAID, DECLINED = (
    "Wash it, and cook it in twice as much water for the time that it says.",
    "I'm sorry, but I can't help with that.",
)


def usual(rng: np.random.Generator) -> dict[str, Any]:
    """One request on a usual day."""
    return {
        "text": DECLINED if rng.random() < 0.1 else SAID + " Yes." * int(rng.integers(0, 9)),
        "asked": ASKED + " Please." * int(rng.integers(0, 9)),
        "tokens": (int(rng.integers(20, 60)), int(rng.integers(10, 40))),
        "first_token_s": float(rng.lognormal(-3, 0.3)),
        "price": PRICE,
    }


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], set[str]]] = {
    "nothing": (lambda one: one, set()),
    "language": (lambda one: one | {"asked": GERMAN + one["asked"][len(ASKED) :]}, {"prompt language"}),
    "refusals": (lambda one: one | ({"text": DECLINED} if one["tokens"][0] < 45 else {}), {"declined"}),
    "latency": (lambda one: one | {"first_token_s": 2 * one["first_token_s"]}, {"first token ms"}),
    "length": (lambda one: one | {"tokens": (one["tokens"][0], 4 * one["tokens"][1])}, {"answer tokens", "cost"}),
}  # fmt: skip


def days(talk: Talk, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[int]:
    """Serve fourteen usual days, then six as `change` has them; watch after each."""
    for day in range(20):
        rng = np.random.default_rng(day)
        for number in range(DAILY):
            one = usual(rng) if day < 14 else change(usual(rng))
            talk.say(f"{day}-{number}", at=talk.now + DAY * number / DAILY, **one)
        talk.drain()
        talk.now += DAY
        yield day


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_is_named_by_one_alarm(talk: Talk, what: str) -> None:
    change, drifted = CHANGES[what]
    with use_context(talk.context()):
        set_language_monitors(MODEL, MONITORS)
        found = []
        for day in days(talk, change):
            if day in (6, 13, 16, 19):
                watched = watch_language_model(MODEL).drift
                assert watched is not None
                found.append(watched)
        assert not any(each.alarms for each in found[:2]), found
        alarms = standing_alarms(MODEL)
        assert len(alarms) == bool(drifted)
        if drifted:
            assert drifted <= {*alarms[0].columns}
            assert (alarms[0].monitor, alarms[0].subject) == ("answers", "answers")
        findings = monitor_findings(MODEL, "answers")
    assert {each.subject for each in findings} == {
        "prompt length", "prompt tokens", "prompt language", "answer length", "answer tokens", "answer language", "declined",
        "ended by", "first token ms", "cost",
    }  # fmt: skip


def test_where_the_log_keeps_few_texts_drift_is_of_those_that_it_has(talk: Talk) -> None:
    with use_context(talk.context()):
        talk.registry().set_policy(MODEL, ModelPolicy(keep_texts=0.5))
        set_language_monitors(MODEL, MONITORS)
        for number in range(40):
            talk.say(f"p{number}", SAID, keep_texts=0.5, at=talk.now + timedelta(hours=number))
        talk.drain()
        talk.now += 3 * DAY
        policy = talk.registry().get_model(MODEL).policy
        sample = MONITORS.sample(talk.store, MODEL, policy, talk.now - 3 * DAY, talk.now)
        answers = list(sample.read(sample.answered()).values())
    assert 0 < len(answers) < 40
    assert {each.text for each in answers} == {SAID}
    assert {each.question for each in answers} == {"What is it?"}


def test_an_answer_whose_texts_were_not_kept_is_held_against_no_correction(talk: Talk) -> None:
    for name, keep_texts in (("kept", 1.0), ("not-kept", 0.0)):
        talk.say(name, SAID, keep_texts=keep_texts)
    talk.drain()
    for name in ("kept", "not-kept"):
        talk.label(name, "Wash it.")
    talk.later(1)
    found = outcomes(talk.store, MODEL, talk.now - DAY, talk.now).to_pylist()
    assert {row["prediction_id"]: row["answer_text"] for row in found} == {"kept": SAID, "not-kept": None}
    assert {row["label_text"] for row in found} == {"Wash it."}
