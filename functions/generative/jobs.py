"""Prompts as functions: register one on weights that are there, list them, and tell two apart."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from toque.functions.generative.errors import GenerativeError
from toque.functions.generative.prompt import Prompt, difference
from toque.functions.generative.registration import register_generative
from toque.functions.generative.version_files import PROMPT, is_generative, read_prompt
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function
from toque.registry.models import ModelVersion
from toque.registry.registry import Registry

__all__ = ["PromptVersion", "compare_prompts", "list_prompts", "register_prompt"]


class PromptVersion(BaseModel):
    """A version of a language model, and its prompt.

    parent: version that gave what the prompt stands on. aliases: that point to the version.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    parent: int | None
    aliases: tuple[str, ...]
    author: str
    created_at: datetime
    description: str
    prompt: Prompt


@function(http=True, timeout_s=120)
def register_prompt(
    model: str, prompt: Prompt, base: str | None = None, description: str = ""
) -> PromptVersion:
    """Register a prompt as the next version of a language model, with the weights, adapter and settings of another version.

    base: that version's number or alias; by default the champion, else the newest. It takes no traffic by that.
    Raises: NotFound; GenerativeError if the model has no version of a language model.
    """
    registry = context().registry()
    made = register_generative(
        registry, model, prompt=prompt, keep=_base(registry, model, base), description=description
    )
    return _shown(registry, made)


@function(http=True, role="viewer", timeout_s=120)
def list_prompts(model: str) -> list[PromptVersion]:
    """List the versions of a language model with their prompts, the newest first. Raises: NotFound."""
    registry = context().registry()
    return [_shown(registry, each) for each in reversed(registry.list_versions(model)) if is_generative(each)]


@function(http=True, role="viewer", timeout_s=120)
def compare_prompts(model: str, before: str, after: str) -> str:
    """Show what differs between the prompts of two versions, by number or alias, as a unified diff. Raises: NotFound."""
    registry = context().registry()
    one, other = (registry.get_version(model, _version(each)) for each in (before, after))
    names = [f"{model}@{each.version}" for each in (one, other)]
    return difference(_prompt(registry, one), _prompt(registry, other), names=names)


def _base(registry: Registry, model: str, base: str | None) -> int | str:
    if base is not None:
        return _version(base)
    state = registry.get_model(model)
    if state.traffic is not None:
        return state.traffic.champion.version
    found = [each.version for each in registry.list_versions(model) if is_generative(each)]
    if not found:
        raise GenerativeError(
            f"model: {model!r} has no version of a language model yet; register its weights first"
        )
    return found[-1]


def _version(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def _shown(registry: Registry, version: ModelVersion) -> PromptVersion:
    aliases = registry.get_model(version.model).aliases
    return PromptVersion(
        model=version.model,
        version=version.version,
        parent=version.lineage.parent,
        aliases=tuple(name for name, number in aliases.items() if number == version.version),
        author=version.author,
        created_at=version.created_at,
        description=version.description,
        prompt=_prompt(registry, version),
    )


def _prompt(registry: Registry, version: ModelVersion) -> Prompt:
    if PROMPT not in version.files:
        return Prompt()
    with tempfile.TemporaryDirectory(prefix="toque-prompt-") as folder:
        registry.download(version.model, version.version, folder, paths=[PROMPT])
        return read_prompt(Path(folder))
