"""Requests as clients send them: what is asked of which model, for whom; fields that there are not are refused."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import orjson

from toque.ray_apps.generative.openai import responses
from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.ray_apps.generative.openai.fields import (
    check_logprobs,
    check_numbers,
    joined_messages,
    texts_to_embed,
)
from toque.ray_apps.generative.openai.service_tier import FIELD as SERVICE_TIER
from toque.ray_apps.generative.openai.service_tier import check_tier

__all__ = ["CHAT", "COMPLETION", "EMBEDDING", "RESPONSE", "Ask", "parse_request"]

CHAT, COMPLETION, EMBEDDING, RESPONSE = "chat/completions", "completions", "embeddings", "responses"
_SHARED: Final = frozenset({"model", "user", "safety_identifier", "metadata", "attributes"})
_SAMPLING: Final = frozenset(
    {
        "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "n",
        "presence_penalty", "frequency_penalty", "repeat_penalty", "logit_bias", "logprobs",
    }
)  # fmt: skip
_FIELDS: Final = {
    CHAT: _SHARED | _SAMPLING | {
        "messages", "variables", "max_completion_tokens", "tools", "tool_choice", "parallel_tool_calls",
        "response_format", "top_logprobs", "store", "reasoning_effort", "prompt_cache_key", SERVICE_TIER,
    },
    COMPLETION: _SHARED | _SAMPLING | {"prompt", "response_format", "prompt_cache_key", SERVICE_TIER},
    EMBEDDING: _SHARED | {"input", "encoding_format"},
    RESPONSE: responses.FIELDS,
}  # fmt: skip
_NOT_FOR_ENGINES: Final = (
    *_SHARED, "variables", "max_completion_tokens", "store", "n", "stream_options", "prompt_cache_key", SERVICE_TIER,
)  # fmt: skip
_MAX_UNIT: Final = 256
_MAX_ATTRIBUTES: Final = 64


@dataclass(frozen=True, slots=True)
class Ask:
    """One request for a language model.

    kind: path below `/v1`. model: name of the registered model; selector: number or alias of a version, None: the split chooses.
    body: as it was sent, or the chat that a response is made by. unit: whom the split assigns, None: none was named; attributes: for the
    rules of the split. as_response: whether the answer is to be a response's.
    """

    kind: str
    model: str
    selector: int | str | None
    body: dict[str, Any]
    unit: str | None
    attributes: dict[str, str] | None
    as_response: bool = False

    @property
    def stream(self) -> bool:
        """Whether the answer is to come in pieces."""
        return bool(self.body.get("stream"))

    @property
    def wants_usage(self) -> bool:
        """Whether the last piece of a stream is to say how many tokens there were."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def split_key(self) -> str | None:
        """Key of the split: the unit, else the conversation, by what it began with, so that its turns stay on one version."""
        if self.unit is not None:
            return self.unit
        messages = self.body.get("messages")
        if not messages:
            return None
        opening = []
        for message in messages:
            opening.append(message)
            if isinstance(message, dict) and message.get("role") == "user":
                break
        return f"conversation-{hashlib.sha256(orjson.dumps(opening)).hexdigest()[:32]}"

    @property
    def max_tokens(self) -> int | None:
        """Bound on the answer that the caller says."""
        found = self.body.get("max_completion_tokens", self.body.get("max_tokens"))
        return None if found is None else int(found)

    def for_engine(self) -> dict[str, Any]:
        """The body without what is meant for the door alone, and with one name for each bound."""
        body = {name: value for name, value in self.body.items() if name not in _NOT_FOR_ENGINES}
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        return body


def parse_request(kind: str, content: bytes | bytearray, *, unit: str | None = None) -> Ask:
    """Read the body of a request. unit: of its header, before that of the body. Raises: ApiRefusal, naming the field."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ApiRefusal(f"body: not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiRefusal(f"body: expected an object, got {body!r:.80}")
    body = {name: value for name, value in body.items() if value is not None}
    if kind == EMBEDDING and "dimensions" in body:
        raise ApiRefusal(
            "dimensions: vectors are as long as the model makes them; leave it out",
            param="dimensions", code="unsupported_parameter",
        )  # fmt: skip
    if unknown := sorted(body.keys() - _FIELDS[kind]):
        raise ApiRefusal(
            f"{unknown[0]:.80}: not a field of /v1/{kind}, which has {', '.join(sorted(_FIELDS[kind]))}",
            param=unknown[0][:80],
            code="unknown_parameter",
        )
    as_response = kind == RESPONSE
    if as_response:
        kind, body = CHAT, responses.chat_of(body)
    _check_types(kind, body)
    check_numbers(body)
    check_logprobs(body, is_chat=kind == CHAT)
    if kind == CHAT:
        body["messages"] = joined_messages(body["messages"])
    elif kind == EMBEDDING:
        body["input"] = texts_to_embed(body["input"])
    model, selector = _model(body)
    given = unit or body.get("safety_identifier") or body.get("user")
    return Ask(kind, model, selector, body, given, _attributes(body), as_response)


def _model(body: dict[str, Any]) -> tuple[str, int | str | None]:
    named = body.get("model")
    if not isinstance(named, str) or not named:
        raise ApiRefusal(
            f"model: expected the name of a registered model, as in 'support' or 'support@3', got {named!r:.80}",
            param="model",
        )
    name, at, version = named.partition("@")
    if not at:
        return name, None
    return name, int(version) if version.isascii() and version.isdigit() else version


def _check_types(kind: str, body: dict[str, Any]) -> None:
    wanted: dict[str, tuple[type, ...]] = {
        "messages": (list,), "prompt": (str,), "input": (str, list), "stream": (bool,), "variables": (dict,),
        "stream_options": (dict,), "user": (str,), "safety_identifier": (str,), "max_tokens": (int,),
        "max_completion_tokens": (int,), "tools": (list,), "response_format": (dict,),
    }  # fmt: skip
    for name, types in wanted.items():
        value = body.get(name)
        if value is not None and not (isinstance(value, types) and (types == (bool,) or value is not True)):
            words = " or ".join(each.__name__ for each in types)
            raise ApiRefusal(f"{name}: expected {words}, got {value!r:.80}", param=name)
    check_tier(body)
    needed = {CHAT: "messages", COMPLETION: "prompt", EMBEDDING: "input"}[kind]
    if needed not in body:
        raise ApiRefusal(f"{needed}: missing", param=needed, code="missing_required_parameter")
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name, 1) < 1:
            raise ApiRefusal(f"{name}: expected at least 1, got {body[name]}", param=name)
    if body.get("n", 1) != 1:
        raise ApiRefusal(f"n: one answer is given for a request, got {body['n']!r:.80}", param="n")
    if len(body.get("user", "")) > _MAX_UNIT:
        raise ApiRefusal(f"user: at most {_MAX_UNIT} characters", param="user")


def _attributes(body: dict[str, Any]) -> dict[str, str] | None:
    found = body.get("attributes")
    if found is None:
        return None
    if (
        not isinstance(found, dict)
        or len(found) > _MAX_ATTRIBUTES
        or not all(isinstance(value, str) and len(value) <= _MAX_UNIT for value in found.values())
    ):
        raise ApiRefusal(
            f"attributes: expected an object of at most {_MAX_ATTRIBUTES} texts, got {found!r:.80}",
            param="attributes",
        )
    return found
