"""Requests as engines get them: as the version's prompt and guardrails make them, or refused with whose fault it is.

A request that does not fit the version's task or its context is refused before it takes a slot of the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import aiohttp
import numpy as np
import orjson

from toque.functions.generative import (
    TEMPLATE_ARGUMENTS,
    EngineSettings,
    Finding,
    GenerativeError,
    Prompt,
    check_answer,
    check_request,
)
from toque.functions.generative.engines import EngineProcess, EngineRefusal
from toque.ray_apps.generative.openai.answers import AnswerRecord
from toque.ray_apps.generative.openai.errors import ApiRefusal, refusal_by_engine
from toque.ray_apps.generative.openai.requests import CHAT, COMPLETION, EMBEDDING, Ask
from toque.ray_apps.generative.versions import GenerativeVersion
from toque.ray_apps.predictor.protocol.datatypes import Array

_OF_APPLICATIONS: Final = ("system", "developer")
_PER_MESSAGE, _PER_REQUEST = 16, 64
"""Tokens that a chat template adds to each message and to a request, as a bound."""
FILTERED: Final = "content_filter"
"""Why an answer ended that a rule withheld, and the code of a request that one refused, as OpenAI's clients know them."""


def engine_body(ask: Ask, version: GenerativeVersion) -> dict[str, Any]:
    """The request as the version's prompt makes it. Raises: ApiRefusal for its variables, and if nothing is asked."""
    body = ask.for_engine()
    if ask.kind == EMBEDDING:
        return body
    if ask.kind == CHAT:
        try:
            body = version.prompt.request(body, ask.body.get("variables", {}))
        except GenerativeError as error:
            raise ApiRefusal(str(error), param="variables") from error
        if all(message["role"] in _OF_APPLICATIONS for message in body["messages"]):
            raise ApiRefusal("messages: nothing is asked; send a message of role 'user'", param="messages")
    body.setdefault("max_tokens", version.settings.max_tokens)
    return body


async def engine_refusal(
    process: EngineProcess, body: Mapping[str, Any], status: int, content: bytes
) -> ApiRefusal:
    """What an engine said in place of an answer as a refusal; a fault of the messages if its template makes no prompt of them.

    Templates raise errors of their own, such as for turns that do not alternate, which engines give as faults of theirs.
    """
    refusal = refusal_by_engine(status, content)
    if refusal.retry_after_s is None or "messages" not in body:
        return refusal
    try:
        await process.engine.count_tokens(process.client, process.base, body)
    except EngineRefusal as error:
        return refusal_by_engine(error.status, error.content)
    except aiohttp.ClientError:  # it is gone
        return refusal
    return refusal


async def decoded_prompt(process: EngineProcess, settings: EngineSettings, ask: Ask) -> Ask:
    """Decode a prompt of token ids with the version's own tokenizer: rules, the log and its readers take the text.

    Raises: ApiRefusal for ids that there are not, and for more than the context.
    """
    if ask.token_ids is None:
        return ask
    if len(ask.token_ids) >= settings.context_length:
        raise _too_long(settings, len(ask.token_ids), ask.max_tokens or 1, "prompt")
    check_vocabulary(process, ask.token_ids, "prompt")
    try:
        text = await process.engine.decode(process.client, process.base, ask.token_ids)
    except EngineRefusal as error:
        raise refusal_by_engine(error.status, error.content) from error
    return replace(ask, body={**ask.body, "prompt": text})


def check_vocabulary(process: EngineProcess, token_ids: Sequence[int], what: str) -> None:
    """Check that a version has these token ids, as far as its engine says how many there are. Raises: ApiRefusal."""
    size = process.vocabulary
    place = next((place for place, token in enumerate(token_ids) if size is not None and token >= size), None)
    if size is not None and place is not None:
        raise ApiRefusal(
            f"{what}[{place}]: expected a token id of this version, 0 to {size - 1}, got {token_ids[place]}; send the ids that its "
            "tokenizer makes of the text, or the text",
            param=what,
        )


async def check_context(
    process: EngineProcess, settings: EngineSettings, ask: Ask, body: dict[str, Any]
) -> tuple[int, int]:
    """Check that prompt and answer fit; returns a bound on the prompt's tokens, and that of the answer.

    A token has at least one byte, so short requests need no count; others are counted by the engine. An answer whose length the
    caller did not say gets what is left. Raises: ApiRefusal with the numbers, or if the version makes embeddings alone.
    """
    if ask.kind == EMBEDDING:
        return await _check_texts(process, settings, ask), 0
    if settings.task == "embed":
        raise ApiRefusal("model: this version makes embeddings alone; ask /v1/embeddings", param="model")
    most = int(body["max_tokens"])
    prompt = _bound(body) if ask.token_ids is None else len(ask.token_ids)
    is_bound = (
        ask.token_ids is None and TEMPLATE_ARGUMENTS not in body
    )  # by these a template may write what it likes
    if ask.token_ids is None and not (is_bound and prompt + most <= settings.context_length):
        prompt = await _counted(process, body)
    left = settings.context_length - prompt
    if left < 1 or (ask.max_tokens is not None and ask.max_tokens > left):
        raise _too_long(settings, prompt, ask.max_tokens or 1, "messages" if "messages" in body else "prompt")
    body["max_tokens"] = most = min(most, left)
    return prompt, most


async def _check_texts(process: EngineProcess, settings: EngineSettings, ask: Ask) -> int:
    most, total = process.engine.embedding_bounds(process.spec).tokens, 0
    if not most:
        raise ApiRefusal(
            f"model: {process.engine.name} embeds only for versions whose setting `task` is 'embed', and this one's is "
            f"{settings.task!r}; register one with EngineSettings(task='embed'), which may `keep` these weights",
            param="model", code="unsupported_parameter",
        )  # fmt: skip
    for text in ask.body["input"]:
        if not isinstance(text, str):
            check_vocabulary(process, text, "input")
        size = len(text.encode()) + _PER_REQUEST if isinstance(text, str) else len(text)
        if size > most and isinstance(text, str):
            size = await _counted(process, {"prompt": text})
        if size > settings.context_length:
            raise _too_long(settings, size, 0, "input")
        if size > most:
            raise ApiRefusal(
                f"input: this version embeds texts of {most} tokens, and one has {size}; cut it, or register a version with the "
                "task 'embed', which takes its whole context",
                param="input", code="context_length_exceeded",
            )  # fmt: skip
        total += size
    return total


async def _counted(process: EngineProcess, body: Mapping[str, Any]) -> int:
    """Have the engine count a prompt's tokens. Raises: ApiRefusal with what it says, if it does not."""
    try:
        return await process.engine.count_tokens(process.client, process.base, body)
    except EngineRefusal as error:
        raise refusal_by_engine(error.status, error.content) from error


def _bound(body: Mapping[str, Any]) -> int:
    """Most tokens that a prompt can have: its bytes, and what a template adds."""
    asked = {name: body[name] for name in ("messages", "tools", "prompt", "response_format") if name in body}
    messages = body.get("messages") or ()
    return len(orjson.dumps(asked)) + _PER_MESSAGE * len(messages) + _PER_REQUEST


def _too_long(settings: EngineSettings, prompt: int, answer: int, what: str) -> ApiRefusal:
    return ApiRefusal(
        f"{what}: this model's maximum context length is {settings.context_length} tokens, and {prompt + answer} were asked for: {prompt} in "
        f"{what}, {answer} for the answer; shorten it, or lower max_tokens",
        param=what,
        code="context_length_exceeded",
    )


def guarded_request(ask: Ask, prompt: Prompt) -> tuple[Ask, tuple[Finding, ...]]:
    """Apply a version's rules before: the request as it goes on and is logged, and what was found in it.

    Of a prompt of token ids they read the text, `decoded_prompt`; a rule that would mask something of it refuses it.
    """
    if ask.kind == EMBEDDING or not prompt.guardrails.before:
        return ask, ()
    checked = check_request(prompt.guardrails, ask.body)
    if ask.token_ids is None or checked.body["prompt"] == ask.body["prompt"]:
        return replace(ask, body=checked.body), checked.findings
    findings = tuple(
        replace(finding, action="refuse") if finding.action == "redact" else finding
        for finding in checked.findings
    )
    return replace(
        ask, body=checked.body, token_ids=None
    ), findings  # the log must not have the ids of what is masked


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


def refusal_of(findings: Sequence[Finding], version: object, kind: str) -> ApiRefusal | None:
    """Make the refusal of a request of a kind by which a rule of a version does not let it pass; None if all do."""
    finding = next((each for each in findings if each.action == "refuse"), None)
    if finding is None:
        return None
    what = "prompt" if kind == COMPLETION else "messages"
    return ApiRefusal(
        f"{what}: refused by the guardrail {finding.rule!r} of {version}; leave out what it is about",
        param=what,
        code=FILTERED,
    )


def finding_tensors(findings: Sequence[Finding]) -> dict[str, Array]:
    """Column of the log that has what the guardrails found, in JSON; none where they found nothing."""
    if not findings:
        return {}
    text: Any = np.empty((1, 1), object)
    text[0, 0] = orjson.dumps([asdict(each) for each in findings])
    return {"guardrails": text}


__all__ = [
    "FILTERED",
    "changes",
    "check_context",
    "check_vocabulary",
    "decoded_prompt",
    "engine_body",
    "engine_refusal",
    "finding_tensors",
    "guard_answer",
    "guarded_request",
    "refusal_of",
]
