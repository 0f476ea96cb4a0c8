"""Adapters of one running engine: those that somebody holds are loaded into it, again after each of its starts, and no others stay."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import aiohttp

from toque.functions.generative.engines.engine import AdapterLoader, EngineDown, EngineRefusal

__all__ = ["RunningAdapters"]

_log = logging.getLogger("ray.serve")


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
