"""What every engine is: a program that serves weights over OpenAI's API, what starts it, and what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import aiohttp
import orjson

from toque.functions.generative import EngineSettings

__all__ = [
    "MODEL_NAME",
    "NO_PLACE",
    "AdapterLoader",
    "EmbeddingBounds",
    "Engine",
    "EngineDown",
    "EngineRefusal",
    "EngineSpec",
    "answered",
]

MODEL_NAME: Final = "toque-engine"
"""Name by which every engine serves its weights; the door puts the registered name in its place."""
NO_PLACE: Final = (
    "the chat template of this version has no place for them; register one with a chat_template that has"
)
"""Why tools would not reach a model."""
_OK, _NO_ANSWER = 200, 502


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

    async def no_tools(self, client: aiohttp.ClientSession, base: str, spec: EngineSpec) -> str | None:
        """Say why tools would not reach the model, or its calls not the caller; None if they do. Raises: aiohttp.ClientError."""
        ...
