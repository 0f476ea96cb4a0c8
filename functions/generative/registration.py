"""Registration of generative versions, each of which is whole: weights, adapter, prompt and settings."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from functions.generative.errors import GenerativeError
from functions.generative.prompt import Prompt
from functions.generative.version_files import (
    ADAPTER,
    CHAT,
    CHAT_TEMPLATE,
    PROMPT,
    SETTINGS,
    WEIGHTS,
    EngineSettings,
)
from registry.models import Lineage, ModelVersion
from registry.registry import Registry

__all__ = ["register_generative"]

_MAGIC = b"GGUF"


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

    weights, adapter: GGUF files. chat_template: in Jinja, in place of that in the weights, such as one with a place for tools. keep: an earlier version by number or alias, which gives what is left out here; its weights
    are the same content and are not sent again.
    Raises: GenerativeError for files that are no GGUF, and for a version without weights; NotFound for `keep`.
    """
    given = {name: path for name, path in ((WEIGHTS, weights), (ADAPTER, adapter)) if path is not None}
    for name, path in given.items():
        _check_gguf(name, path)
    registry.create_model(model, exist_ok=True)
    kept = None if keep is None else registry.get_version(model, keep)
    if WEIGHTS not in {*given, *(() if kept is None else kept.files)}:
        raise GenerativeError("weights: missing; give a GGUF file, or `keep` a version that has one")
    with tempfile.TemporaryDirectory(prefix="toque-generative-") as folder:
        for name, path in given.items():
            _place(path, Path(folder) / name)
        if chat_template is not None:
            Path(folder, CHAT_TEMPLATE).write_text(chat_template)
        if prompt is not None:
            Path(folder, PROMPT).write_text(prompt.model_dump_json(indent=1, exclude_defaults=True))
        if settings is not None or kept is None:
            Path(folder, SETTINGS).write_text((settings or EngineSettings()).model_dump_json(indent=1))
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


def _check_gguf(name: str, path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise GenerativeError(f"{name}: {path} is no GGUF file; convert it with llama.cpp's converters")


def _place(source: Path, to: Path) -> None:
    """Give a file its name in the version: by a hard link where that works, since weights are large."""
    try:
        os.link(source.resolve(), to)
    except OSError:  # another file system
        shutil.copyfile(source, to)
