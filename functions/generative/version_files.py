"""Files of a generative version: weights, adapter, prompt and the engine's settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from toque.functions.generative.prompt import Prompt
from toque.registry.models import ModelVersion, Signature, TensorSpec
from toque.registry.store import Blob

__all__ = [
    "ADAPTER",
    "ADAPTER_FOLDER",
    "CHAT",
    "CHAT_TEMPLATE",
    "PROMPT",
    "SETTINGS",
    "WEIGHTS",
    "WEIGHTS_FOLDER",
    "AdapterRank",
    "EngineSettings",
    "engine_files",
    "is_generative",
    "read_prompt",
    "read_settings",
    "weights_in",
]

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


class EngineSettings(BaseModel):
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

    model_config = ConfigDict(frozen=True, extra="forbid")

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
