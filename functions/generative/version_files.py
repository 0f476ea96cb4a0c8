"""Files of a generative version: weights, adapter, prompt and the engine's settings.

An adapter that `peft` saved is checked for whether vLLM would load it. The header of a safetensors file (type, shape and place of
each tensor) is read without the numbers and without torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, Field, NonNegativeInt, TypeAdapter, ValidationError
from pydantic_core import from_json

from toque.functions.generative.prompt import GenerativeError, Prompt
from toque.registry.models import ModelVersion, Signature, TensorSpec
from toque.registry.registry import Registry
from toque.registry.store import Blob

WEIGHTS: Final = "weights.gguf"
WEIGHTS_FOLDER: Final = "weights"
"""Folder of Hugging Face with weights as safetensors, in place of `WEIGHTS`, for engines that read one, such as vLLM."""
ADAPTER: Final = "adapter.gguf"
"""A LoRA of the weights beside it."""
ADAPTER_FOLDER: Final = "adapter"
"""Folder of a LoRA as `peft` saves it, in place of `ADAPTER`, beside weights in a folder."""
CHAT_TEMPLATE: Final = "chat_template.jinja"
"""How messages and tools become the text that the model reads, in place of the template in the weights."""
PROMPT: Final = "prompt.json"
SETTINGS: Final = "engine.json"
AdapterRank = Literal[0, 8, 16, 32, 64, 128, 256, 320, 512]
"""Largest rank of the adapters that vLLM has room for."""
CONFIG: Final = f"{ADAPTER_FOLDER}/adapter_config.json"
"""Name of a folder's configuration among the files of a version."""
_ADAPTER_NUMBERS: Final = f"{ADAPTER_FOLDER}/adapter_model.safetensors"
_ADAPTER_SIDES: Final = {"A.weight": 1, "B.weight": 0}
"""Dimension that a part of an adapter shares with the weight: A reads what it reads, B writes what it writes."""
_HEADER_LENGTH_BYTES: Final = 8
"""Size of the header's length, little-endian, with which a file begins."""
_METADATA: Final = "__metadata__"


def _spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec.model_validate({"name": name, "datatype": datatype, "shape": [-1, *shape]})


CHAT: Final = Signature(
    kind="chat",
    inputs=[_spec("messages", "BYTES", 1), _spec("parameters", "BYTES", 1)],
    outputs=[
        _spec("message", "BYTES", 1),
        _spec("finish_reason", "BYTES", 1),
        _spec("tokens", "INT64", 3),
        _spec("timings_ms", "FP64", 2),
    ],
)
"""Signature of every generative version: what the prediction log keeps of a request.

messages, parameters, message: JSON, as the caller sent them and was answered. tokens: of the prompt, of those that were cached,
and of the answer. timings_ms: until the first token, and between two.
"""


class EngineSettings(BaseModel, frozen=True, extra="forbid"):
    """How much an engine holds for a version: it is what its memory is made of, beside the weights.

    context_length: tokens of one request, prompt and answer together. slots: requests at once; others wait for one.
    max_tokens: of an answer, where neither request nor prompt says. adapter_scale: strength of the adapter.
    task: "generate" texts; or "embed", make embeddings alone, for which vLLM needs an engine of its own.
    tool_parser: name of vLLM's parser for the way in which the model writes calls of tools, such as "hermes"; None: vLLM takes no tools.
    llama.cpp tells it by the chat template. adapter_rank: largest rank of the adapters that vLLM loads beside the weights, for which it
    keeps room; 0: it loads none. Versions that differ in an adapter alone share its engine. idle_s: seconds without a request after
    which the engine ends, and starts again for the next; 0: it stays. share_weights: whether engines of llama.cpp leave weights as they
    are in the file, which is in memory once then; else each lays some kinds, such as Q4_0, out for the processor, which is faster.
    """

    context_length: int = Field(default=2_048, ge=64, le=1 << 20)
    slots: int = Field(default=8, ge=1, le=256)
    max_tokens: int = Field(default=512, ge=1)
    adapter_scale: float = Field(default=1.0, ge=0, le=10)
    task: Literal["generate", "embed"] = "generate"
    tool_parser: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)
    adapter_rank: AdapterRank = 0
    idle_s: int = Field(default=0, ge=0, le=1 << 20)
    share_weights: bool = False

    def to_json(self) -> str:
        """Write the settings whole, so that a later release's defaults change no version.

        Those that an earlier release does not know are left out where they are the default: it reads the file then.
        """
        fields = type(self).model_fields
        left_out = {
            name
            for name in ("task", "tool_parser", "adapter_rank", "idle_s", "share_weights")
            if getattr(self, name) == fields[name].default
        }
        return self.model_dump_json(indent=1, exclude=left_out)


def is_generative(version: ModelVersion | Mapping[str, Any]) -> bool:
    """Whether a version, or the JSON of one, is a language model's."""
    if isinstance(version, ModelVersion):
        return version.signature is not None and version.signature.kind == "chat"
    return (version.get("signature") or {}).get("kind") == "chat"


def engine_files(version: ModelVersion) -> dict[str, Blob]:
    """Files of a version that its engine reads, by name."""
    return {
        name: blob
        for name, blob in sorted(version.files.items())
        if name in (WEIGHTS, ADAPTER, CHAT_TEMPLATE)
        or name.startswith((f"{WEIGHTS_FOLDER}/", f"{ADAPTER_FOLDER}/"))
    }


def weights_in(names: Collection[str]) -> str | None:
    """Name of the weights among the files of a version, `WEIGHTS` or `WEIGHTS_FOLDER`; None if there are none."""
    if WEIGHTS in names:
        return WEIGHTS
    return WEIGHTS_FOLDER if any(name.startswith(f"{WEIGHTS_FOLDER}/") for name in names) else None


def read_prompt(folder: Path) -> Prompt:
    """Read the prompt of a version from the folder of its files; empty if it has none. Raises: pydantic.ValidationError."""
    file = folder / PROMPT
    return Prompt.model_validate_json(file.read_bytes()) if file.is_file() else Prompt()


def read_settings(folder: Path) -> EngineSettings:
    """Read the engine's settings of a version from the folder of its files. Raises: pydantic.ValidationError."""
    file = folder / SETTINGS
    return EngineSettings.model_validate_json(file.read_bytes()) if file.is_file() else EngineSettings()


class _Config(BaseModel):
    """What matters here of `adapter_config.json`."""

    peft_type: Literal["LORA"]
    r: int = Field(ge=1)
    rank_pattern: dict[str, int] = {}
    use_dora: Literal[False] = False
    modules_to_save: None = None


def adapter_files(folder: Path) -> dict[str, Path]:
    """Files of an adapter's folder, by the names that a version has them by. Raises: GenerativeError if one is not there."""
    found = {name: folder / Path(name).name for name in (CONFIG, _ADAPTER_NUMBERS)}
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
        if whole is None or part not in _ADAPTER_SIDES:
            continue
        side = _ADAPTER_SIDES[part]
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


class TensorEntry(BaseModel, frozen=True):
    """One tensor of a file. dtype: as `F32`. data_offsets: bytes from the header's end to its begin and its end."""

    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


_ENTRIES: Final = TypeAdapter(dict[str, TensorEntry])


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a file says of its tensors, by name. data_at: byte of the file at which their numbers begin."""

    tensors: dict[str, TensorEntry]
    data_at: int


def read_header(file: Path) -> SafetensorsHeader:
    """Read the header of a safetensors file. Raises: GenerativeError if the file ends within it, or it is damaged."""
    with file.open("rb") as opened:
        start = opened.read(_HEADER_LENGTH_BYTES)
        if len(start) < _HEADER_LENGTH_BYTES:
            raise _damaged(file, f"it ends after {len(start)} bytes, within the length of its header")
        length, size = int.from_bytes(start, "little"), file.stat().st_size
        if length > size - _HEADER_LENGTH_BYTES:  # before it is read: a damaged length may be any number
            raise _damaged(file, f"its header of {length} bytes goes beyond its end at {size}")
        header = opened.read(length)
    try:
        found = from_json(header)
    except ValueError as error:
        raise _damaged(file, f"its header is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise _damaged(file, f"its header is a JSON {type(found).__name__} and no object")
    found.pop(_METADATA, None)
    try:
        return SafetensorsHeader(_ENTRIES.validate_python(found), _HEADER_LENGTH_BYTES + length)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(file, f"its header has at {where}: {first['msg']}") from error


def _damaged(file: Path, what: str) -> GenerativeError:
    return GenerativeError(
        f"{file.name}: no file of safetensors, {what}; copy it again, or save it anew by save_pretrained"
    )


__all__ = [
    "ADAPTER",
    "ADAPTER_FOLDER",
    "CHAT",
    "CHAT_TEMPLATE",
    "CONFIG",
    "PROMPT",
    "SETTINGS",
    "WEIGHTS",
    "WEIGHTS_FOLDER",
    "AdapterRank",
    "EngineSettings",
    "SafetensorsHeader",
    "TensorEntry",
    "adapter_files",
    "check_adapter",
    "check_shapes",
    "engine_files",
    "is_generative",
    "kept_settings",
    "read_header",
    "read_prompt",
    "read_settings",
    "weights_in",
]
