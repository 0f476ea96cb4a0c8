"""Prompts as functions: register one on weights that are there, list them, and tell two apart.

A version of a language model is whole: weights, adapter, prompt and settings.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from toque.functions.arguments import Model
from toque.functions.generative.prompt import GenerativeError, Prompt, difference
from toque.functions.generative.version_files import (
    ADAPTER,
    ADAPTER_FOLDER,
    CHAT,
    CHAT_TEMPLATE,
    CONFIG,
    PROMPT,
    SETTINGS,
    WEIGHTS,
    WEIGHTS_FOLDER,
    EngineSettings,
    adapter_files,
    check_adapter,
    is_generative,
    kept_settings,
    read_prompt,
    weights_in,
)
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.function import function
from toque.registry.models import Lineage, ModelVersion
from toque.registry.registry import Registry

_GGUF_MAGIC = b"GGUF"
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})


class PromptVersion(BaseModel, frozen=True):
    """A version of a language model, and its prompt.

    parent: version that gave what the prompt stands on. aliases: that point to the version.
    """

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
    model: Model,
    prompt: Annotated[Prompt, Field(description="Prompt that the new version answers with.")],
    base: Annotated[
        str | None,
        Field(
            description=(
                "Number or alias of the version that gives the rest; the champion, or else the newest, unless given."
            )
        ),
    ] = None,
    description: Annotated[
        str, Field(description="What is new in the version, for those who read of it.")
    ] = "",
) -> PromptVersion:
    """Register a prompt as the next version of a language model, with the weights, adapter and settings of another version.

    It takes no traffic by that.
    Raises: NotFound; GenerativeError if the model has no version of a language model.
    """
    registry = context().registry()
    made = register_generative(
        registry, model, prompt=prompt, keep=_base(registry, model, base), description=description
    )
    return _shown(registry, made)


@function(
    http=True,
    role="viewer",
    timeout_s=120,
    command="prompts list MODEL",
    view=View(
        columns="version | on: parent | aliases | prompt: prompt.messages?.0.content | author | created: created_at",
        wide="description",
        texts="prompt | description",
        empty="{model} has no prompts",
    ),
)
def list_prompts(model: Model) -> list[PromptVersion]:
    """List the versions of a language model with their prompts, the newest first. Raises: NotFound."""
    registry = context().registry()
    return [_shown(registry, each) for each in reversed(registry.list_versions(model)) if is_generative(each)]


@function(
    http=True,
    role="viewer",
    timeout_s=120,
    command="prompts diff MODEL BEFORE AFTER",
    view=View(text="{result}", empty="the prompts are equal"),
)
def compare_prompts(
    model: Model,
    before: Annotated[str, Field(description="Number or alias of the version that is compared with.")],
    after: Annotated[str, Field(description="Number or alias of the version whose changes are shown.")],
) -> str:
    """Show what differs between the prompts of two versions, as a unified diff. Raises: NotFound."""
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


def register_generative(
    registry: Registry,
    model: str,
    *,
    weights: Path | None = None,
    adapter: Path | None = None,
    chat_template: str | None = None,
    prompt: Prompt | None = None,
    settings: EngineSettings | None = None,
    keep: int | str | None = None,
    description: str = "",
    tags: Mapping[str, str] | None = None,
    lineage: Lineage | None = None,
    key: str | None = None,
) -> ModelVersion:
    """Register a version of a language model; a model of a new name is made.

    weights, adapter: GGUF files; or, for vLLM, a Hugging Face folder of safetensors and one of a LoRA as `peft` saves it, of which the
    configuration and the numbers are taken.
    chat_template: in Jinja, in place of that in the weights, such as one with a place for tools. keep: an earlier version by number or alias, which gives what is left out here; its weights
    are the same content and are not sent again.
    Raises: GenerativeError for files that are no GGUF, a folder that an engine could not read, a version without weights, or with two,
    and an adapter that its engine would not load; NotFound for `keep`.
    """
    given = _given_files(weights, adapter)
    registry.create_model(model, exist_ok=True)
    kept = None if keep is None else registry.get_version(model, keep)
    names = frozenset[str]() if kept is None else frozenset(kept.files)
    _check_weights({*given}, names)
    _check_adapter({*given} | names)
    if (config := given.get(CONFIG)) is not None:
        check_adapter(config, settings or kept_settings(registry, kept))
    with tempfile.TemporaryDirectory(prefix="toque-generative-") as folder:
        for name, path in given.items():
            _place(path, Path(folder) / name)
        if chat_template is not None:
            Path(folder, CHAT_TEMPLATE).write_text(chat_template)
        if prompt is not None:
            Path(folder, PROMPT).write_text(prompt.model_dump_json(indent=1, exclude_defaults=True))
        if settings is not None or kept is None:
            Path(folder, SETTINGS).write_text((settings or EngineSettings()).to_json())
        return registry.create_version(
            model,
            folder,
            signature=CHAT,
            description=description,
            tags=tags,
            lineage=lineage or Lineage(parent=None if kept is None else kept.version),
            key=key,
            keep=None if kept is None else kept.version,
        )


def _given_files(weights: Path | None, adapter: Path | None) -> dict[str, Path]:
    """Name the files that are given as a version has them, and check what they are."""
    given = {name: path for name, path in ((WEIGHTS, weights), (ADAPTER, adapter)) if path is not None}
    if weights is not None and weights.is_dir():
        del given[WEIGHTS]
        given |= _folder_files(weights)
    if adapter is not None and adapter.is_dir():
        del given[ADAPTER]
        given |= adapter_files(adapter)
    for name in given.keys() & {WEIGHTS, ADAPTER}:
        _check_gguf(name, given[name])
    return given


def _folder_files(folder: Path) -> dict[str, Path]:
    files = {each.name: each for each in sorted(folder.iterdir()) if each.is_file()}
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise GenerativeError(
            f"weights: {folder} has no config.json or no *.safetensors beside it; save the model by save_pretrained"
        )
    if pickles := [name for name, each in files.items() if each.suffix in _PICKLE_SUFFIXES]:
        raise GenerativeError(f"weights: {folder} has {pickles[0]}, which may execute code; leave it out")
    return {f"{WEIGHTS_FOLDER}/{name}": each for name, each in files.items()}


def _check_weights(given: AbstractSet[str], kept: AbstractSet[str]) -> None:
    """Refuse a version without weights, and one in which those that are kept would stand beside those that are given."""
    if weights_in(given | kept) is None:
        raise GenerativeError(
            "weights: missing; give a GGUF file or a folder of safetensors, or `keep` a version that has one"
        )
    old = {name for name in kept if weights_in([name]) is not None} - given
    if old and weights_in(given) is not None:
        raise GenerativeError(
            f"weights: the version to keep has {min(old)}, which would stand beside those that are given; leave out `keep`"
        )


def _check_adapter(names: AbstractSet[str]) -> None:
    """Refuse an adapter that is not of the kind of the weights, or a second one."""
    in_folder, is_file = CONFIG in names, ADAPTER in names
    if (is_file and weights_in(names) == WEIGHTS_FOLDER) or (in_folder and weights_in(names) == WEIGHTS):
        raise GenerativeError(
            "adapter: weights as GGUF take one as GGUF, and weights as a folder one as a folder that `peft` saved; "
            f"here are {weights_in(names)} and {ADAPTER if is_file else ADAPTER_FOLDER}"
        )


def _check_gguf(name: str, path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_GGUF_MAGIC)) != _GGUF_MAGIC:
            raise GenerativeError(f"{name}: {path} is no GGUF file; convert it with llama.cpp's converters")


def _place(source: Path, to: Path) -> None:
    """Give a file its name in the version: by a hard link where that works, since weights are large."""
    to.parent.mkdir(exist_ok=True)
    try:
        os.link(source.resolve(), to)
    except OSError:  # another file system
        shutil.copyfile(source, to)


__all__ = ["PromptVersion", "compare_prompts", "list_prompts", "register_generative", "register_prompt"]
