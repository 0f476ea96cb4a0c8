"""OpenAI's Responses API by chats: what is asked becomes messages, and the answer of a chat its items. Without I/O.

Nothing is kept between two requests: earlier turns are sent again, as items of `input`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from toque.ray_apps.generative.openai.errors import ApiRefusal

__all__ = ["FIELDS", "chat_of", "items_of", "response_of"]

_SAME: Final = (
    "model", "user", "safety_identifier", "metadata", "attributes", "variables", "stream", "temperature", "top_p",
    "parallel_tool_calls", "seed", "top_k", "min_p", "repeat_penalty",
    "service_tier", "chat_template_kwargs",
)  # fmt: skip
_IGNORED: Final = ("store", "include", "prompt_cache_key", "stream_options")
FIELDS: Final = frozenset(
    {*_SAME, *_IGNORED, "input", "instructions", "max_output_tokens", "tools", "tool_choice", "text", "reasoning", "truncation"}
)  # fmt: skip
_TEXTS: Final = ("input_text", "output_text", "text")
_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


def chat_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Make the body of a chat from that of a response. Raises: ApiRefusal, naming the field."""
    found = {name: body[name] for name in _SAME if name in body}
    found["messages"] = _messages(body)
    if "max_output_tokens" in body:
        found["max_completion_tokens"] = _count(body["max_output_tokens"], "max_output_tokens")
    if "tools" in body:
        found["tools"] = [_tool(each) for each in _list(body["tools"], "tools")]
    choice = body.get("tool_choice")
    if choice is not None:
        is_named = isinstance(choice, dict) and "name" in choice
        found["tool_choice"] = (
            {"type": "function", "function": {"name": choice["name"]}} if is_named else choice
        )
    wanted = _object(body.get("text", {}), "text").get("format")
    if wanted is not None:
        found["response_format"] = _format(_object(wanted, "text.format"))
    effort = _object(body.get("reasoning", {}), "reasoning").get("effort")
    if effort is not None:
        found["reasoning_effort"] = effort
    if body.get("truncation", "disabled") != "disabled":
        raise ApiRefusal(
            f"truncation: expected 'disabled', got {body['truncation']!r:.80}: nothing is left out of a prompt",
            param="truncation",
        )
    return found


def response_of(
    asked: Mapping[str, Any],
    response_id: str,
    model: str,
    output: Sequence[Any],
    *,
    usage: Any,
    finish_reason: str | None,
) -> dict[str, Any]:
    """Make the document of a response. asked: the chat; output: its items; finish_reason: of the chat, None while it goes on."""
    cut = _INCOMPLETE.get(finish_reason or "")
    status = "in_progress" if finish_reason is None else "incomplete" if cut else "completed"
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": cut} if cut else None,
        "instructions": None,
        "model": model,
        "output": list(output),
        "parallel_tool_calls": bool(asked.get("parallel_tool_calls", True)),
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": [{"type": "function", **each["function"]} for each in asked.get("tools", ())],
        "temperature": asked.get("temperature"),
        "top_p": asked.get("top_p"),
        "metadata": asked.get("metadata") or {},
        "usage": None if finish_reason is None else _usage(usage or {}),
    }


def items_of(
    message: Mapping[str, Any], response_id: str, *, status: str = "completed"
) -> list[dict[str, Any]]:
    """List the items of an assistant's message: its text or refusal, and its calls of tools."""
    found: list[dict[str, Any]] = []
    if message.get("refusal"):
        refusal = {"type": "refusal", "refusal": message["refusal"]}
        found.append({**text_item(response_id, None, status=status), "content": [refusal]})
    if message.get("content"):
        found.append(text_item(response_id, message["content"], status=status))
    for index, call in enumerate(message.get("tool_calls") or ()):
        found.append(call_item(response_id, index, call, status=status))
    return found


def text_item(response_id: str, text: str | None, *, status: str) -> dict[str, Any]:
    """Make the item of a text. text: None before it has a part."""
    return {
        "type": "message",
        "id": f"msg_{response_id}",
        "role": "assistant",
        "status": status,
        "content": [] if text is None else [text_part(text)],
    }


def text_part(text: str) -> dict[str, Any]:
    """Make the one part of a text's item."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(response_id: str, index: int, call: Mapping[str, Any], *, status: str) -> dict[str, Any]:
    """Make the item of a tool's call."""
    function = call.get("function") or {}
    return {
        "type": "function_call",
        "id": f"fc_{response_id}_{index}",
        "call_id": call.get("id") or f"call_{response_id}_{index}",
        "name": function.get("name", ""),
        "arguments": function.get("arguments", ""),
        "status": status,
    }


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if body.get("instructions") is not None:
        found.append({"role": "system", "content": _text(body["instructions"], "instructions")})
    given = body.get("input")
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    for place, item in enumerate(_list(given, "input")):
        _add_item(found, _object(item, f"input[{place}]"), f"input[{place}]")
    return found


def _add_item(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    kind = item.get("type", "message")
    if kind == "message" and isinstance(item.get("role"), str):
        role = "system" if item["role"] == "developer" else item["role"]
        messages.append({"role": role, "content": _text(item.get("content"), f"{where}.content")})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        last = messages[-1] if messages else {}
        if "tool_calls" in last:  # called beside the one before
            last["tool_calls"].append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        output = _text(item.get("output"), f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    else:
        raise ApiRefusal(
            f"{where}: expected a message with a role, a function_call or a function_call_output, got {kind!r:.80}",
            param=where,
        )


def _text(given: Any, where: str) -> str:
    """Join the parts of a text. Raises: ApiRefusal for parts that are none."""
    if isinstance(given, str):
        return given
    parts = [_object(each, where) for each in _list(given, where)]
    for part in parts:
        if part.get("type") not in _TEXTS or not isinstance(part.get("text"), str):
            raise ApiRefusal(
                f"{where}: only texts are taken, got a part of type {part.get('type')!r:.80}", param=where
            )
    return "".join(part["text"] for part in parts)


def _tool(given: Any) -> dict[str, Any]:
    tool = _object(given, "tools")
    if tool.get("type") != "function" or not isinstance(tool.get("name"), str):
        raise ApiRefusal(
            f"tools: expected functions with a name, got {tool.get('type')!r:.80}: no tools are run here",
            param="tools",
        )
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _format(wanted: Mapping[str, Any]) -> dict[str, Any]:
    if wanted.get("type") != "json_schema":
        return dict(wanted)
    schema = {name: value for name, value in wanted.items() if name != "type"}
    return {"type": "json_schema", "json_schema": schema}


def _usage(chat: Mapping[str, Any]) -> dict[str, Any]:
    asked, made = int(chat.get("prompt_tokens") or 0), int(chat.get("completion_tokens") or 0)
    cached = int((chat.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": asked + made,
    }


def _count(given: Any, where: str) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise ApiRefusal(f"{where}: expected a whole number from 1 on, got {given!r:.80}", param=where)
    return given


def _list(given: Any, where: str) -> list[Any]:
    if not isinstance(given, list):
        raise ApiRefusal(f"{where}: expected a text or a list, got {given!r:.80}", param=where)
    return given


def _object(given: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise ApiRefusal(f"{where}: expected an object, got {given!r:.80}", param=where)
    return given
