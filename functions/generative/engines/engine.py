"""What every engine is: a program that serves weights over OpenAI's API, what starts it, and what it is asked.

Of adapters, those that somebody holds are loaded into it, again after each of its starts, and no others stay. Of the
environment it sees where programs and devices are, and nothing of the platform's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import aiohttp
import orjson

from toque.functions.generative import EngineSettings

MODEL_NAME: Final = "toque-engine"
"""Name by which every engine serves its weights; the door puts the registered name in its place."""
NO_PLACE: Final = (
    "the chat template of this version has no place for them; register one with a chat_template that has"
)
"""Why tools would not reach a model."""
_OK, _NO_ANSWER = 200, 502
_log = logging.getLogger("ray.serve")


class EngineDown(Exception):  # noqa: N818  # an answer to the caller, who may try again
    """The engine does not answer now; its supervisor starts it anew."""


class EngineRefusal(Exception):  # noqa: N818  # an answer to the caller
    """The engine refused what it was asked. status, content: of its HTTP response."""

    def __init__(self, what: str, status: int, content: bytes) -> None:
        super().__init__(f"{what}: status {status}: {content.decode(errors='replace'):.500}")
        self.status, self.content = status, content


async def answered(response: aiohttp.ClientResponse, field_name: str, what: str) -> Any:
    """Read a field of an engine's answer. what: that the engine did not do, if it is not there. Raises: EngineRefusal."""
    content = await response.read()
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        document = None
    if response.status != _OK or not isinstance(document, dict) or field_name not in document:
        raise EngineRefusal(what, _NO_ANSWER if response.status == _OK else response.status, content)
    return document[field_name]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What is asked of an engine.

    weights, adapter: files or folders, and chat_template: file, None: that of the weights; all by absolute paths, as an engine runs in
    a folder of its own, and named by their content where versions come and go. threads: of its computing, None: all cores.
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


class AdapterLoader(Protocol):
    """Loads adapters into a running engine, and takes them out. name: by which requests ask for one."""

    async def load(self, client: aiohttp.ClientSession, base: str, name: str, adapter: Path) -> None:
        """Load an adapter; one that is loaded stays. Raises: EngineRefusal, aiohttp.ClientError."""
        ...

    async def unload(self, client: aiohttp.ClientSession, base: str, name: str) -> None:
        """Take an adapter out, if it is there. Raises: EngineRefusal, aiohttp.ClientError."""
        ...


class Engine(Protocol):
    """A program that serves weights over OpenAI's API."""

    name: str
    alive_path: str
    """Path that is answered only while the loop that computes goes on."""
    key_variable: str
    """Variable of the engine's environment that has the key it asks of every request: arguments can be read by all users."""
    variables: Mapping[str, str]
    """Other variables that its environment needs."""
    adapters: AdapterLoader | None
    """None: a process has the adapter that it was started with, and no other."""
    requires_calls: bool
    """Whether the engine itself keeps to `tool_choice: required`, whatever the model would rather say."""

    def process_spec(self, spec: EngineSpec) -> EngineSpec:
        """The part of a spec that a process is started with: specs that are equal in it share one. Raises: ValueError."""
        ...

    def command(self, spec: EngineSpec, port: int) -> list[str]:
        """Build the command line that serves a spec on a port of loopback."""
        ...

    def model_name(self, spec: EngineSpec) -> str:
        """Name of the model in requests: of the adapter, if it has one that the engine tells by its name."""
        ...

    def embedding_bounds(self, spec: EngineSpec) -> EmbeddingBounds:
        """What may be asked of a spec's embeddings at once."""
        ...

    async def count_tokens(self, client: aiohttp.ClientSession, base: str, body: Mapping[str, Any]) -> int:
        """Count the tokens of a request's prompt as the engine will read it. Raises: EngineRefusal, aiohttp.ClientError."""
        ...

    async def decode(self, client: aiohttp.ClientSession, base: str, token_ids: Sequence[int]) -> str:
        """Write token ids of the vocabulary as text, special tokens too. Raises: EngineRefusal, aiohttp.ClientError."""
        ...

    async def vocabulary(self, client: aiohttp.ClientSession, base: str, spec: EngineSpec) -> int | None:
        """Count the token ids that there are, from 0; None if that is unknown. Raises: aiohttp.ClientError."""
        ...

    async def no_tools(self, client: aiohttp.ClientSession, base: str, spec: EngineSpec) -> str | None:
        """Say why tools would not reach the model, or its calls not the caller; None if they do. Raises: aiohttp.ClientError."""
        ...


class RunningAdapters:
    """Adapters by the names that requests give them; of one event loop. A name is one content: it is never loaded anew.

    client: has the engine's key.
    """

    def __init__(self, loader: AdapterLoader, client: aiohttp.ClientSession) -> None:
        self._loader, self._client = loader, client
        self._held: dict[str, Path] = {}
        self._loaded: set[str] = set()
        self._turn = asyncio.Lock()

    def hold(self, name: str, adapter: Path) -> None:
        """Want an adapter in the engine from now on; `load` brings it there."""
        self._held[name] = adapter

    def holds(self, name: str) -> bool:
        """Whether an adapter of that name is wanted."""
        return name in self._held

    async def load(self, base: str, name: str) -> None:
        """Load an adapter that is held, unless it is there. base: address of the engine. Raises: EngineDown, with the reason."""
        if name in self._loaded:
            return
        async with self._turn:
            if name in self._loaded or name not in self._held:
                return
            try:
                await self._loader.load(self._client, base, name, self._held[name])
            except EngineRefusal as error:
                raise EngineDown(
                    f"adapter: {error}; register a version with one that was made for its weights"
                ) from error
            except aiohttp.ClientError as error:
                raise EngineDown(f"adapter: the engine went while it was loaded: {error}") from error
            self._loaded.add(name)

    def drop(self, name: str) -> None:
        """Want an adapter no more; `unload` takes it out."""
        del self._held[name]

    async def unload(self, base: str, name: str) -> None:
        """Take an adapter that nobody holds out of the engine; one that does not answer has it no more when it starts anew."""
        async with self._turn:
            if name in self._held or name not in self._loaded:  # somebody holds it again, or it never came
                return
            self._loaded.discard(name)
            try:
                await self._loader.unload(self._client, base, name)
            except (EngineRefusal, aiohttp.ClientError) as error:
                _log.warning("adapter %s stays in its engine: %s", name, error)

    async def started_anew(self, base: str) -> None:
        """Load into an engine that has just started what is held; what it refuses is tried again by the next request for it."""
        self._loaded.clear()
        for name in list(self._held):
            try:
                await self.load(base, name)
            except EngineDown as error:
                _log.warning("%s", error)


_PASSED: Final = frozenset({"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "TZ"})
_PASSED_BEGINNINGS: Final = ("CUDA_", "NVIDIA_", "VLLM_", "OMP_", "GGML_", "LLAMA_")


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Choose what an engine may see of the environment: where programs and devices are, and nothing of the platform's."""
    return {
        name: value
        for name, value in environment.items()
        if name in _PASSED or name.startswith(_PASSED_BEGINNINGS)
    }


__all__ = [
    "MODEL_NAME",
    "NO_PLACE",
    "AdapterLoader",
    "EmbeddingBounds",
    "Engine",
    "EngineDown",
    "EngineRefusal",
    "EngineSpec",
    "RunningAdapters",
    "answered",
    "engine_environment",
]
