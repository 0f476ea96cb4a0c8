"""Logs each answer: inputs and outputs bit for bit, the version, the arm and its chance, the time and the latency.

A failed request gets a record without vector and outputs, so that evaluations of a version count its failures. Such
records are written a little later and are bounded in number, since a failure must not cost more than an answer. Values
lie side by side for monitors, and bit for bit where that does not hold them. Answers wait until their records are where
the mode of the log promises them to be. Without a confirmation, mode `redis` answers all the same and counts it; mode
`two_nodes` refuses the request.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from toque.functions.prediction_log import LogFullError, Pseudonyms, encode_prediction
from toque.functions.prediction_log.records import LoggedTensor, RowTrace
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.protocol.errors import NotLogged
from toque.ray_apps.predictor.versions.batching import place_of
from toque.ray_apps.predictor.versions.loaded import NOTHING_IN_VIEW, InView
from toque.ray_apps.predictor.write_coalescing import WriteBatch

MAX_FAILURES = 512
"""Failures that may wait to be written; more are dropped and counted."""
FLUSH_S = 0.05
MAX_VALUES = 65_536
"""Number of values above which a row is logged without them."""
MAX_REQUEST_VALUES, MAX_REQUEST_TEXTS = 1_048_576, 65_536
"""Numbers and texts of a request above which its rows are logged without them: writing them would delay others."""
MAX_REQUEST_BYTES = 4 * MAX_REQUEST_VALUES
"""Bytes of a request's inputs, or of its outputs, above which they are not kept bit for bit either."""
_FLOAT32 = np.dtype(np.float32)
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


def _is_logged(tensors: Mapping[str, Array]) -> bool:
    for array in tensors.values():  # noqa: SIM110  # on every request's path: a generator costs twice as much
        if array.size > MAX_REQUEST_VALUES:
            return False
    return True


def _is_float32_matrix(array: Array, rows: int) -> bool:
    return array.dtype == _FLOAT32 and array.ndim == 2 and len(array) == rows  # noqa: PLR2004


class Held(NamedTuple):
    """Values of a record: side by side for monitors, and as they were where that does not hold them."""

    numeric: Array | None
    categorical: Sequence[Sequence[str | None]] | None
    scores: Array | None
    tensors: list[LoggedTensor] | None


def is_plain(inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int) -> bool:
    """Whether the answer has the shape that is signed; a user's class may answer with another one."""
    scores = next(iter(outputs.values()), None)
    return scores is not None and _is_float32_matrix(scores, rows) and _is_logged(inputs)


def plain(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Held:
    """Take the one matrix of each side as it is."""
    return Held(next(iter(inputs.values())), None, next(iter(outputs.values())), None)


def held_values(
    inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int, in_view: InView
) -> Held:
    """Join the tensors of each side, and pack those that this does not hold bit for bit."""
    (numeric, categorical), (scores, texts) = vectors(inputs, rows), vectors(outputs, rows)
    tensors = [
        *_kept(inputs, rows, in_view=in_view.inputs, output=False),
        *_kept(outputs, rows, in_view=in_view.outputs, output=True),
    ]
    return Held(
        numeric, categorical, _lengths(texts) if scores is None and texts else scores, tensors or None
    )


def _kept(
    tensors: Mapping[str, Array], rows: int, *, in_view: Mapping[str, tuple[int, ...]] | None, output: bool
) -> list[LoggedTensor]:
    """Pack the tensors of one side; none if the view holds them as they are, or they are more than is logged."""
    if in_view is not None and _view_is_exact(tensors, rows, in_view):
        return []
    texts = sum(array.size for array in tensors.values() if array.dtype.kind == "O")
    if texts > MAX_REQUEST_TEXTS or sum(array.nbytes for array in tensors.values()) > MAX_REQUEST_BYTES:
        return []
    packed = [LoggedTensor.of(name, array, rows=rows, output=output) for name, array in tensors.items()]
    if None in packed or sum(each.size_bytes for each in packed if each) > MAX_REQUEST_BYTES:
        return []
    return [each for each in packed if each]


def _view_is_exact(tensors: Mapping[str, Array], rows: int, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether float32 and UTF-8 texts side by side hold these tensors: they have the signed shapes, and all were logged."""
    for name, array in tensors.items():
        is_text = array.dtype.kind == "O"
        most = min(MAX_VALUES * rows, MAX_REQUEST_TEXTS if is_text else MAX_REQUEST_VALUES)
        if array.shape != (rows, *shapes[name]) or array.size > most:
            return False
        if array.dtype != _FLOAT32 and not (is_text and _is_text(array)):
            return False
    return True


def _is_text(array: Array) -> bool:
    try:
        for item in array.ravel().tolist():
            if item is not None and not isinstance(item, str):
                item.decode()
    except UnicodeDecodeError:
        return False
    return True


def vectors(
    tensors: Mapping[str, Array], rows: int
) -> tuple[npt.NDArray[np.float32] | None, list[list[str | None]] | None]:
    """Join tensors side by side per row, numbers as float32 (rows, F) and texts as lists of C texts.

    Tensors whose first dimension is not the rows, and those of more values than are logged, are left out (None).
    """
    numbers: list[Array] = []
    texts: list[Array] = []
    for array in tensors.values():
        is_text = array.dtype.kind == "O"
        most = min(MAX_VALUES * rows, MAX_REQUEST_TEXTS if is_text else MAX_REQUEST_VALUES)
        if array.ndim and array.shape[0] == rows and array.size <= most:
            (texts if is_text else numbers).append(array)
    numeric = [_float32(array).reshape(rows, -1) for array in numbers]
    joined = numeric[0] if len(numeric) == 1 else np.hstack(numeric) if numeric else None
    return joined, _texts(texts, rows) if texts else None


def _lengths(texts: Sequence[Sequence[str | None]]) -> npt.NDArray[np.float32]:
    """Length of each text in characters, which stands for a text where a number is logged; NaN for a missing one."""
    return np.array([[np.nan if each is None else len(each) for each in row] for row in texts], np.float32)


def _float32(array: Array) -> Array:
    """Convert to float32; values beyond its range become infinite."""
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


class ConfirmedLog(Protocol):
    """A log that tells when a record is where it was promised to be."""

    @property
    def confirms(self) -> bool:
        """Whether records can be confirmed now, as far as is known."""
        ...

    @property
    def why_unconfirmed(self) -> str:
        """What keeps records from being confirmed."""
        ...

    async def confirmed(self, number: int, /) -> bool:
        """Wait until record `number` is confirmed; False if it is not within the log's bound."""
        ...


class Confirmation:
    """Waits for one model's records. strict: an answer whose record is not confirmed is refused.

    unconfirmed: answers that left with their record in the file alone. refused: requests.
    """

    def __init__(self, log: ConfirmedLog, *, strict: bool) -> None:
        self._log, self._strict = log, strict
        self.unconfirmed = 0
        self.refused = 0

    def check(self) -> None:
        """Refuse a request before its record is written, if it could not be confirmed. Raises: NotLogged."""
        if self._strict and not self._log.confirms:
            self._miss()

    async def of(self, number: int) -> None:
        """Wait for record `number`; 0: the log was full. Raises: NotLogged if it is not confirmed, and must be."""
        if not (number and await self._log.confirmed(number)):
            self._miss()

    def _miss(self) -> None:
        if not self._strict:
            self.unconfirmed += 1
            return
        self.refused += 1
        raise NotLogged(
            f"the answer could not be logged on two nodes: {self._log.why_unconfirmed}; ask again"
        )


__all__ = [
    "Confirmation",
    "ConfirmedLog",
    "Failure",
    "Held",
    "Log",
    "Recorder",
    "held_values",
    "is_plain",
    "plain",
    "vectors",
]
