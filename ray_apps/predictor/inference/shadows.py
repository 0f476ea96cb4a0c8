"""Shadow versions score copies of answered requests, after the answer; under load they are dropped first."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any, Final
from weakref import WeakSet

from toque.ray_apps.predictor.inference.keys import KeyedRows, ModelInputs
from toque.ray_apps.predictor.inference.live import LiveCounter
from toque.ray_apps.predictor.inference.recording import Failure, Recorder
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.versions.loaded import LoadedVersion
from toque.registry.models.traffic import Traffic

__all__ = ["ShadowJob", "Shadows"]

SHADOW: Final = "shadow"
TURN_S: Final = 100e-6
"""Time spent on shadows between answers. A version whose example takes less runs on the event loop, as a thread would cost more,
until one of its turns takes longer."""
MAX_ROWS: Final = 32
_log = logging.getLogger("ray.serve")
LookUp = Callable[[LoadedVersion, KeyedRows], Awaitable[ModelInputs]]


@dataclass(frozen=True, slots=True)
class ShadowJob:
    """One answered request to be scored by one shadow, with its tensors, or the keys to look up the shadow's own."""

    version: LoadedVersion
    answered_by: LoadedVersion
    id: str
    unit: str | None
    at_us: int
    rows: int
    found: ModelInputs
    keys: KeyedRows | None
    traffic: Traffic | None = None


class Shadows:
    """A bounded queue of shadow jobs and the task that scores them; counts scored, failed and dropped jobs."""

    def __init__(
        self, recorder: Recorder, look_up: LookUp, *, limit: int = 256, live: LiveCounter | None = None
    ) -> None:
        self._recorder, self._look_up = recorder, look_up
        self._queue: asyncio.Queue[ShadowJob] = asyncio.Queue(limit)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._task: asyncio.Task[None] | None = None
        self._live = live or LiveCounter(None)
        self._slow: WeakSet[LoadedVersion] = WeakSet()
        self.scored = 0
        self.failed = 0
        self.dropped = 0

    def offer(self, job: ShadowJob) -> None:
        """Queue a job after `has_room` returned True; never waits."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._work(), context=Context()
            )  # of no single request
        self._queue.put_nowait(job)

    def has_room(self) -> bool:
        """Whether one more job fits into the queue; if not, it is counted as dropped."""
        full = self._queue.full()
        self.dropped += full
        return not full

    async def drained(self) -> None:
        """Wait until every queued job is done."""
        await self._queue.join()

    async def close(self) -> None:
        """Stop scoring, and drop the queued jobs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.dropped += self._queue.qsize()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        turn = time.perf_counter()
        while True:
            job = await self._queue.get()
            begin = time.perf_counter()
            try:
                outputs = await self._score(job, begin)
                self.scored += 1
                self._live.scored(job, SHADOW, outputs)
            except Exception as error:  # noqa: BLE001 - a shadow may fail in any way; it must not stop the others
                self._failed(job, error, (time.perf_counter() - begin) * 1e3)
            finally:
                self._queue.task_done()
            if time.perf_counter() - turn > TURN_S:
                await asyncio.sleep(0)  # let the event loop answer requests
                turn = time.perf_counter()

    def _failed(self, job: ShadowJob, error: Exception, latency_ms: float) -> None:
        if self.failed % 1_000 == 0:
            _log.warning("shadow %s failed: %s (%d failures so far)", job.version, error, self.failed)
        self.failed += 1
        self._live.not_scored(job, SHADOW, error)
        self._recorder.fail(
            Failure(
                id=job.id, version=job.version.version, arm=SHADOW, shadow=True, unit=job.unit,
                at_us=job.at_us, latency_ms=latency_ms,
                rows=job.rows, entities=job.keys.entities if job.keys is not None else None,
            )
        )  # fmt: skip

    async def _score(self, job: ShadowJob, begin: float) -> Mapping[str, Array]:
        version, found = job.version, job.found
        if job.keys is not None and not _same_vector(version, job.answered_by):
            found = await self._look_up(version, job.keys)
        elif job.keys is None:
            found = replace(found, inputs=version.selected(found.inputs, job.answered_by))
        rows = version.check(found.inputs)
        quick = version.inline and 0 < version.example_ms < TURN_S * 1e3 and version not in self._slow
        if quick and rows <= MAX_ROWS:
            turn = time.perf_counter()
            try:
                outputs = version.predict(found.inputs, found.abstained)
            finally:
                if time.perf_counter() - turn > TURN_S:
                    self._slow.add(
                        version
                    )  # its requests take longer than its example: callers would wait for it
        else:
            loop = asyncio.get_running_loop()
            outputs = await loop.run_in_executor(self._pool, version.predict, found.inputs, found.abstained)
        keys = job.keys
        self._recorder.record(
            id=job.id, version=version.version, arm=SHADOW, shadow=True, unit=job.unit, at_us=job.at_us,
            latency_ms=(time.perf_counter() - begin) * 1e3, rows=rows, inputs=found.inputs, outputs=outputs,
            float32_matrix=version.float32_matrix and keys is None, missing=found.missing or None,
            entities=keys.entities if keys is not None else None, in_view=version.in_view,
        )  # fmt: skip
        return outputs

    def describe(self) -> dict[str, Any]:
        """Counts of scored, failed and dropped jobs by name."""
        return {"scored": self.scored, "failed": self.failed, "dropped": self.dropped}


def _same_vector(one: LoadedVersion, other: LoadedVersion) -> bool:
    return (one.service, one.missing, one.signature.inputs) == (
        other.service,
        other.missing,
        other.signature.inputs,
    )
