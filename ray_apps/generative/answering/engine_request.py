"""Requests as engines get them: as the version's prompt makes them."""

from __future__ import annotations

from typing import Any

from functions.generative import GenerativeError
from ray_apps.generative.openai.errors import ApiRefusal
from ray_apps.generative.openai.requests import CHAT, EMBEDDING, Ask
from ray_apps.generative.versions import GenerativeVersion

__all__ = ["engine_body"]


def engine_body(ask: Ask, version: GenerativeVersion) -> dict[str, Any]:
    """The request as the version's prompt makes it. Raises: ApiRefusal for its variables."""
    body = ask.for_engine()
    if ask.kind == EMBEDDING:
        return body
    if ask.kind == CHAT:
        try:
            body = version.prompt.request(body, ask.body.get("variables", {}))
        except GenerativeError as error:
            raise ApiRefusal(str(error), param="variables") from error
    body.setdefault("max_tokens", version.settings.max_tokens)
    return body
