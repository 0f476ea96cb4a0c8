"""Refuses a request that does not fit the version's task or its context, before it takes a slot of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from toque.functions.generative import EngineSettings
from toque.functions.generative.engines import EngineProcess, EngineRefusal
from toque.ray_apps.generative.openai.errors import ApiRefusal, refusal_by_engine
from toque.ray_apps.generative.openai.requests import EMBEDDING, Ask

__all__ = ["check_context"]

_PER_MESSAGE, _PER_REQUEST = 16, 64
"""Tokens that a chat template adds to each message and to a request, as a bound."""


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
    prompt = _bound(body)
    if prompt + most > settings.context_length:
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
