"""Requests as clients send them: what is asked of which model, for whom, and in which service tier.

Unknown fields are refused, and so are values out of bounds: what no engine takes is refused before one is asked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from toque.functions.generative import TEMPLATE_ARGUMENTS, check_template_arguments
from toque.ray_apps.generative.openai import responses
from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.registry import SERVICE_TIERS, Limits, ServiceTier

CHAT, COMPLETION, EMBEDDING, RESPONSE = "chat/completions", "completions", "embeddings", "responses"
FIELD: Final = "service_tier"
_AUTO: Final = "auto"
_UNGRANTED: Final = SERVICE_TIERS.index("default")
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
        "response_format", "top_logprobs", "store", "reasoning_effort", "prompt_cache_key", TEMPLATE_ARGUMENTS, FIELD,
    },
    COMPLETION: _SHARED | _SAMPLING | {"prompt", "response_format", "prompt_cache_key", FIELD},
    EMBEDDING: _SHARED | {"input", "encoding_format"},
    RESPONSE: responses.FIELDS,
}  # fmt: skip
_NOT_FOR_ENGINES: Final = (
    *_SHARED, "variables", "max_completion_tokens", "store", "n", "stream_options", "prompt_cache_key", FIELD,
)  # fmt: skip
_MAX_UNIT: Final = 256
_MAX_ATTRIBUTES: Final = 64
_MOST_ID: Final = (1 << 31) - 1
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


@dataclass(frozen=True, slots=True)
class Ask:
    """One request for a language model.

    kind: path below `/v1`. model: name of the registered model; selector: number or alias of a version, None: the split chooses.
    body: as it was sent, or the chat that a response is made by. unit: whom the split assigns, None: none was named; attributes: for the
    rules of the split. as_response: whether the answer is to be a response's. token_ids: of a prompt that was sent as such, None: it is a
    text; `body` has the text of it once a version's tokenizer has read it.
    """

    kind: str
    model: str
    selector: int | str | None
    body: dict[str, Any]
    unit: str | None
    attributes: dict[str, str] | None
    as_response: bool = False
    token_ids: list[int] | None = None

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
        if self.token_ids is not None:
            body["prompt"] = self.token_ids
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
    as_response, token_ids = kind == RESPONSE, None
    if as_response:
        kind, body = CHAT, responses.chat_of(body)
    _check_types(kind, body)
    check_numbers(body)
    check_logprobs(body, is_chat=kind == CHAT)
    if kind == CHAT:
        body["messages"] = joined_messages(body["messages"])
    elif kind == EMBEDDING:
        body["input"] = texts_to_embed(body["input"])
    else:
        body["prompt"], token_ids = prompt_of(body["prompt"])
    model, selector = _model(body)
    given = unit or body.get("safety_identifier") or body.get("user")
    return Ask(kind, model, selector, body, given, _attributes(body), as_response, token_ids)


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
        "messages": (list,), "prompt": (str, list), "input": (str, list), "stream": (bool,), "variables": (dict,),
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
    if TEMPLATE_ARGUMENTS in body:
        try:
            check_template_arguments(body[TEMPLATE_ARGUMENTS])
        except ValueError as error:
            raise ApiRefusal(str(error), param=TEMPLATE_ARGUMENTS) from error
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


def prompt_of(given: Any) -> tuple[Any, list[int] | None]:
    """The prompt of a completion, as a text or token ids, or a list of one of either; with the ids, if it is such. Raises: ApiRefusal."""
    if isinstance(given, list) and given and all(isinstance(item, str | list) for item in given):
        if len(given) > 1:
            raise ApiRefusal(
                f"prompt: one is answered for a request, got {len(given)}; send a request for each",
                param="prompt",
            )
        given = given[0]
    if isinstance(given, str):
        return given, None
    if not given:
        raise ApiRefusal("prompt: expected a text or token ids, got none", param="prompt")
    for place, item in enumerate(given):
        if not _is_id(item):
            raise ApiRefusal(
                f"prompt[{place}]: expected a token id, a whole number from 0 to {_MOST_ID}, got {item!r:.80}; send the ids that the "
                "tokenizer of the version makes of the text, or the text",
                param="prompt",
            )
    return given, given


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_ID


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


def check_tier(body: Mapping[str, Any]) -> None:
    """Check the field of a request. Raises: ApiRefusal with the values there are."""
    if body.get(FIELD, _AUTO) not in (_AUTO, *SERVICE_TIERS):
        raise ApiRefusal(
            f"{FIELD}: expected auto, {', '.join(SERVICE_TIERS)}, got {body[FIELD]!r:.80}", param=FIELD
        )


def granted_tier(body: Mapping[str, Any], bounds: Sequence[tuple[str, Limits]]) -> ServiceTier:
    """The tier that a request waits by. bounds: of its token and workspace; none at all where authentication is off.

    Without one of its own, or with `auto`, a request has the tier `default`, or that which it is bounded to. Raises: ApiRefusal 403 if
    it asks for more than it may.
    """
    named = [(SERVICE_TIERS.index(each.service_tier), name) for name, each in bounds if each.service_tier]
    most, whose = min(named, default=(_UNGRANTED, bounds[0][0] if bounds else ""))
    asked = body.get(FIELD, _AUTO)
    if asked == _AUTO:
        return SERVICE_TIERS[min(most, _UNGRANTED)]
    rank = SERVICE_TIERS.index(asked)
    if bounds and rank > most:
        raise ApiRefusal(
            f"{FIELD}: {asked!r} is more than {whose} may ask for, which is {SERVICE_TIERS[most]!r}; leave the field out, or have "
            "an admin allow more (--service-tier)",
            status=403, param=FIELD,
        )  # fmt: skip
    return SERVICE_TIERS[rank]


__all__ = [
    "CHAT",
    "COMPLETION",
    "EMBEDDING",
    "FIELD",
    "RESPONSE",
    "ROLES",
    "Ask",
    "check_logprobs",
    "check_numbers",
    "check_tier",
    "granted_tier",
    "joined_messages",
    "parse_request",
    "prompt_of",
    "texts_to_embed",
]
