"""Dynamic batching: requests that arrive while the model is busy are scored together; an idle model never waits.

For models whose rows are independent, and that take hardly longer for many rows than for one. Waiting requests are
answered in the order they came, with as many rows at once as the bound allows.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass

import numpy as np

from toque.clusters.telemetry.tracing import RequestTrace, current_request
from toque.functions.prediction_log import BatchPlace
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.registry.models import Signature

__all__ = ["BatchedOutputs", "Batcher", "Batching", "BatchingError", "place_of"]

Inputs = Mapping[str, Array]
Predict = Callable[[Inputs], Awaitable[Mapping[str, Array]]]
MAX_ROWS, MAX_WAIT_MS = 65_536, 1_000.0


class BatchingError(ValueError):
    """A version's tags ask for batches that its signature does not allow."""


@dataclass(frozen=True, slots=True)
class Batching:
    """Bounds of a version's batches: rows at once, and how long a request may wait for others to come."""

    max_rows: int
    max_wait_s: float = 0.0

    @classmethod
    def of(cls, tags: Mapping[str, str], signature: Signature) -> Batching | None:
        """Read the bounds in the tags `max_batch_rows` and `max_batch_wait_ms`; None without the first.

        Raises: BatchingError naming the tag.
        """
        rows, wait_ms = tags.get("max_batch_rows"), tags.get("max_batch_wait_ms", "0")
        if rows is None:
            return None
        if not rows.isdecimal() or not 1 < int(rows) <= MAX_ROWS:
            raise BatchingError(f"tag max_batch_rows={rows!r}: expected a number from 2 to {MAX_ROWS}")
        try:
            wait = float(wait_ms)
        except ValueError:
            wait = -1.0
        if not 0 <= wait <= MAX_WAIT_MS:
            raise BatchingError(f"tag max_batch_wait_ms={wait_ms!r}: expected 0 to {MAX_WAIT_MS:.0f}")
        for spec in (*signature.inputs, *signature.outputs):
            if spec.shape[:1] != [-1]:
                raise BatchingError(
                    f"tag max_batch_rows: {spec.name!r} has shape {spec.shape}, its rows are not open"
                )
        return cls(int(rows), wait / 1e3)


class BatchedOutputs(dict[str, Array]):
    """Outputs of one request out of a batch with others, and its place there, on which the bits of a sum may depend."""

    place: BatchPlace

    @classmethod
    def of(
        cls, outputs: Mapping[str, Array], *, at: int, rows: int, batch: str, total: int
    ) -> BatchedOutputs:
        """Cut the request's rows out of the batch's outputs."""
        found = cls((name, array[at : at + rows]) for name, array in outputs.items())
        found.place = BatchPlace(batch, at, total)
        return found


def place_of(outputs: Mapping[str, Array]) -> BatchPlace | None:
    """Place of a request in a batch with others; None if it was scored alone."""
    return outputs.place if isinstance(outputs, BatchedOutputs) else None


@dataclass(slots=True)
class _PendingRequest:
    inputs: Inputs
    rows: int
    shapes: tuple[tuple[int, ...], ...]
    since: float
    answer: asyncio.Future[Mapping[str, Array]]
    trace: RequestTrace | None


class Batcher:
    """Scores requests for one version in batches. Belongs to one event loop.

    predict: scores checked inputs. batches, rows: scored so far. waited_s: total time that requests waited for their
    batch.
    """

    def __init__(self, predict: Predict, bounds: Batching) -> None:
        self._predict, self._bounds = predict, bounds
        self._queue: deque[_PendingRequest] = deque()
        self._queued_rows = 0
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._name = os.urandom(6).hex()
        self.batches = 0
        self.rows = 0
        self.waited_s = 0.0

    @property
    def waiting(self) -> int:
        """Number of requests that wait for their batch."""
        return len(self._queue)

    async def predict(self, inputs: Inputs, rows: int) -> Mapping[str, Array]:
        """Score one request in some batch. Raises: what the model raises for it, never for another request."""
        loop = asyncio.get_running_loop()
        shapes = tuple(array.shape[1:] for array in inputs.values())
        pending = _PendingRequest(
            inputs, rows, shapes, time.perf_counter(), loop.create_future(), current_request()
        )
        self._queue.append(pending)
        self._queued_rows += rows
        if self._queued_rows >= self._bounds.max_rows:
            self._full.set()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._work(), context=Context())  # it works for no single request
        return await pending.answer

    async def _work(self) -> None:
        while self._queue:
            if self._bounds.max_wait_s and self._queued_rows < self._bounds.max_rows:
                self._full.clear()
                await _wait(self._full, self._bounds.max_wait_s)
            batch = self._take()
            if batch:
                now = time.perf_counter()
                self.waited_s += sum(now - each.since for each in batch)
                for each in batch:
                    if each.trace is not None:
                        each.trace.mark("queue")
                await self._answer(batch)

    def _take(self) -> list[_PendingRequest]:
        """Take the first requests that fit into one batch; those whose caller gave up are dropped."""
        batch: list[_PendingRequest] = []
        rows = 0
        while self._queue:
            first = self._queue[0]
            if batch and (rows + first.rows > self._bounds.max_rows or first.shapes != batch[0].shapes):
                break
            self._queue.popleft()
            self._queued_rows -= first.rows
            if not first.answer.done():
                batch.append(first)
                rows += first.rows
        return batch

    async def _answer(self, batch: Sequence[_PendingRequest]) -> None:
        total = sum(each.rows for each in batch)
        self.batches += 1
        self.rows += total
        try:
            outputs = await self._predict(_joined(batch))
            if any(len(array) != total for array in outputs.values()):
                raise ValueError(f"{total} rows in, outputs of {[len(a) for a in outputs.values()]} rows out")  # noqa: TRY301 - one way out
        except Exception as error:  # noqa: BLE001 - any fault is passed on to the callers
            await self._answer_alone(batch, error)
            return
        if len(batch) == 1:
            if not batch[0].answer.done():
                batch[0].answer.set_result(outputs)
            return
        at, name = 0, f"{self._name}-{self.batches}"
        for each in batch:
            if not each.answer.done():
                part = BatchedOutputs.of(outputs, at=at, rows=each.rows, batch=name, total=total)
                each.answer.set_result(part)
            at += each.rows

    async def _answer_alone(self, batch: Sequence[_PendingRequest], error: Exception) -> None:
        """Score the requests of a failed batch one by one, so that one bad request fails alone."""
        if len(batch) == 1:
            if not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for each in batch:
            await self._answer([each])


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return


def _joined(batch: Sequence[_PendingRequest]) -> Inputs:
    if len(batch) == 1:
        return batch[0].inputs
    return {name: np.concatenate([each.inputs[name] for each in batch]) for name in batch[0].inputs}
