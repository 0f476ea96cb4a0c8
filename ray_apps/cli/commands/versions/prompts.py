"""`toque prompts`: prompts of language models, each a version of its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toque.ray_apps.cli.arguments import MODEL, arg, limit
from toque.ray_apps.cli.command import Commands, Given, add, group
from toque.ray_apps.cli.errors import Failed
from toque.ray_apps.cli.names import ask
from toque.ray_apps.cli.output import columns, listing, message

_FILE = arg("file", "the prompt, as JSON or YAML")
_BASE = arg("--base VERSION", "version or alias that gives weights and settings (default: the champion)")
_DESCRIPTION = arg("--description", "what is new in it, for its card", default="")
_BEFORE, _AFTER = arg("before version", "version or alias"), arg("after version", "version or alias")


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    prompts = group(commands, "prompts", "Register, list and compare prompts of language models.")
    add(prompts, "register", _register, MODEL, _FILE, _BASE, _DESCRIPTION)
    add(prompts, "list", _list, MODEL, limit())
    add(prompts, "diff", _diff, MODEL, _BEFORE, _AFTER)


def _register(given: Given) -> None:
    """Register a prompt as the next version of a model."""
    prompt = _read(Path(given.file))
    made = ask(given, "register_prompt", prompt=prompt, base=given.base, description=given.description)
    message(given.output, f"{made['model']}@{made['version']}: prompt on version {made['parent']}", made)


def _list(given: Given) -> None:
    """List a model's versions with their prompts, the newest first."""
    found = ask(given, "list_prompts")
    listing(given.output, _PROMPTS, found, empty=f"{given.model} has no prompts", limit=given.limit)


def _diff(given: Given) -> None:
    """Show what differs between two prompts."""
    found = ask(given, "compare_prompts", before=given.before, after=given.after)
    message(given.output, found or "the prompts are equal", found)


def _read(path: Path) -> Any:
    """Read a prompt from a file of JSON or YAML. Raises: Failed."""
    import yaml  # late: few commands need it

    try:
        text = path.read_text()
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Failed(f"{path}: {error}") from error


def _beginning(row: dict[str, Any]) -> str:
    messages = row["prompt"].get("messages") or [{"content": ""}]
    text: str = messages[0]["content"]
    return " ".join(text.split())


_PROMPTS = columns(
    "version | on: parent | aliases | prompt | author | created: created_at",
    wide="description",
    texts="prompt | description",
    values={"prompt": _beginning},
)
