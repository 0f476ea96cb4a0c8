"""What of an answer is logged: the exact vector, the outputs, the version and arm, the moment, the time it took.

Of an answer that failed there is a record without vector and outputs, so that whoever judges a version sees its
failures: written a moment later, behind a bound, since a failure must not cost more than an answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from functions.prediction_log import LogFullError, encode_prediction
from ray_apps.predictor.protocol.datatypes import Array
from ray_apps.predictor.write_coalescing import WriteBatch

__all__ = ["Failure", "Log", "Recorder", "vectors"]

MAX_VALUES = 65_536
"""A row with more values than this is logged without them."""
MAX_FAILURES = 512
"""So many failures wait to be written; more are dropped and counted."""
FLUSH_S = 0.05
_FLOAT32 = np.dtype(np.float32)
_log = logging.getLogger("ray.serve")


class Log(Protocol):
    """A durable log."""

    def append(self, payload: bytes) -> int:
        """Keep a record. Raises: LogFullError."""
        ...

    def extend(self, payloads: Sequence[bytes]) -> int:
        """Keep several, all or none. Raises: LogFullError."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that a version was chosen for and did not answer; fields as of `Recorder.record`.

    rows: 1 as long as the request was not compared with the signature: nobody makes a thousand records of one.
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


def _is_float32_matrix(array: Array, rows: int) -> bool:
    return array.dtype == _FLOAT32 and array.ndim == 2 and len(array) == rows  # noqa: PLR2004


class Recorder:
    """Logs answers of one model; counts the records that a full log did not take.

    failures: how many were written; failures_dropped: how many came faster than they could be.
    """

    def __init__(self, model: str, log: Log | None) -> None:
        self._model, self._log = model, log
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
    ) -> None:
        """Make one answer durable. A full log drops and counts it: answering goes first.

        plain: by tensors, of a version that is signed to make a float32 (rows, K) of one (rows, F), as most are: that is short.
        moment: if the answer leaves at its end, such records are written together then, before it.
        """
        if self._log is None or rows == 0:
            return
        numeric: Array | None
        categorical: Sequence[Sequence[str | None]] | None = None
        scores: Array | None = next(iter(outputs.values()), None)
        if float32_matrix and scores is not None and _is_float32_matrix(scores, rows):
            numeric = next(iter(inputs.values()))
        else:
            float32_matrix = False  # a user's class may answer something else than it signed
            (numeric, categorical), (scores, _) = vectors(inputs, rows), vectors(outputs, rows)
        payload = encode_prediction(
            id=id, model=self._model, version=version, arm=arm, shadow=shadow, unit=unit, at_us=at_us,
            latency_ms=latency_ms, rows=rows, numeric=numeric, categorical=categorical, outputs=scores,
            missing=missing, entities=entities,
        )  # fmt: skip
        if float32_matrix and write_batch is not None:
            write_batch.pending_of(self).append(payload)
        else:
            self._append(self._log, payload)

    def write_pending(self, records: Sequence[bytes]) -> None:
        """Make answers of one moment durable. Never raises: a log that is broken costs records then, not others' answers."""
        try:
            if self._log is not None:
                self._write(self._log, records)
        except Exception:  # noqa: BLE001 - answers of others wait for this
            _log.exception("prediction log of %s: %d records are lost", self._model, len(records))
            self.dropped += len(records)

    def _write(self, log: Log, payloads: Sequence[bytes]) -> None:
        if (
            len(payloads) == 1
        ):  # 2 us less than as one of several, of the 17 that a lone caller's record takes
            self._append(log, payloads[0])
        else:
            self._extend(log, payloads)

    def fail(self, failure: Failure) -> None:
        """Have a failure logged soon; never waits. Beyond the bound it is dropped and counted."""
        if self._log is None or failure.rows == 0:
            return
        if len(self._failures) >= MAX_FAILURES:
            self.failures_dropped += 1
            return
        self._failures.append(failure)
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write the failures that wait."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        while self._failures and self._log is not None:
            one = self._failures.popleft()
            payload = encode_prediction(
                id=one.id, model=self._model, version=one.version, arm=one.arm, shadow=one.shadow, unit=one.unit,
                at_us=one.at_us, latency_ms=one.latency_ms, rows=one.rows, numeric=None, categorical=None,
                outputs=None, entities=one.entities,
            )  # fmt: skip
            self._append(self._log, payload)
            self.failures += 1

    def describe(self) -> dict[str, int]:
        """The counts."""
        return {
            "written": self.written,
            "dropped": self.dropped,
            "failures": self.failures,
            "failures_dropped": self.failures_dropped,
        }

    def _append(self, log: Log, payload: bytes) -> None:
        try:
            log.append(payload)
        except LogFullError as error:
            if self.dropped % 1_000 == 0:
                _log.error("prediction log of %s: %s; %d dropped so far", self._model, error, self.dropped)
            self.dropped += 1
        else:
            self.written += 1

    def _extend(self, log: Log, payloads: Sequence[bytes]) -> None:
        try:
            log.extend(payloads)
        except LogFullError:
            for payload in payloads:  # there may be room for some
                self._append(log, payload)
        else:
            self.written += len(payloads)


def vectors(
    tensors: Mapping[str, Array], rows: int
) -> tuple[npt.NDArray[np.float32] | None, list[list[str | None]] | None]:
    """Numbers and texts of some tensors, side by side per row: float32 (rows, F) and lists of C texts.

    Tensors whose first dimension is not the rows, and rows of more than `MAX_VALUES`, are left out (None).
    """
    numbers: list[Array] = []
    texts: list[Array] = []
    for array in tensors.values():
        if array.ndim and array.shape[0] == rows and array.size <= MAX_VALUES * rows:
            (texts if array.dtype.kind == "O" else numbers).append(array)
    numeric = [_float32(array).reshape(rows, -1) for array in numbers]
    joined = numeric[0] if len(numeric) == 1 else np.hstack(numeric) if numeric else None
    return joined, _texts(texts, rows) if texts else None


def _float32(array: Array) -> Array:
    """As float32; what is beyond its range is logged as infinite."""
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _texts(arrays: Sequence[Array], rows: int) -> list[list[str | None]]:
    found: list[list[str | None]] = [[] for _ in range(rows)]
    for array in arrays:
        for row, values in zip(found, array.reshape(rows, -1).tolist(), strict=True):
            row += [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
    return found
