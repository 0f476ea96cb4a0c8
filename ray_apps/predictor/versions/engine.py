"""Keeps the versions of one model loaded in this process, as its traffic policy names them.

Requests that come while a champion is being loaded wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from typing import Final, Protocol

from toque.functions.runtime.changes import Watch
from toque.ray_apps.predictor.versions.follower import (
    POLL_S,
    FollowedModel,
    JournalFollower,
    JournalSource,
    VersionFollower,
)
from toque.ray_apps.predictor.versions.loaded import (
    ArtifactSource,
    LoadedVersion,
    ScorerLoader,
    fetch_version,
    memory_of,
)
from toque.registry.models import ModelVersion

PATIENCE_S: Final = 30.0
"""Longest that a request without a deadline of its own waits."""
_LOOK_S: Final = 0.02
VersionLoader = Callable[[ModelVersion], LoadedVersion]
"""Loads a version, ready to answer. Raises: LoadError."""


class VersionSource(ArtifactSource, JournalSource, Protocol):
    """The part of the registry that an engine needs: journals and files of versions."""


class Engine(VersionFollower[LoadedVersion]):
    """Loads versions with their digests checked and their example answered.

    scratch: folder for files while they are loaded. loader: files to scorer. version_loader: loads a version; by default into
    this process. watch, retain, clock: as a follower's.
    """

    def __init__(
        self,
        model: str,
        source: VersionSource,
        loader: ScorerLoader,
        *,
        scratch: Path,
        watch: Watch | None = None,
        retain: int = 2,
        clock: Callable[[], float] = time.monotonic,
        version_loader: VersionLoader | None = None,
    ) -> None:
        super().__init__(model, source, self._load_in_turn, watch=watch, retain=retain, clock=clock)
        self._files, self._loader, self._scratch = source, loader, scratch
        self._version_loader = version_loader
        self._turn = asyncio.Lock()

    def _load_in_turn(self, record: ModelVersion) -> LoadedVersion:
        load = self._version_loader
        loaded = load(record) if load is not None else self._load_locally(record)
        # with a turn of its own, a canary would overtake those who wait for the champion
        loaded.turn = self._turn
        return loaded

    def _load_locally(self, record: ModelVersion) -> LoadedVersion:
        trusted = self.view.policy.trusted_types if self.view is not None else ()
        return fetch_version(record, self._files, self._loader, scratch=self._scratch, trusted_types=trusted)

    @property
    def size_bytes(self) -> int:
        """Estimated memory of the loaded versions."""
        return sum(memory_of(version.record) for version in list(self._loaded.values()))


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


__all__ = [
    "POLL_S",
    "Engine",
    "FollowedModel",
    "JournalFollower",
    "PendingChampion",
    "VersionLoader",
    "VersionSource",
]
