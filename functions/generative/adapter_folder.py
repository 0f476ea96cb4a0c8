"""Adapters as folders that `peft` saves: which of their files a version has, and whether vLLM would load them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final, Literal, get_args

from pydantic import BaseModel, Field, ValidationError

from toque.functions.generative.errors import GenerativeError
from toque.functions.generative.safetensors_header import read_header
from toque.functions.generative.version_files import (
    ADAPTER_FOLDER,
    SETTINGS,
    AdapterRank,
    EngineSettings,
    read_settings,
)
from toque.registry.models import ModelVersion
from toque.registry.registry import Registry

__all__ = ["CONFIG", "adapter_files", "check_adapter", "check_shapes", "kept_settings"]

CONFIG: Final = f"{ADAPTER_FOLDER}/adapter_config.json"
"""Name of a folder's configuration among the files of a version."""
_NUMBERS: Final = f"{ADAPTER_FOLDER}/adapter_model.safetensors"

_SIDES: Final = {"A.weight": 1, "B.weight": 0}
"""Dimension that a part of an adapter shares with the weight: A reads what it reads, B writes what it writes."""


class _Config(BaseModel):
    """What matters here of `adapter_config.json`."""

    peft_type: Literal["LORA"]
    r: int = Field(ge=1)
    rank_pattern: dict[str, int] = {}
    use_dora: Literal[False] = False
    modules_to_save: None = None


def adapter_files(folder: Path) -> dict[str, Path]:
    """Files of an adapter's folder, by the names that a version has them by. Raises: GenerativeError if one is not there."""
    found = {name: folder / Path(name).name for name in (CONFIG, _NUMBERS)}
    for path in found.values():
        if not path.is_file():
            raise GenerativeError(
                f"adapter: {folder} has no {path.name}; save the adapter by `peft`'s save_pretrained, without pickles"
            )
    return found


def check_adapter(config: Path, settings: EngineSettings) -> None:
    """Refuse an adapter that vLLM would not load with the settings. config: file. Raises: GenerativeError."""
    try:
        found = _Config.model_validate_json(config.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise GenerativeError(
            f"adapter: {config}, {where}: {first['msg']}; vLLM loads a LoRA without DoRA and without whole modules beside it"
        ) from error
    rank = max([found.r, *found.rank_pattern.values()])
    if rank > settings.adapter_rank:
        room = next((each for each in get_args(AdapterRank) if each >= rank), None)
        if room is None:
            raise GenerativeError(
                f"adapter: its rank is {rank}, and vLLM takes {get_args(AdapterRank)[-1]} at most"
            )
        raise GenerativeError(
            f"adapter: its rank is {rank}, and the version's engine has room for adapter_rank={settings.adapter_rank}; register the "
            f"weights with EngineSettings(adapter_rank={room}) and `keep` that version, so that both share an engine"
        )
    if settings.adapter_scale != 1:
        raise GenerativeError(
            f"adapter_scale: {settings.adapter_scale:g} is for adapters as GGUF; vLLM's strength is lora_alpha of {config.name}"
        )


def check_shapes(weights: Path, adapter: Path) -> None:
    """Refuse an adapter of other weights than those beside it, by the shapes of what both have.

    vLLM takes one, and then answers nonsense or ends. weights, adapter: folders with safetensors. Raises: GenerativeError.
    """
    known = _shapes(weights)
    for name, shape in _shapes(adapter).items():
        layer, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        whole = known.get(f"{layer}.weight")
        if whole is None or part not in _SIDES:
            continue
        side = _SIDES[part]
        if shape[side] != whole[side]:
            raise GenerativeError(
                f"adapter: {name} has shape {shape}, and {layer}.weight has {whole}: it was made for other weights; register a "
                "version that keeps those"
            )


def kept_settings(registry: Registry, kept: ModelVersion | None) -> EngineSettings:
    """Settings of a version that is kept; the defaults if there is none, or it has none."""
    if kept is None or SETTINGS not in kept.files:
        return EngineSettings()
    with tempfile.TemporaryDirectory(prefix="toque-settings-") as folder:
        registry.download(kept.model, kept.version, folder, paths=[SETTINGS])
        return read_settings(Path(folder))


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a folder's safetensors. Raises: GenerativeError if one of the files is damaged."""
    files = (read_header(file).tensors for file in folder.glob("*.safetensors"))
    return {name: entry.shape for tensors in files for name, entry in tensors.items()}
