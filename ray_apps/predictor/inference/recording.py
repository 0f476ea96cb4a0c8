"""Logs each answer: inputs and outputs bit for bit, the version, the arm and its chance, the time and the latency.

A failed request gets a record without vector and outputs, so that evaluations of a version count its failures. Such
records are written a little later and are bounded in number, since a failure must not cost more than an answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from toque.functions.prediction_log import LogFullError, Pseudonyms, encode_prediction
from toque.functions.prediction_log.records import RowTrace
from toque.ray_apps.predictor.inference.confirmation import Confirmation
from toque.ray_apps.predictor.inference.held_values import held_values, is_plain, plain
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.versions.batching import place_of
from toque.ray_apps.predictor.versions.in_view import NOTHING_IN_VIEW, InView
from toque.ray_apps.predictor.write_coalescing import WriteBatch

__all__ = ["Failure", "Log", "Recorder"]

MAX_FAILURES = 512
"""Failures that may wait to be written; more are dropped and counted."""
FLUSH_S = 0.05
_log = logging.getLogger("ray.serve")


class Log(Protocol):
    """A durable log of byte records."""

    def append(self, payload: bytes) -> int:
        """Store one record durably in the log. Raises: LogFullError."""
        ...

    def extend(self, payloads: Sequence[bytes]) -> int:
        """Store several records durably, or none of them. Raises: LogFullError."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that its chosen version did not answer; fields as of `Recorder.record`.

    rows: 1 until the request was checked against the signature, so that a bad request cannot make a thousand records.
    """

    id: str
    version: int
    arm: str
    shadow: bool
    unit: str | None
    at_us: int
    latency_ms: float
    rows: int = 1
    entities: Sequence[Mapping[str, Any]] | None = None
    trace: RowTrace | None = None
    propensity: float | None = None


class Recorder:
    """Logs the answers of one model, and counts the records that a full log did not take.

    pseudonyms: what stands in the log for units and entities; None logs them as they are. confirmation: how answers wait
    for their records; None: they do not.
    failures: records of failures that were written; failures_dropped: beyond `MAX_FAILURES`.
    """

    def __init__(
        self,
        model: str,
        log: Log | None,
        *,
        pseudonyms: Pseudonyms | None = None,
        confirmation: Confirmation | None = None,
    ) -> None:
        self._model, self._log, self._pseudonyms = model, log, pseudonyms
        self._confirmation = confirmation
        self._failures: deque[Failure] = deque()
        self._flushing: asyncio.TimerHandle | None = None
        self.written = 0
        self.dropped = 0
        self.failures = 0
        self.failures_dropped = 0

    def record(
        self,
        *,
        id: str,  # noqa: A002 - the protocol's word
        version: int,
        arm: str,
        shadow: bool,
        unit: str | None,
        at_us: int,
        latency_ms: float,
        rows: int,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        float32_matrix: bool = False,
        missing: Sequence[Sequence[str]] | None = None,
        entities: Sequence[Mapping[str, Any]] | None = None,
        write_batch: WriteBatch | None = None,
        trace: RowTrace | None = None,
        propensity: float | None = None,
        in_view: InView = NOTHING_IN_VIEW,
    ) -> int | None:
        """Log one answer durably; a full log drops and counts it, since answering has priority.

        Returns what `confirmed` is to be awaited with before the answer leaves; None: nothing.
        Raises: NotLogged, with nothing written, if the record could not be confirmed and must be.

        float32_matrix: the request is by tensors, and the signature maps one float32 (rows, F) to one (rows, K).
        propensity: chance of the arm; None where none was drawn. in_view: what the columns for monitors hold bit for bit.
        write_batch: with which the response leaves; records of such versions are written together before it does.
        """
        if self._log is None or rows == 0:
            return None
        confirmation = None if shadow else self._confirmation
        if confirmation is not None:
            confirmation.check()
        if self._pseudonyms is not None:
            unit, entities = self._pseudonyms.unit(unit), self._pseudonyms.entities(entities)
        float32_matrix = float32_matrix and is_plain(inputs, outputs, rows)
        held = plain(inputs, outputs) if float32_matrix else held_values(inputs, outputs, rows, in_view)
        payload = encode_prediction(
            id=id, model=self._model, version=version, arm=arm, shadow=shadow, unit=unit, at_us=at_us,
            latency_ms=latency_ms, rows=rows, numeric=held.numeric, categorical=held.categorical, outputs=held.scores,
            missing=missing, entities=entities, trace=trace, propensity=propensity, place=place_of(outputs),
            tensors=held.tensors,
        )  # fmt: skip
        if confirmation is not None:
            return self._append(self._log, payload)
        if float32_matrix and write_batch is not None:
            write_batch.pending_of(self).append(payload)
        else:
            self._append(self._log, payload)
        return None

    async def confirmed(self, number: int) -> None:
        """Wait for the record that `record` returned. Raises: NotLogged if it is not confirmed, and must be."""
        if self._confirmation is not None:
            await self._confirmation.of(number)

    def write_pending(self, records: Sequence[bytes]) -> None:
        """Log the answers of a write batch durably; never raises, since other models' responses wait for it."""
        try:
            if self._log is not None:
                self._write(self._log, records)
        except Exception:  # noqa: BLE001 - responses of other models wait for this
            _log.exception("prediction log of %s: %d records are lost", self._model, len(records))
            self.dropped += len(records)

    def _write(self, log: Log, payloads: Sequence[bytes]) -> None:
        if len(payloads) == 1:  # saves 2 of the 17 µs that a lone caller's record takes
            self._append(log, payloads[0])
        else:
            self._extend(log, payloads)

    def fail(self, failure: Failure) -> None:
        """Queue a failure to be logged soon; beyond the bound it is dropped and counted."""
        if self._log is None or failure.rows == 0:
            return
        if len(self._failures) >= MAX_FAILURES:
            self.failures_dropped += 1
            return
        if self._pseudonyms is not None:
            unit, entities = self._pseudonyms.unit(failure.unit), self._pseudonyms.entities(failure.entities)
            failure = replace(failure, unit=unit, entities=entities)
        self._failures.append(failure)
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write all queued failures now."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        while self._failures and self._log is not None:
            failure = self._failures.popleft()
            payload = encode_prediction(
                id=failure.id, model=self._model, version=failure.version, arm=failure.arm, shadow=failure.shadow,
                unit=failure.unit, at_us=failure.at_us, latency_ms=failure.latency_ms, rows=failure.rows,
                numeric=None, categorical=None, outputs=None, entities=failure.entities, trace=failure.trace,
                propensity=failure.propensity,
            )  # fmt: skip
            self._append(self._log, payload)
            self.failures += 1

    def describe(self) -> dict[str, int]:
        """Counts of written and dropped records by name."""
        waits = self._confirmation
        return {
            "written": self.written,
            "dropped": self.dropped,
            "failures": self.failures,
            "failures_dropped": self.failures_dropped,
            "unconfirmed": 0 if waits is None else waits.unconfirmed,
            "refused": 0 if waits is None else waits.refused,
        }

    def _append(self, log: Log, payload: bytes) -> int:
        """Write one record; returns its number, 0 if the log was full."""
        try:
            number = log.append(payload)
        except LogFullError as error:
            if self.dropped % 1_000 == 0:
                _log.error("prediction log of %s: %s; %d dropped so far", self._model, error, self.dropped)
            self.dropped += 1
            return 0
        self.written += 1
        return number

    def _extend(self, log: Log, payloads: Sequence[bytes]) -> None:
        try:
            log.extend(payloads)
        except LogFullError:
            for payload in payloads:  # there may be room for some of them
                self._append(log, payload)
        else:
            self.written += len(payloads)
