"""Records of the log: predictions and labels, as compact messages in the stream and as columns in the tables."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from registry.errors import NewerFormat

__all__ = [
    "LABELS",
    "OBSERVED_AHEAD",
    "PREDICTIONS",
    "Label",
    "decode_prediction",
    "encode_labels",
    "encode_prediction",
    "label_columns",
    "prediction_columns",
]

_TIME = pa.timestamp("us", tz="UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

PREDICTIONS = pa.schema(
    [
        pa.field("prediction_id", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("shadow", pa.bool_(), nullable=False),
        pa.field("unit", pa.string()),
        pa.field("predicted_at", _TIME, nullable=False),
        pa.field("latency_ms", pa.float32()),
        pa.field("numeric", pa.list_(pa.float32())),
        pa.field("categorical", pa.list_(pa.string())),
        pa.field("outputs", pa.list_(pa.float32())),
        pa.field("missing", pa.list_(pa.string())),
        pa.field("entities", pa.string()),
        pa.field("day", pa.string(), nullable=False),
    ]
)
"""One row per answered row: `{id}` if the request had one row, else `{id}:{row}`. NaN in `numeric` is missing."""

TRACED_PREDICTIONS = PREDICTIONS.append(pa.field("trace_id", pa.string())).append(
    pa.field("stages", pa.string())
)
"""The same with the trace of each request: its id and, if it was kept, its stages as JSON. A table has these columns from the
first such request on, and only readers of traces ask for them."""

RowTrace = tuple[str, str | None]
"""Trace of a request: its id and, if it was kept, its stages as JSON."""

PINNED = "pinned"
"""Arm of a request that asked for a version by number: not split, and no evidence on a split."""

LABELS = pa.schema(
    [
        pa.field("prediction_id", pa.string(), nullable=False),
        pa.field("label", pa.float64(), nullable=False),
        pa.field("observed_at", _TIME, nullable=False),
        pa.field("received_at", _TIME, nullable=False),
        pa.field("day", pa.string(), nullable=False),
    ]
)
"""One row per label received; `day` is the day of `received_at`. A correction is a later row."""

_FIELDS = (
    "id", "model", "version", "arm", "shadow", "unit", "at_us", "latency_ms",
    "rows", "numeric", "categorical", "outputs", "missing", "entities",
)  # fmt: skip
_TRACE_FIELDS = ("trace_id", "stages")

_LABEL_FIELDS = 4
_packers = threading.local()
_KEPT_BYTES = 1 << 20


def epoch_us(at: datetime) -> int:
    """Convert an aware time to microseconds since 1970.

    Raises: ValueError if the time is naive.
    """
    if at.tzinfo is None:
        raise ValueError(f"a time needs its zone, got {at.isoformat()}; use datetime.now(UTC)")
    return (at - _EPOCH) // timedelta(microseconds=1)


def encode_prediction(
    *,
    id: str,  # noqa: A002 - the protocol's word
    model: str,
    version: int,
    arm: str,
    shadow: bool,
    unit: str | None,
    at_us: int,
    latency_ms: float,
    rows: int,
    numeric: npt.NDArray[np.float32] | None,
    categorical: Sequence[Sequence[str | None]] | None,
    outputs: npt.NDArray[np.float32] | None,
    missing: Sequence[Sequence[str]] | None = None,
    entities: Sequence[Mapping[str, Any]] | None = None,
    trace: RowTrace | None = None,
) -> bytes:
    """Encode the answered rows of one request as a record; without a trace it is as releases without traces write it.

    at_us: microseconds since 1970, UTC. numeric: (rows, F), outputs: (rows, K), row-major; None is not logged.
    """
    fields = (
            id, model, version, arm, shadow, unit, at_us, latency_ms, rows,
            None if numeric is None else numeric.tobytes(),
            categorical,
            None if outputs is None else outputs.tobytes(),
            missing,
            entities,
    )  # fmt: skip
    return _pack(fields if trace is None else fields + trace)


def _pack(fields: tuple[Any, ...]) -> bytes:
    """Pack as msgpack with this thread's packer: a new one allocates a quarter of a megabyte."""
    packer = getattr(_packers, "packer", None)
    if packer is None:
        packer = _packers.packer = msgpack.Packer(default=str)
    packed: bytes = packer.pack(fields)
    if len(packed) > _KEPT_BYTES:
        _packers.packer = None  # a packer keeps as much memory as its largest record took
    return packed


def decode_prediction(payload: bytes) -> dict[str, Any]:
    """Decode the fields of `encode_prediction`, arrays still as bytes; without a trace the fields of one are missing.

    Raises: NewerFormat if there are others.
    """
    values = msgpack.unpackb(payload)
    known = (len(_FIELDS), len(_FIELDS) + len(_TRACE_FIELDS))
    if not isinstance(values, list) or len(values) not in known:
        raise _newer("prediction", values, known[-1])
    return dict(zip((*_FIELDS, *_TRACE_FIELDS), values, strict=False))


def _newer(what: str, values: Any, known: int) -> NewerFormat:
    """Make the error for a record that has other fields: their number is a record's format, and later ones add at the end."""
    found = f"{len(values)} fields" if isinstance(values, list) else type(values).__name__
    return NewerFormat(f"a {what} in the log", found, f"{known} fields")


def prediction_columns(payloads: Iterable[bytes]) -> dict[str, pa.Table]:
    """Convert records to one table per model, a row per answered row; with the columns of traces if any has one."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for payload in payloads:
        record = decode_prediction(payload)
        by_model.setdefault(record["model"], []).append(record)
    return {model: _predictions(records) for model, records in by_model.items()}


def _predictions(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    counts = [record["rows"] for record in records]

    def repeat(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
        return pa.array([v for v, n in zip(values, counts, strict=True) for _ in range(n)], kind)

    def field(name: str) -> list[Any]:
        return [record[name] for record in records]

    columns = {
        "prediction_id": pa.array(
            [name for r in records for name in _row_ids(r["id"], r["rows"])], pa.string()
        ),
        "model": repeat(field("model"), pa.string()),
        "version": repeat(field("version"), pa.int64()),
        "arm": repeat(field("arm"), pa.string()),
        "shadow": repeat(field("shadow"), pa.bool_()),
        "unit": repeat(field("unit"), pa.string()),
        "predicted_at": repeat(field("at_us"), pa.int64()).cast(_TIME),
        "latency_ms": repeat(field("latency_ms"), pa.float32()),
        "numeric": _float_lists(field("numeric"), counts),
        "categorical": _lists(field("categorical"), counts),
        "outputs": _float_lists(field("outputs"), counts),
        "missing": _lists(field("missing"), counts),
        "entities": pa.array(_entities(field("entities"), counts), pa.string()),
        "day": repeat((_day(at) for at in field("at_us")), pa.string()),
    }
    if not any("trace_id" in record for record in records):
        return pa.table(columns, schema=PREDICTIONS)
    traces = {name: repeat((record.get(name) for record in records), pa.string()) for name in _TRACE_FIELDS}
    return pa.table(columns | traces, schema=TRACED_PREDICTIONS)


def _row_ids(request_id: str, rows: int) -> list[str]:
    return [request_id] if rows == 1 else [f"{request_id}:{row}" for row in range(rows)]


def _day(at_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=at_us)).date().isoformat()


def _float_lists(blobs: Sequence[bytes | None], counts: Sequence[int]) -> pa.Array:
    """Split row-major blobs into lists of float32, one per row; null where nothing was logged."""
    widths, nulls = [], []
    for blob, rows in zip(blobs, counts, strict=True):
        widths += [len(blob or b"") // 4 // rows if rows else 0] * rows
        nulls += [blob is None] * rows
    offsets = np.concatenate(([0], np.cumsum(widths))).astype(np.int32)
    values = np.frombuffer(b"".join(blob or b"" for blob in blobs), dtype="<f4")
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values, pa.float32()), mask=pa.array(nulls, pa.bool_())
    )


def _lists(values: Sequence[Sequence[Sequence[str | None]] | None], counts: Sequence[int]) -> pa.Array:
    rows: list[Sequence[str | None] | None] = []
    for value, count in zip(values, counts, strict=True):
        rows.extend([None] * count if value is None else value)
    return pa.array(rows, pa.list_(pa.string()))


def _entities(values: Sequence[Sequence[Any] | None], counts: Sequence[int]) -> list[str | None]:
    rows: list[str | None] = []
    for value, count in zip(values, counts, strict=True):
        rows.extend([None] * count if value is None else [json.dumps(v, sort_keys=True) for v in value])
    return rows


OBSERVED_AHEAD = timedelta(minutes=5)
"""How far a label's `observed_at` may lie after its `received_at`, for clocks that differ."""


@dataclass(frozen=True, slots=True)
class Label:
    """Label: the truth about one prediction, as observed at a time and received at another (both aware)."""

    prediction_id: str
    label: float
    observed_at: datetime
    received_at: datetime


def encode_labels(labels: Sequence[Label]) -> bytes:
    """Encode labels that are acknowledged together as one record.

    Raises: ValueError if a time is naive.
    """
    packed: bytes = msgpack.packb(
        [(x.prediction_id, x.label, epoch_us(x.observed_at), epoch_us(x.received_at)) for x in labels]
    )
    return packed


def _label_rows(payload: bytes) -> list[Any]:
    rows = msgpack.unpackb(payload)
    if not isinstance(rows, list):
        raise _newer("label", rows, _LABEL_FIELDS)
    for row in rows:
        if len(row) != _LABEL_FIELDS:
            raise _newer("label", row, _LABEL_FIELDS)
    return rows


def label_columns(payloads: Iterable[bytes]) -> pa.Table:
    """Convert label records to a table, a row per label."""
    rows = [row for payload in payloads for row in _label_rows(payload)]
    ids, values, observed, received = zip(*rows, strict=True) if rows else ((), (), (), ())
    columns = {
        "prediction_id": pa.array(ids, pa.string()),
        "label": pa.array(values, pa.float64()),
        "observed_at": pa.array(observed, pa.int64()).cast(_TIME),
        "received_at": pa.array(received, pa.int64()).cast(_TIME),
        "day": pa.array([_day(at) for at in received], pa.string()),
    }
    return pa.table(columns, schema=LABELS)
