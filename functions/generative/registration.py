"""Registration of generative versions, each of which is whole: weights, adapter, prompt and settings."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
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
    WEIGHTS_FOLDER,
    EngineSettings,
    weights_in,
)
from registry.models import Lineage, ModelVersion
from registry.registry import Registry

__all__ = ["register_generative"]

_MAGIC = b"GGUF"
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})


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

    weights, adapter: GGUF files; weights may be a Hugging Face folder of safetensors, too, for an engine that reads one.
    chat_template: in Jinja, in place of that in the weights, such as one with a place for tools. keep: an earlier version by number or alias, which gives what is left out here; its weights
    are the same content and are not sent again.
    Raises: GenerativeError for files that are no GGUF, a folder that an engine could not read, and a version without weights, or with
    two; NotFound for `keep`.
    """
    given = _given_files(weights, adapter)
    registry.create_model(model, exist_ok=True)
    kept = None if keep is None else registry.get_version(model, keep)
    _check_weights({*given}, frozenset() if kept is None else kept.files.keys())
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
        given = {**given, **_folder_files(weights)}
    for name in given.keys() & {WEIGHTS, ADAPTER}:
        _check_gguf(name, given[name])
    return given


def _folder_files(folder: Path) -> dict[str, Path]:
    files = {each.name: each for each in sorted(folder.iterdir()) if each.is_file()}
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise GenerativeError(
            f"weights: {folder} has no config.json or no *.safetensors beside it; save the model by save_pretrained"
        )
    if pickles := [name for name, each in files.items() if each.suffix in _PICKLES]:
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


def _check_gguf(name: str, path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise GenerativeError(f"{name}: {path} is no GGUF file; convert it with llama.cpp's converters")


def _place(source: Path, to: Path) -> None:
    """Give a file its name in the version: by a hard link where that works, since weights are large."""
    to.parent.mkdir(exist_ok=True)
    try:
        os.link(source.resolve(), to)
    except OSError:  # another file system
        shutil.copyfile(source, to)
