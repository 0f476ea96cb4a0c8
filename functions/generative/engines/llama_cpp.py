"""llama.cpp as an engine: its command line, and how its prompts are counted."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from toque.functions.generative import EngineSettings
from toque.functions.generative.engines.engine import (
    MODEL_NAME,
    NO_PLACE,
    AdapterLoader,
    EmbeddingBounds,
    EngineRefusal,
    EngineSpec,
    answered,
)

__all__ = ["LlamaCpp"]

_ASKED_WRONGLY: Final = 400
_BATCH: Final = 512
"""Tokens that it computes at once unless it is told otherwise."""
_SERVER: Final = Path(__file__).with_name("llama_cpp_server.py")


class LlamaCpp:
    """llama.cpp's server, from the wheel `xllamacpp`.

    python: of the environment that has the wheel.
    """

    name = "llama.cpp"
    alive_path = "/slots"
    key_variable = "TOQUE_ENGINE_KEY"
    adapters: AdapterLoader | None = None
    requires_calls = (
        False  # of formats that it does not know, as most templates of small models have, it asks for none
    )

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python
        # Threads that wait by spinning stop all else where more of them are busy than there are cores.
        self.variables: Mapping[str, str] = {"OMP_WAIT_POLICY": "passive"}

    def process_spec(self, spec: EngineSpec) -> EngineSpec:
        """All of a spec but the settings of requests. Raises: ValueError for weights that it does not read."""
        if spec.weights.is_dir():
            raise ValueError(
                "weights: llama.cpp reads GGUF and no folder of safetensors; register a GGUF file"
            )
        names = ("context_length", "slots", "task", "adapter_scale", "idle_s", "share_weights")
        return replace(
            spec, settings=EngineSettings(**{name: getattr(spec.settings, name) for name in names})
        )

    def command(self, spec: EngineSpec, port: int) -> list[str]:
        """Build the command line; see `llama_cpp_server`."""
        settings = spec.settings
        line = [
            self._python, "-I", str(_SERVER), "--weights", str(spec.weights), "--port", str(port),
            "--name", MODEL_NAME, "--context", str(settings.context_length), "--slots", str(settings.slots),
        ]  # fmt: skip
        if settings.task == "embed":
            line.append("--embed")
        if settings.share_weights:
            line.append("--share-weights")
        if spec.adapter is not None:
            line += ["--adapter", str(spec.adapter), "--adapter-scale", str(settings.adapter_scale)]
        if spec.chat_template is not None:
            line += ["--chat-template", str(spec.chat_template)]
        if spec.threads is not None:
            line += ["--threads", str(spec.threads)]
        return line

    def model_name(self, spec: EngineSpec) -> str:
        """Name of the model in requests."""
        del spec  # its adapter is part of what the process serves
        return MODEL_NAME

    def embedding_bounds(self, spec: EngineSpec) -> EmbeddingBounds:
        """One text at a time, unless the version embeds alone.

        Slots that have memory of their own are computed in parts of equal length, and the mean of a text is then that of its last
        part. One memory for all would mend it, and made answers of eight slots 6 to 10 % slower.
        """
        length = spec.settings.context_length
        if spec.settings.task == "embed":
            return EmbeddingBounds(together=True, tokens=length)
        return EmbeddingBounds(together=False, tokens=min(length, _BATCH))

    async def count_tokens(self, client: aiohttp.ClientSession, base: str, body: Mapping[str, Any]) -> int:
        """Count the tokens of a prompt, after the model's own chat template if it is a chat."""
        text = body.get("prompt", "")
        if "messages" in body:
            asked = {each: body[each] for each in ("messages", "tools") if each in body}
            async with client.post(f"{base}/apply-template", json=asked) as response:
                text = await _prompt_of(response)
        async with client.post(f"{base}/tokenize", json={"content": text, "add_special": True}) as response:
            return len(await answered(response, "tokens", "llama.cpp does not count the prompt's tokens"))

    async def no_tools(self, client: aiohttp.ClientSession, base: str, spec: EngineSpec) -> str | None:
        """Say that the chat template has no place for tools, if so: llama.cpp would drop them without a word."""
        del spec
        async with client.get(f"{base}/props") as response:
            found: bool = (await response.json()).get("chat_template_caps", {}).get("supports_tools", False)
            return None if found else NO_PLACE


async def _prompt_of(response: aiohttp.ClientResponse) -> Any:
    """Read the prompt that a template made. Raises: EngineRefusal 400: what it raises is about the messages, and no fault of the engine."""
    try:
        return await answered(response, "prompt", "llama.cpp does not make a prompt of the messages")
    except EngineRefusal as error:
        raise EngineRefusal(str(error), _ASKED_WRONGLY, error.content) from error
