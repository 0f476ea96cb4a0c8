"""Engines by their names: llama.cpp and vLLM, their command lines, adapters and counts of prompts."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
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
    Engine,
    EngineRefusal,
    EngineSpec,
    answered,
)
from toque.functions.generative.template_arguments import TEMPLATE_ARGUMENTS
from toque.functions.generative.version_files import check_shapes

_OK: Final = 200
_ASKED_WRONGLY: Final = 400


def engine_of(name: str, program: str | None = None) -> Engine:
    """Make an engine by its name. program: Python of llama.cpp's environment, or the command `vllm`; None: where it is found.

    Raises: ValueError for another name, or if no `vllm` is on the path.
    """
    if name == LlamaCpp.name:
        return LlamaCpp(program or sys.executable)
    if name != Vllm.name:
        raise ValueError(f"engine={name!r}: there are {LlamaCpp.name!r} and {Vllm.name!r}")
    found = program or shutil.which("vllm")
    if found is None:
        raise ValueError("engine='vllm': no command `vllm` is on the path; say where it is")
    return Vllm(found)


_LLAMA_BATCH: Final = 512
"""Tokens that it computes at once unless it is told otherwise."""
_LLAMA_SERVER: Final = Path(__file__).with_name("llama_cpp_server.py")


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
            self._python, "-I", str(_LLAMA_SERVER), "--weights", str(spec.weights), "--port", str(port),
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
        return EmbeddingBounds(together=False, tokens=min(length, _LLAMA_BATCH))

    async def count_tokens(self, client: aiohttp.ClientSession, base: str, body: Mapping[str, Any]) -> int:
        """Count the tokens of a prompt, after the model's own chat template if it is a chat."""
        text = body.get("prompt", "")
        if "messages" in body:
            asked = {name: body[name] for name in ("messages", "tools", TEMPLATE_ARGUMENTS) if name in body}
            async with client.post(f"{base}/apply-template", json=asked) as response:
                text = await _prompt_of(response)
        async with client.post(f"{base}/tokenize", json={"content": text, "add_special": True}) as response:
            return len(await answered(response, "tokens", "llama.cpp does not count the prompt's tokens"))

    async def decode(self, client: aiohttp.ClientSession, base: str, token_ids: Sequence[int]) -> str:
        """Write token ids as text."""
        async with client.post(f"{base}/detokenize", json={"tokens": token_ids}) as response:
            return str(await answered(response, "content", "llama.cpp does not decode token ids"))

    async def vocabulary(self, client: aiohttp.ClientSession, base: str, spec: EngineSpec) -> int | None:
        """Count the token ids of the weights."""
        del spec
        async with client.get(f"{base}/v1/models") as response:
            listed = (await response.json()).get("data") or [{}]
            size: int | None = (listed[0].get("meta") or {}).get("n_vocab")
            return size

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


_TOOL: Final = {"type": "function", "function": {"name": "probe", "parameters": {"type": "object"}}}
_NO_PARSER: Final = (
    "vLLM reads calls of tools by a parser, and this version names none; register one with the setting tool_parser, such as "
    "'hermes'"
)
_ADAPTERS_AT_ONCE: Final = 8
"""Adapters in one step of computing, for each of which a card has room for one of the largest rank; requests of others wait."""
_ADAPTERS_KEPT: Final = 256
"""Adapters in the machine's memory; others are read again from their files when they are asked for."""


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
        asked = {
            name: body[name] for name in ("messages", "tools", TEMPLATE_ARGUMENTS, "prompt") if name in body
        }
        async with client.post(f"{base}/tokenize", json={"model": MODEL_NAME, **asked}) as response:
            return int(await answered(response, "count", "vLLM does not count the prompt's tokens"))

    async def decode(self, client: aiohttp.ClientSession, base: str, token_ids: Sequence[int]) -> str:
        """Write token ids as text."""
        asked = {"model": MODEL_NAME, "tokens": token_ids}
        async with client.post(f"{base}/detokenize", json=asked) as response:
            return str(await answered(response, "prompt", "vLLM does not decode token ids"))

    async def vocabulary(self, client: aiohttp.ClientSession, base: str, spec: EngineSpec) -> int | None:
        """Read the number of token ids off the configuration of the weights, as vLLM has no route for it."""
        del client, base
        try:
            document = json.loads((spec.weights / "config.json").read_bytes())
        except (OSError, ValueError):
            return None
        parts = (document, document.get("text_config")) if isinstance(document, dict) else ()
        sizes = [part.get("vocab_size") for part in parts if isinstance(part, dict)]
        return next((size for size in sizes if isinstance(size, int)), None)

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


__all__ = ["LlamaCpp", "Vllm", "engine_of"]
