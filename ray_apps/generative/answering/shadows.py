"""Shadow versions of language models answer copies of requests, after the answer and one at a time; under load they are dropped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp
import orjson

from toque.functions.generative.engines import EngineDown, Lease, QueueFull
from toque.functions.runtime.receipt import TokenPrice
from toque.ray_apps.generative.answering.call import ENGINE_S, Call
from toque.ray_apps.generative.answering.engine_request import (
    engine_body,
    finding_tensors,
    guard_answer,
    guarded_request,
    refusal_of,
)
from toque.ray_apps.generative.answering.recording import (
    IN_VIEW,
    LoggedRow,
    live_outputs,
    request_tensors,
    response_tensors,
)
from toque.ray_apps.generative.openai.answers import record_of
from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.ray_apps.generative.openai.requests import EMBEDDING, Ask
from toque.ray_apps.generative.openai.tools import calls_by_schema, check_tools, with_call
from toque.ray_apps.generative.versions import GenerativeVersion
from toque.ray_apps.predictor.inference.live import LiveCounter
from toque.ray_apps.predictor.inference.recording import Failure, Recorder
from toque.ray_apps.predictor.protocol.errors import PredictorError
from toque.registry import ModelPolicy
from toque.registry.models.traffic import Traffic

__all__ = ["GenerativeShadows", "ShadowAsk"]

SHADOW: Final = "shadow"
_OK: Final = 200
_TIER: Final = "flex"
"""Where a shadow shares its engine with what callers are answered by, those who ask go first."""
_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class ShadowAsk:
    """A request that was answered, to be answered by a shadow too.

    body: as the shadow's prompt makes it. policy: of the model. calls_by_schema: as of `Call`.
    """

    version: GenerativeVersion
    lease: Lease
    ask: Ask
    body: Mapping[str, Any]
    id: str
    unit: str | None
    at_us: int
    traffic: Traffic | None
    policy: ModelPolicy
    calls_by_schema: bool


class GenerativeShadows:
    """A bounded queue of requests for shadows, and the task that has them answered.

    price: of tokens, for the log. answered, failed, dropped: counts; those beyond `limit` are dropped.
    """

    def __init__(
        self, recorder: Recorder, live: LiveCounter, *, limit: int = 64, price: TokenPrice | None = None
    ) -> None:
        self._recorder, self._live, self._price = recorder, live, price
        self._queue: asyncio.Queue[ShadowAsk] = asyncio.Queue(limit)
        self._task: asyncio.Task[None] | None = None
        self.answered, self.failed, self.dropped = 0, 0, 0

    def offer(self, job: ShadowAsk) -> None:
        """Queue a request, or drop it where there are many; never waits."""
        if self._queue.full() or job.ask.kind == EMBEDDING:
            self.dropped += 1
            job.lease.release()
            return
        if self._task is None:
            task = self._work()
            self._task = asyncio.get_running_loop().create_task(
                task, context=Context()
            )  # of no single request
        self._queue.put_nowait(job)

    def offer_copies(self, call: Call, versions: Sequence[GenerativeVersion], policy: ModelPolicy) -> None:
        """Offer an answered request to versions that are ready, to each as its own prompt makes it."""
        for version in versions:
            try:
                ask = call.ask
                if version.lease.process.spec.weights != call.lease.process.spec.weights:
                    ask = replace(ask, token_ids=None)  # of another tokenizer; the text is the same
                ask, found = guarded_request(ask, version.prompt)
                if (refusal := refusal_of(found, version, ask.kind)) is not None:
                    raise refusal
                body = engine_body(ask, version)
                process = version.lease.process
                check_tools(body, process.no_tools)
                by_schema = not process.engine.requires_calls and calls_by_schema(body)
                lease = version.lease.again()
            except (ApiRefusal, EngineDown):  # it refuses request, variables or tools, or goes just now
                self.failed += 1
                continue
            at_us = time.time_ns() // 1_000
            self.offer(
                ShadowAsk(
                    version, lease, ask, body, call.id, call.unit, at_us, call.traffic, policy, by_schema
                )
            )

    async def close(self) -> None:
        """Stop answering, and drop what waits."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        while not self._queue.empty():
            self._queue.get_nowait().lease.release()
            self.dropped += 1

    async def _work(self) -> None:
        while True:
            job = await self._queue.get()
            begin = time.perf_counter()
            try:
                await job.lease.ready(ENGINE_S)
                slot = await job.lease.process.slots.take(_TIER)
                begin = time.perf_counter()
                try:
                    await self._answer(job, begin)
                finally:
                    slot.release()
                self.answered += 1
            except QueueFull:
                self.dropped += 1
            except (EngineDown, aiohttp.ClientError, PredictorError, ValueError) as error:
                self._fail(job, error, (time.perf_counter() - begin) * 1e3)
            finally:
                job.lease.release()
                self._queue.task_done()

    async def _answer(self, job: ShadowAsk, begin: float) -> None:
        process = job.lease.process
        body = {**job.body, "stream": False, "model": job.lease.model}
        body.pop("stream_options", None)
        address = f"{process.base}/v1/{job.ask.kind}"
        headers = {"content-type": "application/json"}
        async with process.client.post(address, data=orjson.dumps(body), headers=headers) as response:
            content = await response.read()
            if response.status != _OK:
                raise EngineDown(f"status {response.status}: {content[:200]!r}")
        elapsed_s = time.perf_counter() - begin
        answer = record_of(orjson.loads(content), elapsed_s)
        if job.calls_by_schema:
            answer.message = with_call(answer.message)
        found = guard_answer(answer, job.version.prompt)
        row = LoggedRow.of(
            job.id, request_tensors(job.ask), response_tensors(answer) | finding_tensors(found), answer, price=self._price,
            keep_texts=job.policy.keep_texts,
        )  # fmt: skip
        self._recorder.record(
            id=job.id, version=job.version.version, arm=SHADOW, shadow=True, unit=job.unit, at_us=job.at_us,
            latency_ms=elapsed_s * 1e3, rows=1, inputs=row.inputs, outputs=row.outputs, in_view=IN_VIEW,
        )  # fmt: skip
        judged = live_outputs(answer, embeds=False, declined=answer.declines(job.policy.declining))
        self._live.scored(job, SHADOW, judged)

    def _fail(self, job: ShadowAsk, error: Exception, latency_ms: float) -> None:
        if self.failed % 1_000 == 0:
            _log.warning("shadow %s failed: %s (%d failures so far)", job.version, error, self.failed)
        self.failed += 1
        self._live.not_scored(job, SHADOW, error)
        self._recorder.fail(
            Failure(
                id=job.id, version=job.version.version, arm=SHADOW, shadow=True, unit=job.unit, at_us=job.at_us,
                latency_ms=latency_ms,
            )
        )  # fmt: skip
