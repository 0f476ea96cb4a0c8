"""The engines of one process of the door: one for each weights and settings, shared by all versions that have these.

The adapters of its versions are loaded into it, where the engine takes them while it runs; else each adapter has an engine.
The files that they read lie in a folder that goes with the process even if that is killed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from toque.clusters.file_lock import file_lock
from toque.functions.generative.engines.engine import Engine, EngineDown, EngineSpec, RunningAdapters
from toque.functions.generative.engines.process import MOST_WAITING, EngineProcess, Patience
from toque.registry.store import temporary_folder


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
        self._running: dict[EngineSpec, _Shared] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._ended_restarts = 0

    def lease(self, spec: EngineSpec) -> Lease:
        """Take a hold on the engine of a spec, which is started if it does not run; its paths are named by their content.

        Raises: EngineDown for a spec that the engine does not read.
        """
        try:
            started = self._engine.process_spec(spec)
        except ValueError as error:
            raise EngineDown(str(error)) from error
        wanted = replace(started, adapter=spec.adapter)
        shared = self._running.get(wanted)
        if shared is None:
            shared = self._started(started) if wanted == started else self._loaded(started, wanted)
            self._running[wanted] = shared
        return Lease(shared)

    @property
    def processes(self) -> list[EngineProcess]:
        """The engines that somebody holds now."""
        return list(dict.fromkeys(shared.process for shared in self._running.values()))

    @property
    def restarts(self) -> int:
        """How often engines were started again so far."""
        return self._ended_restarts + sum(each.restarts for each in self.processes)

    async def close(self) -> None:
        """End all engines, held or not."""
        processes, self._running = self.processes, {}
        await asyncio.gather(*(each.close() for each in processes))
        await asyncio.gather(*self._ending, return_exceptions=True)  # of adapters whose engine is gone

    def _started(self, spec: EngineSpec) -> _Shared:
        name = hashlib.sha256(repr(spec).encode()).hexdigest()[:16]
        process = EngineProcess(
            self._engine, spec, self._logs / f"{name}.log", environment=self._environment, patience=self._patience,
            most_waiting=self._most_waiting, idle_s=spec.settings.idle_s,
        )  # fmt: skip
        process.start()
        return _Shared(process, self._engine.model_name(spec), lambda: self._end(spec))

    def _loaded(self, started: EngineSpec, wanted: EngineSpec) -> _Shared:
        """Have an adapter in the engine of its weights, which it holds."""
        base, name = self.lease(started), self._engine.model_name(wanted)
        adapters = base.process.adapters
        assert adapters is not None  # noqa: S101  # an engine without takes the adapter at its start
        assert wanted.adapter is not None  # noqa: S101  # they differ in it
        adapters.hold(name, wanted.adapter)

        def unused() -> None:
            self._running.pop(wanted, None)
            adapters.drop(name)
            self._in_background(self._leave(base, adapters, name))

        return _Shared(base.process, name, unused)

    async def _leave(self, base: Lease, adapters: RunningAdapters, name: str) -> None:
        try:
            await adapters.unload(base.process.base, name)
        finally:
            base.release()

    def _end(self, spec: EngineSpec) -> None:
        shared = self._running.pop(spec, None)
        if shared is not None:
            self._ended_restarts += shared.process.restarts
            self._in_background(shared.process.close())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class Lease:
    """Hold on an engine, and on its adapter: both stay as long as somebody has one; a running answer has its own."""

    def __init__(self, shared: _Shared, *, answers: bool = False) -> None:
        self._shared, self._answers = shared, answers
        if answers:
            shared.process.begin_use()
        self._held = True
        shared.holders += 1

    @property
    def process(self) -> EngineProcess:
        """The process of the engine that is held."""
        return self._shared.process

    @property
    def model(self) -> str:
        """Name by which requests ask the engine for what is held."""
        return self._shared.model

    async def ready(self, within_s: float) -> None:
        """Wait until the engine answers, with the adapter. Raises: EngineDown, with the reason, if it does not in time."""
        self.process.begin_use()
        try:
            await self._ready(within_s)
        finally:
            self.process.end_use()

    async def _ready(self, within_s: float) -> None:
        process, adapters = self.process, self.process.adapters
        await process.ready(within_s)
        if adapters is not None and adapters.holds(self.model):
            try:
                await asyncio.wait_for(adapters.load(process.base, self.model), within_s)
            except TimeoutError:
                raise EngineDown(
                    f"adapter: {process.engine.name} has not loaded it within {within_s:g} s"
                ) from None

    def again(self) -> Lease:
        """Take a hold for an answer, for which an idle engine starts. Raises: EngineDown if it was ended since."""
        if not self._shared.holders:
            raise EngineDown("its version is not served any more")
        return Lease(self._shared, answers=True)

    def release(self) -> None:
        """Give the hold back; the last one takes the adapter out, and ends the engine if nobody holds that otherwise."""
        if self._held:
            self._held = False
            if self._answers:
                self.process.end_use()
            self._shared.holders -= 1
            if not self._shared.holders:
                self._shared.unused()


class _Shared:
    def __init__(self, process: EngineProcess, model: str, unused: Callable[[], None]) -> None:
        self.process, self.model, self.unused, self.holders = process, model, unused, 0


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder in the machine's temporary folder for a `with` block; those that killed processes left are removed.

    Weights are large: a job or a door that is killed and started again must not leave a copy of them each time. Who lives holds a
    lock in its folder, which the kernel gives back when the process ends.
    """
    held = ExitStack()
    with _swept() as parent:
        own = parent / f"{os.getpid()}-{secrets.token_hex(4)}"
        own.mkdir(mode=0o700)
        held.enter_context(file_lock(own / "lock"))
        held.callback(shutil.rmtree, own, ignore_errors=True)
    with held:
        yield own


def sweep_scratch() -> None:
    """Remove the folders that killed processes left, as of a platform that has been ended."""
    with _swept():
        pass


@contextmanager
def _swept() -> Iterator[Path]:
    """The parent of all folders, locked, with those of living processes alone in it."""
    parent = temporary_folder("engine-files")
    with file_lock(parent / "lock"):
        for other in filter(Path.is_dir, parent.iterdir()):
            with (
                suppress(FileNotFoundError),
                file_lock(other / "lock", wait=False) as free,
            ):  # it may have removed itself
                if free:
                    shutil.rmtree(other, ignore_errors=True)
        yield parent


__all__ = ["EngineProcesses", "Lease", "scratch_folder", "sweep_scratch"]
