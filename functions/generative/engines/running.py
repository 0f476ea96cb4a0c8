"""The engines of one process of the door: one for each weights, adapter and settings, shared by all versions that have these."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from functions.generative.engines.engine import Engine, EngineSpec
from functions.generative.engines.process import MOST_WAITING, EngineDown, EngineProcess, Patience

__all__ = ["EngineProcesses", "Lease"]


class Lease:
    """Hold on an engine: it runs as long as somebody has one; a running answer has its own."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._held = True
        shared.holders += 1

    @property
    def process(self) -> EngineProcess:
        """The process of the engine that is held."""
        return self._shared.process

    def again(self) -> Lease:
        """Take another hold on the same engine. Raises: EngineDown if it was ended since."""
        if not self._shared.holders:
            raise EngineDown("its version is not served any more")
        return Lease(self._shared)

    def release(self) -> None:
        """Give the hold back; the last one ends the engine."""
        if self._held:
            self._held = False
            self._shared.holders -= 1
            if not self._shared.holders:
                self._shared.unused()


class _Shared:
    def __init__(self, process: EngineProcess, unused: Callable[[], None]) -> None:
        self.process, self.unused, self.holders = process, unused, 0


class EngineProcesses:
    """Starts engines when they are first asked for, and ends those that nobody holds; of one event loop.

    logs: folder that gets what engines print. environment: of every engine, None: this process's. most_waiting: requests for the slots of each.
    """

    def __init__(
        self,
        engine: Engine,
        logs: Path,
        *,
        environment: dict[str, str] | None = None,
        patience: Patience | None = None,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._engine, self._logs, self._patience = engine, logs, patience
        self._environment, self._most_waiting = environment, most_waiting
        self._running: dict[tuple[str, EngineSpec], _Shared] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._ended_restarts = 0

    def lease(self, key: str, spec: EngineSpec) -> Lease:
        """Take a hold on the engine of a spec, which is started if it does not run. key: digest of its files."""
        shared = self._running.get((key, spec))
        if shared is None:
            process = EngineProcess(
                self._engine, spec, self._logs / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.log", environment=self._environment,
                patience=self._patience, most_waiting=self._most_waiting,
            )  # fmt: skip
            process.start()
            shared = self._running[key, spec] = _Shared(process, lambda: self._end(key, spec))
        return Lease(shared)

    @property
    def processes(self) -> list[EngineProcess]:
        """The engines that somebody holds now."""
        return [shared.process for shared in self._running.values()]

    @property
    def restarts(self) -> int:
        """How often engines were started again so far."""
        return self._ended_restarts + sum(max(0, each.restarts) for each in self.processes)

    async def close(self) -> None:
        """End all engines, held or not."""
        running, self._running = list(self._running.values()), {}
        await asyncio.gather(*(shared.process.close() for shared in running), *self._ending)

    def _end(self, key: str, spec: EngineSpec) -> None:
        shared = self._running.pop((key, spec), None)
        if shared is not None:
            self._ended_restarts += max(0, shared.process.restarts)
            task = asyncio.get_running_loop().create_task(shared.process.close())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
