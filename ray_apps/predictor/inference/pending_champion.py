"""Waits for a champion that is being loaded, so that requests which come meanwhile are answered by it."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Final, Protocol

__all__ = ["PendingChampion"]

PATIENCE_S: Final = 30.0
"""Longest that a request without a deadline of its own waits."""
_LOOK_S: Final = 0.02


class Loading(Protocol):
    """The part of an engine that says whether its champion is being loaded."""

    @property
    def champion_pending(self) -> bool:
        """Whether the policy names a champion that is still to be loaded, and has not failed to load."""
        ...


class PendingChampion:
    """The champion of one engine until it is loaded, which happens in a thread. Belongs to one event loop."""

    def __init__(self, engine: Loading, *, patience_s: float = PATIENCE_S) -> None:
        self._engine, self._patience_s = engine, patience_s
        self._looking: asyncio.Task[None] | None = None

    async def loaded(self) -> None:
        """Wait until the champion is loaded, fails to load, or is late; one task looks for all requests that wait."""
        if self._looking is None or self._looking.done():
            loop = asyncio.get_running_loop()
            self._looking = loop.create_task(self._look(), context=Context())  # of no single request
        await asyncio.shield(self._looking)

    def close(self) -> None:
        """Let nobody wait any more."""
        if self._looking is not None:
            self._looking.cancel()

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        late = loop.time() + self._patience_s
        while self._engine.champion_pending and loop.time() < late:  # noqa: ASYNC110 - a thread loads it
            await asyncio.sleep(_LOOK_S)
