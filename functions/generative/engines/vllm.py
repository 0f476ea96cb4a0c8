"""vLLM as an engine: its command line, the adapters that it loads while it runs, and how its prompts are counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from toque.functions.generative import EngineSettings
from toque.functions.generative.adapter_folder import check_shapes
from toque.functions.generative.engines.engine import (
    MODEL_NAME,
    NO_PLACE,
    AdapterLoader,
    EmbeddingBounds,
    EngineRefusal,
    EngineSpec,
    answered,
)

__all__ = ["Vllm"]

_TOOL: Final = {"type": "function", "function": {"name": "probe", "parameters": {"type": "object"}}}
_NO_PARSER: Final = (
    "vLLM reads calls of tools by a parser, and this version names none; register one with the setting tool_parser, such as "
    "'hermes'"
)
_ADAPTERS_AT_ONCE: Final = 8
"""Adapters in one step of computing, for each of which a card has room for one of the largest rank; requests of others wait."""
_ADAPTERS_KEPT: Final = 256
"""Adapters in the machine's memory; others are read again from their files when they are asked for."""
_OK: Final = 200


class Vllm:
    """vLLM, by its own command in an environment or image of its own; not measured on a card."""

    name = "vllm"
    alive_path = "/health"
    key_variable = "VLLM_API_KEY"
    requires_calls = True

    def __init__(self, executable: str) -> None:
        self._executable = executable
        self.variables: Mapping[str, str] = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        self.adapters: AdapterLoader | None = VllmAdapters()

    def process_spec(self, spec: EngineSpec) -> EngineSpec:
        """Weights, template and what the process is made for; adapters are loaded into it. Raises: ValueError for one that does not fit."""
        if spec.adapter is not None and not spec.adapter.is_dir():
            raise ValueError(
                "adapter: vLLM reads folders as `peft` saves them and no GGUF; register one of those"
            )
        if spec.adapter is not None:
            check_shapes(spec.weights, spec.adapter)
        names = ("context_length", "slots", "task", "tool_parser", "adapter_rank", "idle_s")
        settings = EngineSettings(**{name: getattr(spec.settings, name) for name in names})
        return replace(spec, adapter=None, settings=settings, threads=None)

    def command(self, spec: EngineSpec, port: int) -> list[str]:
        """Build the command line of `vllm serve`."""
        settings = spec.settings
        line = [
            self._executable, "serve", str(spec.weights), "--host", "127.0.0.1", "--port", str(port),
            "--served-model-name", MODEL_NAME, "--max-model-len", str(settings.context_length),
            "--max-num-seqs", str(settings.slots), "--enable-prefix-caching",
        ]  # fmt: skip
        if settings.adapter_rank:
            line += [
                "--enable-lora", "--max-lora-rank", str(settings.adapter_rank),
                "--max-loras", str(min(settings.slots, _ADAPTERS_AT_ONCE)), "--max-cpu-loras", str(_ADAPTERS_KEPT),
            ]  # fmt: skip
        if spec.chat_template is not None:
            line += ["--chat-template", str(spec.chat_template)]
        if settings.task == "embed":
            line += ["--runner", "pooling", "--convert", "embed"]
        if settings.tool_parser is not None:
            line += ["--enable-auto-tool-choice", "--tool-call-parser", settings.tool_parser]
        return line

    def model_name(self, spec: EngineSpec) -> str:
        """Name of the model in requests: of the adapter, if it has one."""
        return MODEL_NAME if spec.adapter is None else f"{MODEL_NAME}-{spec.adapter.name}"

    def embedding_bounds(self, spec: EngineSpec) -> EmbeddingBounds:
        """Any texts that fit the context, where the version embeds alone; else none."""
        settings = spec.settings
        return EmbeddingBounds(
            together=True, tokens=settings.context_length if settings.task == "embed" else 0
        )

    async def count_tokens(self, client: aiohttp.ClientSession, base: str, body: Mapping[str, Any]) -> int:
        """Count the tokens of a prompt by the engine's own route."""
        asked = {each: body[each] for each in ("messages", "tools", "prompt") if each in body}
        async with client.post(f"{base}/tokenize", json={"model": MODEL_NAME, **asked}) as response:
            return int(await answered(response, "count", "vLLM does not count the prompt's tokens"))

    async def no_tools(self, client: aiohttp.ClientSession, base: str, spec: EngineSpec) -> str | None:
        """Say that no parser is named, or that tools make the prompt no longer: vLLM would drop them without a word."""
        if spec.settings.tool_parser is None:
            return _NO_PARSER
        chat = {"messages": [{"role": "user", "content": "1"}]}
        try:
            without, with_one = [
                await self.count_tokens(client, base, asked) for asked in (chat, chat | {"tools": [_TOOL]})
            ]
        except EngineRefusal:  # it has no template for messages, or one that fails on tools
            return NO_PLACE
        return NO_PLACE if without == with_one else None


class VllmAdapters:
    """Adapters by vLLM's own routes, which are below `/v1` and need its key as requests do."""

    async def load(self, client: aiohttp.ClientSession, base: str, name: str, adapter: Path) -> None:
        """Load an adapter from a folder as `peft` saves it; one that is loaded stays."""
        asked = {"lora_name": name, "lora_path": str(adapter)}
        async with client.post(f"{base}/v1/load_lora_adapter", json=asked) as response:
            refusal = EngineRefusal("vLLM does not load it", response.status, await response.read())
        if refusal.status != _OK and name not in await self._loaded(client, base):
            raise refusal

    async def unload(self, client: aiohttp.ClientSession, base: str, name: str) -> None:
        """Take an adapter out, if it is there; vLLM keeps its numbers in memory until others need the place."""
        async with client.post(f"{base}/v1/unload_lora_adapter", json={"lora_name": name}) as response:
            refusal = EngineRefusal("vLLM does not take it out", response.status, await response.read())
        if refusal.status != _OK and name in await self._loaded(client, base):
            raise refusal

    async def _loaded(self, client: aiohttp.ClientSession, base: str) -> set[str]:
        async with client.get(f"{base}/v1/models") as response:
            return {each["id"] for each in await answered(response, "data", "vLLM does not list its models")}
