"""Runs the tools that a language model calls, each in a span by OpenTelemetry's conventions for generative models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import to_json

from toque.functions.generative.errors import GenerativeError
from toque.functions.runtime.spans import span

__all__ = ["call_tool"]


def call_tool(call: Mapping[str, Any], tools: Mapping[str, Callable[..., Any]]) -> dict[str, str]:
    """Run a tool that a model called, and make the message that tells the model what it gave.

    call: one of an answer's `tool_calls`, as the API has it. tools: what may be called, by name; it gets the arguments by keyword, and its
    result is sent as it is if it is a text, else as JSON. In a run of a function that is traced the call is a span of it, without
    arguments and result.
    Raises: GenerativeError for a tool that there is not, or arguments that are no object; and what the tool raises.
    """
    name, call_id = call["function"]["name"], str(call["id"])
    if name not in tools:
        raise GenerativeError(f"tool {name!r:.80} is not one of {', '.join(sorted(tools))}")
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except json.JSONDecodeError as error:
        raise GenerativeError(f"arguments of tool {name!r} are not JSON: {error}; ask again") from error
    if not isinstance(arguments, dict):
        raise GenerativeError(
            f"arguments of tool {name!r}: expected an object, got {arguments!r:.80}; ask again"
        )
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": call_id,
    }
    with span(f"execute_tool {name}", **attributes):
        result = tools[name](**arguments)
    content = result if isinstance(result, str) else to_json(result).decode()
    return {"role": "tool", "tool_call_id": call_id, "content": content}
