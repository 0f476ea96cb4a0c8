"""Tools of a request: whether the model would see them, and the one that a caller names."""

from __future__ import annotations

from typing import Any

from ray_apps.generative.openai.errors import ApiRefusal

__all__ = ["check_tools"]


def check_tools(body: dict[str, Any], missing: str | None) -> None:
    """Refuse tools that the model would never see; one that is named becomes the only one, which engines then require.

    body: changed in place. missing: why the engine has no tools, if it has none.
    Raises: ApiRefusal.
    """
    if not body.get("tools"):
        return
    if missing is not None:
        raise ApiRefusal(f"tools: {missing}", param="tools", code="unsupported_parameter")
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        body["tools"] = [each for each in body["tools"] if (each.get("function") or {}).get("name") == name]
        body["tool_choice"] = "required"
        body["parallel_tool_calls"] = False  # vLLM may else call it several times
        if not body["tools"]:
            raise ApiRefusal(f"tool_choice: there is no tool {name!r:.80}", param="tool_choice")
