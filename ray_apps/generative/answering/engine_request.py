"""Requests as engines get them: as the version's prompt makes them; and whose fault it is that one is not answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from toque.functions.generative import GenerativeError
from toque.functions.generative.engines import EngineProcess, EngineRefusal
from toque.ray_apps.generative.openai.errors import ApiRefusal, refusal_by_engine
from toque.ray_apps.generative.openai.requests import CHAT, EMBEDDING, Ask
from toque.ray_apps.generative.versions import GenerativeVersion

__all__ = ["engine_body", "engine_refusal"]

_OF_APPLICATIONS: Final = ("system", "developer")


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
