"""Engines as command lines: what starts each, what it is asked for, and how its prompts are counted."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import aiohttp

from functions.generative import EngineSettings

__all__ = ["MODEL_NAME", "EmbeddingBounds", "Engine", "EngineSpec", "LlamaCpp", "Vllm", "engine_of"]

MODEL_NAME: Final = "toque-engine"
"""Name by which every engine serves its one model; the door puts the registered name in its place."""
_ADAPTER_NAME: Final = f"{MODEL_NAME}-adapter"
_LLAMA_BATCH: Final = 512
"""Tokens that llama.cpp computes at once unless it is told otherwise."""
_SERVER: Final = Path(__file__).with_name("llama_cpp_server.py")
_TOOL: Final = {"type": "function", "function": {"name": "probe", "parameters": {"type": "object"}}}
_NO_PLACE: Final = (
    "the chat template of this version has no place for them; register one with a chat_template that has"
)
_NO_PARSER: Final = (
    "vLLM reads calls of tools by a parser, and this version names none; register one with the setting tool_parser, such as "
    "'hermes'"
)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What a process of an engine holds.

    weights, adapter: files or folders; chat_template: file, None: that of the weights; all by absolute paths, as an engine runs in
    a folder of its own. threads: of its computing, None: all cores.
    """

    weights: Path
    adapter: Path | None = None
    chat_template: Path | None = None
    settings: EngineSettings = field(default_factory=EngineSettings)
    threads: int | None = None


class EmbeddingBounds(NamedTuple):
    """What an engine embeds rightly. together: several texts at a time; tokens: most of one text, 0: it makes no embeddings."""

    together: bool
    tokens: int


class Engine(Protocol):
    """A program that serves weights over OpenAI's API."""

    name: str
    alive_path: str
    """Path that is answered only while the loop that computes goes on."""
    key_variable: str
    """Variable of the engine's environment that has the key it asks of every request: arguments can be read by all users."""

    def command(self, spec: EngineSpec, port: int) -> list[str]:
        """Build the command line that serves a spec on a port of loopback."""
        ...

    def model_name(self, spec: EngineSpec) -> str:
        """Name of the model in requests: of the adapter, if it has one."""
        ...

    def embedding_bounds(self, spec: EngineSpec) -> EmbeddingBounds:
        """What may be asked of a spec's embeddings at once."""
        ...

    async def count_tokens(self, client: aiohttp.ClientSession, base: str, body: Mapping[str, Any]) -> int:
        """Count the tokens of a request's prompt as the engine will read it. Raises: aiohttp.ClientError."""
        ...

    async def no_tools(self, client: aiohttp.ClientSession, base: str, spec: EngineSpec) -> str | None:
        """Say why tools would not reach the model, or its calls not the caller; None if they do. Raises: aiohttp.ClientError."""
        ...


class LlamaCpp:
    """llama.cpp's server, from the wheel `xllamacpp`.

    python: of the environment that has the wheel.
    """

    name = "llama.cpp"
    alive_path = "/slots"
    key_variable = "TOQUE_ENGINE_KEY"

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python

    def command(self, spec: EngineSpec, port: int) -> list[str]:
        """Build the command line; see `llama_cpp_server`. Raises: ValueError for weights that it does not read."""
        if spec.weights.is_dir():
            raise ValueError(
                "weights: llama.cpp reads GGUF and no folder of safetensors; register a GGUF file"
            )
        settings = spec.settings
        line = [
            self._python, "-I", str(_SERVER), "--weights", str(spec.weights), "--port", str(port),
            "--name", MODEL_NAME, "--context", str(settings.context_length), "--slots", str(settings.slots),
        ]  # fmt: skip
        if settings.task == "embed":
            line.append("--embed")
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
            asked = {each: body[each] for each in ("messages", "tools") if each in body}
            async with client.post(f"{base}/apply-template", json=asked) as response:
                text = (await response.json()).get("prompt", "")
        async with client.post(f"{base}/tokenize", json={"content": text, "add_special": True}) as response:
            return len((await response.json())["tokens"])

    async def no_tools(self, client: aiohttp.ClientSession, base: str, spec: EngineSpec) -> str | None:
        """Say that the chat template has no place for tools, if so: llama.cpp would drop them without a word."""
        del spec
        async with client.get(f"{base}/props") as response:
            found: bool = (await response.json()).get("chat_template_caps", {}).get("supports_tools", False)
            return None if found else _NO_PLACE


class Vllm:
    """vLLM, by its own command in an environment or image of its own; not measured here."""

    name = "vllm"
    alive_path = "/health"
    key_variable = "VLLM_API_KEY"

    def __init__(self, executable: str) -> None:
        self._executable = executable

    def command(self, spec: EngineSpec, port: int) -> list[str]:
        """Build the command line of `vllm serve`."""
        settings = spec.settings
        line = [
            self._executable, "serve", str(spec.weights), "--host", "127.0.0.1", "--port", str(port),
            "--served-model-name", MODEL_NAME, "--max-model-len", str(settings.context_length),
            "--max-num-seqs", str(settings.slots), "--enable-prefix-caching",
        ]  # fmt: skip
        if spec.adapter is not None:
            line += ["--enable-lora", "--lora-modules", f"{_ADAPTER_NAME}={spec.adapter}"]
        if spec.chat_template is not None:
            line += ["--chat-template", str(spec.chat_template)]
        if settings.task == "embed":
            line += ["--runner", "pooling", "--convert", "embed"]
        if settings.tool_parser is not None:
            line += ["--enable-auto-tool-choice", "--tool-call-parser", settings.tool_parser]
        return line

    def model_name(self, spec: EngineSpec) -> str:
        """Name of the model in requests: of the adapter, if it has one."""
        return MODEL_NAME if spec.adapter is None else _ADAPTER_NAME

    def embedding_bounds(self, spec: EngineSpec) -> EmbeddingBounds:
        """Any texts that fit the context, where the version embeds alone; else none."""
        settings = spec.settings
        return EmbeddingBounds(
            together=True, tokens=settings.context_length if settings.task == "embed" else 0
        )

    async def count_tokens(self, client: aiohttp.ClientSession, base: str, body: Mapping[str, Any]) -> int:
        """Count the tokens of a prompt by the engine's own route."""
        asked = {each: body[each] for each in ("messages", "tools", "prompt") if each in body}
        found: int = (await self._tokenized(client, base, asked))["count"]
        return found

    async def no_tools(self, client: aiohttp.ClientSession, base: str, spec: EngineSpec) -> str | None:
        """Say that no parser is named, or that tools make the prompt no longer: vLLM would drop them without a word."""
        if spec.settings.tool_parser is None:
            return _NO_PARSER
        chat = {"messages": [{"role": "user", "content": "1"}]}
        without, with_one = [
            (await self._tokenized(client, base, asked)).get("count")
            for asked in (chat, chat | {"tools": [_TOOL]})
        ]
        return _NO_PLACE if without == with_one else None

    async def _tokenized(
        self, client: aiohttp.ClientSession, base: str, asked: Mapping[str, Any]
    ) -> dict[str, Any]:
        async with client.post(f"{base}/tokenize", json={"model": MODEL_NAME, **asked}) as response:
            found: dict[str, Any] = await response.json()
            return found


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
