"""Guardrails at the door: requests and answers of a version go through its rules, and refusals have the shape that clients read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np
import orjson

from toque.functions.generative import Finding, Prompt, check_answer, check_request
from toque.ray_apps.generative.openai.answers import AnswerRecord
from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.ray_apps.generative.openai.requests import EMBEDDING, Ask
from toque.ray_apps.predictor.protocol.datatypes import Array

__all__ = ["FILTERED", "changes", "finding_tensors", "guard_answer", "guarded_request", "refusal_of"]

FILTERED: Final = "content_filter"
"""Why an answer ended that a rule withheld, and the code of a request that one refused, as OpenAI's clients know them."""


def guarded_request(ask: Ask, prompt: Prompt) -> tuple[Ask, tuple[Finding, ...]]:
    """Apply a version's rules before: the request as it goes on and is logged, and what was found in it."""
    if ask.kind == EMBEDDING or not prompt.guardrails.before:
        return ask, ()
    checked = check_request(prompt.guardrails, ask.body)
    return replace(ask, body=checked.body), checked.findings


def guard_answer(answer: AnswerRecord, prompt: Prompt) -> tuple[Finding, ...]:
    """Apply a version's rules after to an answer, which becomes as it goes on and is logged; returns what was found in it."""
    if not prompt.guardrails.after:
        return ()
    checked = check_answer(prompt.guardrails, answer.message)
    answer.message = checked.message
    if checked.refused is not None:
        answer.finish_reason = FILTERED
    return checked.findings


def changes(findings: Sequence[Finding]) -> bool:
    """Whether what was found changes the text that goes on."""
    return any(each.action != "flag" for each in findings)


def refusal_of(findings: Sequence[Finding], version: object) -> ApiRefusal | None:
    """Make the refusal of a request by which a rule of a version does not let it pass; None if all do."""
    finding = next((each for each in findings if each.action == "refuse"), None)
    if finding is None:
        return None
    return ApiRefusal(
        f"messages: refused by the guardrail {finding.rule!r} of {version}; leave out what it is about",
        param="messages",
        code=FILTERED,
    )


def finding_tensors(findings: Sequence[Finding]) -> dict[str, Array]:
    """Column of the log that has what the guardrails found, in JSON; none where they found nothing."""
    if not findings:
        return {}
    text: Any = np.empty((1, 1), object)
    text[0, 0] = orjson.dumps([asdict(each) for each in findings])
    return {"guardrails": text}
