"""Tools of a request: whether the model would see them, the one that a caller names, and a call that must come."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any, Final

import orjson

from toque.ray_apps.generative.openai.errors import ApiRefusal

__all__ = ["calls_by_schema", "check_tools", "with_call"]

_CHOICES: Final = ("none", "auto", "required")
_CALL: Final = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(.*)', re.DOTALL)


def check_tools(body: dict[str, Any], missing: str | None) -> None:
    """Refuse tools that the model would never see; one that is named becomes the only one, which must be called.

    body: changed in place. missing: why the engine has no tools, if it has none.
    Raises: ApiRefusal.
    """
    choice = body.get("tool_choice")
    is_named = isinstance(choice, dict)
    if not is_named and choice not in (None, *_CHOICES):
        raise ApiRefusal(
            f"tool_choice: expected {', '.join(_CHOICES)} or a function by its name, got {choice!r:.80}",
            param="tool_choice",
        )
    if not body.get("tools"):
        if is_named or choice == "required":
            raise ApiRefusal("tool_choice: a call is required, and there are no tools", param="tool_choice")
        return
    for place, tool in enumerate(body["tools"]):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ApiRefusal(
                f"tools[{place}].function: expected one with a name, got {tool!r:.80}", param="tools"
            )
        if not isinstance(function.get("parameters", {}), dict):
            raise ApiRefusal(f"tools[{place}].function.parameters: expected a JSON schema", param="tools")
    if missing is not None:
        raise ApiRefusal(f"tools: {missing}", param="tools", code="unsupported_parameter")
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        body["tools"] = [tool for tool in body["tools"] if tool["function"]["name"] == name]
        body["tool_choice"] = "required"
        body["parallel_tool_calls"] = False  # vLLM may else call it several times
        if not body["tools"]:
            raise ApiRefusal(f"tool_choice: there is no tool {name!r:.80}", param="tool_choice")


def calls_by_schema(body: dict[str, Any]) -> bool:
    """Have an engine that does not enforce a required call write one as JSON, by the schemas of the tools; `with_call` reads it.

    body: changed in place; the model still sees the tools. Returns: whether a call is required.
    """
    if body.get("tool_choice") != "required":
        return False
    functions = [tool["function"] for tool in body["tools"]]
    schemas = [
        _moved(function.get("parameters") or {"type": "object"}, f"#/$defs/{place}")
        for place, function in enumerate(functions)
    ]
    call = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/{place}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for place, function in enumerate(functions)
    ]
    schema = {"anyOf": call, "$defs": {str(place): schema for place, schema in enumerate(schemas)}}
    body["response_format"] = {"type": "json_schema", "json_schema": {"name": "call", "schema": schema}}
    body["tool_choice"] = "auto"
    return True


def with_call(message: Mapping[str, Any]) -> dict[str, Any]:
    """Read the call off a message that was written by `calls_by_schema`; the arguments of one that was cut end where it did."""
    match = _CALL.match(message.get("content") or "")
    if match is None:
        return dict(message)  # cut before there was a name
    try:
        call = orjson.loads(match[0])
        arguments = orjson.dumps(call["arguments"]).decode()
    except orjson.JSONDecodeError:
        arguments = match[2]
    function = {"name": orjson.loads(match[1]), "arguments": arguments}
    calls = [{"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}]
    return {**message, "content": None, "tool_calls": calls}


def _moved(schema: Any, to: str) -> Any:
    """Make the references of a schema, which count from its root, count from that of another one that has it at `to`."""
    if isinstance(schema, list):
        return [_moved(item, to) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: to + value[1:]
        if name == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, to)
        for name, value in schema.items()
    }
