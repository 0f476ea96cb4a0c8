"""Values of a request's fields: whose they may be and within which bounds, so that what no engine takes is refused before one is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from toque.ray_apps.generative.openai.errors import ApiRefusal

__all__ = ["ROLES", "check_logprobs", "check_numbers", "joined_messages", "texts_to_embed"]

ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
"""Roles of messages; chat templates render any other word too, and guardrails go by these."""
_NUMBERS: Final[Mapping[str, tuple[type, float, float]]] = {
    "temperature": (float, 0, 2),
    "top_p": (float, 0, 1),
    "min_p": (float, 0, 1),
    "top_k": (int, -1, 1 << 31),
    "presence_penalty": (float, -2, 2),
    "frequency_penalty": (float, -2, 2),
    "repeat_penalty": (float, 0, 100),
    "seed": (int, -(1 << 63), (1 << 63) - 1),
    "top_logprobs": (int, 0, 20),
}
_NESTED: Final = ("tool_calls", "function_call")


def check_numbers(body: Mapping[str, Any]) -> None:
    """Check the parameters of sampling. Raises: ApiRefusal with the bounds."""
    for name, (kind, least, most) in _NUMBERS.items():
        value = body.get(name)
        if value is None:
            continue
        fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if not fits or not math.isfinite(value) or not least <= value <= most:
            word = "a whole number" if kind is int else "a number"
            raise ApiRefusal(
                f"{name}: expected {word} from {least:g} to {most:g}, got {value!r:.80}", param=name
            )
    stop = body.get("stop", "")
    if not isinstance(stop, str) and not (isinstance(stop, list) and all(isinstance(s, str) for s in stop)):
        raise ApiRefusal(f"stop: expected a text or a list of texts, got {stop!r:.80}", param="stop")


def check_logprobs(body: Mapping[str, Any], *, is_chat: bool) -> None:
    """Check whose probabilities are asked for: a chat says whether, a completion of how many tokens. Raises: ApiRefusal."""
    value, most = body.get("logprobs"), _NUMBERS["top_logprobs"][2]
    if value is None:
        return
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
    if not (isinstance(value, bool) if is_chat else is_count):
        expected = "true or false" if is_chat else f"a whole number from 0 to {most:g}"
        raise ApiRefusal(f"logprobs: expected {expected}, got {value!r:.80}", param="logprobs")


def joined_messages(messages: list[Any]) -> list[dict[str, Any]]:
    """Check the messages of a chat and join the parts of each text, so that rules and engine see one and the same text.

    Raises: ApiRefusal for roles that there are not, parts that are no texts, and messages that say nothing.
    """
    return [_joined(message, f"messages[{place}]") for place, message in enumerate(messages)]


def texts_to_embed(given: Any) -> list[str | list[int]]:
    """List the texts of `input`, each a text or its token ids: one of either, or a list of them. Raises: ApiRefusal."""
    several = isinstance(given, list) and not all(_is_id(item) for item in given)
    texts: list[str | list[int]] = given if several else [given]
    for place, text in enumerate(texts):
        is_ids = isinstance(text, list) and text and all(_is_id(item) for item in text)
        if not is_ids and not (isinstance(text, str) and text):
            where = f"input[{place}]" if several else "input"
            raise ApiRefusal(
                f"{where}: expected a text, or a list of token ids, neither of them empty, got {text!r:.80}",
                param="input",
            )
    return texts


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _joined(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ApiRefusal(f"{where}: expected an object, got {given!r:.80}", param=where)
    message: dict[str, Any] = given
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ApiRefusal(
            f"{where}.role: expected one of {', '.join(ROLES)}, got {role!r:.80}", param=f"{where}.role"
        )
    if isinstance(content, list):
        content = _text_of(content, f"{where}.content")
        message = {**message, "content": content}
    calls = any(message.get(name) for name in _NESTED)
    if not isinstance(content, str) and not (content is None and role == "assistant" and calls):
        raise ApiRefusal(
            f"{where}.content: expected a text or parts of type 'text', got {content!r:.80}",
            param=f"{where}.content",
        )
    _check_calls(message.get("tool_calls") or [], f"{where}.tool_calls")
    return message


def _text_of(parts: list[Any], where: str) -> str:
    for place, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise ApiRefusal(
                f"{where}[{place}]: expected a part of type 'text' with a `text`, got {kind!r:.80}: only texts are taken",
                param=where,
            )
    return "".join(part["text"] for part in parts)


def _check_calls(calls: Any, where: str) -> None:
    for place, call in enumerate(calls if isinstance(calls, list) else [calls]):
        function = call.get("function") if isinstance(call, dict) else None
        named = function if isinstance(function, dict) else {}
        if not isinstance(named.get("name"), str) or not isinstance(named.get("arguments", ""), str):
            raise ApiRefusal(
                f"{where}[{place}].function: expected a name and the arguments as a text, got {function!r:.80}",
                param=where,
            )
