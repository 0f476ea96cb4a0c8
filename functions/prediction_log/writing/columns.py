"""Columns of the log's tables, made of the records that came through the stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from toque.functions.prediction_log.records import (
    CONTENT,
    CONTENT_LABELS,
    LABELS,
    LARGE,
    LARGE_BYTES,
    LOGGED,
    TIME,
    TRACE_FIELDS,
    LoggedTensor,
    decode_prediction,
    label_rows,
)
from toque.registry.times import from_epoch_us

__all__ = ["has_large_value", "label_columns", "large_columns", "prediction_columns"]


def prediction_columns(payloads: Iterable[bytes]) -> dict[str, pa.Table]:
    """Convert records to one table per model, a row per answered row; with those columns after `PREDICTIONS` that are used."""
    return {model: _predictions(records) for model, records in _by_model(payloads).items()}


def _by_model(payloads: Iterable[bytes]) -> dict[str, list[dict[str, Any]]]:
    by_model: dict[str, list[dict[str, Any]]] = {}
    for payload in payloads:
        record = decode_prediction(payload)
        by_model.setdefault(record["model"], []).append(record)
    return by_model


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
        "predicted_at": repeat(field("at_us"), pa.int64()).cast(TIME),
        "latency_ms": repeat(field("latency_ms"), pa.float32()),
        "numeric": _float_lists(field("numeric"), counts),
        "categorical": _lists(field("categorical"), counts),
        "outputs": _float_lists(field("outputs"), counts),
        "missing": _lists(field("missing"), counts),
        "entities": pa.array(_entities(field("entities"), counts), pa.string()),
        "day": repeat((_day(at) for at in field("at_us")), pa.string()),
    }
    for names in (TRACE_FIELDS, ("propensity",)):
        if any(record.get(name) is not None for record in records for name in names):
            columns |= {
                name: repeat((r.get(name) for r in records), LOGGED.field(name).type) for name in names
            }
    if any(record.get("place") is not None or record["rows"] > 1 for record in records):
        columns |= _places(records)
    if any(record.get("tensors") for record in records):
        columns["tensors"] = pa.array(
            [row for r in records for row in _tensors(r)], LOGGED.field("tensors").type
        )
    return pa.table(columns, schema=pa.schema([field for field in LOGGED if field.name in columns]))


def _places(records: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
    """Make the columns that say which rows the model scored at once; null for a row that was alone."""
    batches, ats, sizes = [], [], []
    for record in records:
        rows = record["rows"]
        batch, first, size = record.get("place") or (None, 0, rows)
        alone = size == 1
        batches += [batch] * rows
        ats += [None if alone else first + row for row in range(rows)]
        sizes += [None if alone else size] * rows
    columns = {"batch": batches, "batch_at": ats, "batch_rows": sizes}
    return {name: pa.array(values, LOGGED.field(name).type) for name, values in columns.items()}


def _logged_tensors(record: Mapping[str, Any]) -> list[LoggedTensor]:
    return [LoggedTensor(*each) for each in record.get("tensors") or ()]


def _tensors(record: Mapping[str, Any]) -> Iterable[list[dict[str, Any]] | None]:
    """Yield the tensors of each row; None if the record has none."""
    rows, found = record["rows"], _logged_tensors(record)
    if not found:
        return [None] * rows
    values = [each.values(rows) for each in found]
    return [[_value(each, own[row]) for each, own in zip(found, values, strict=True)] for row in range(rows)]


def _value(tensor: LoggedTensor, data: bytes) -> dict[str, Any]:
    large = len(data) > LARGE_BYTES
    return {
        "output": tensor.output,
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": tensor.shape,
        "data": None if large else data,
        "sha256": hashlib.sha256(data).hexdigest() if large else None,
    }


def has_large_value(payload: bytes) -> bool:
    """Whether a record holds a value that its row names by digest."""
    if len(payload) <= LARGE_BYTES:
        return False
    record = decode_prediction(payload)
    return any(len(v) > LARGE_BYTES for each in _logged_tensors(record) for v in each.values(record["rows"]))


def large_columns(payloads: Iterable[bytes]) -> dict[str, pa.Table]:
    """Collect the values that are larger than `LARGE_BYTES`, by model, each once for a prediction id."""
    found: dict[str, pa.Table] = {}
    for model, records in _by_model(payloads).items():
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for record in records:
            ids, day = _row_ids(record["id"], record["rows"]), _day(record["at_us"])
            for tensor in _logged_tensors(record):
                for name, data in zip(ids, tensor.values(record["rows"]), strict=True):
                    if len(data) > LARGE_BYTES:
                        digest = hashlib.sha256(data).hexdigest()
                        rows[name, digest] = {
                            "prediction_id": name,
                            "sha256": digest,
                            "data": data,
                            "day": day,
                        }
        found[model] = pa.Table.from_pylist([*rows.values()], schema=LARGE)
    return found


def _row_ids(request_id: str, rows: int) -> list[str]:
    return [request_id] if rows == 1 else [f"{request_id}:{row}" for row in range(rows)]


def _day(at_us: int) -> str:
    return from_epoch_us(at_us).date().isoformat()


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


def label_columns(payloads: Iterable[bytes]) -> pa.Table:
    """Convert label records to a table, a row per label; with the column of lists if one is a list."""
    rows = [row for payload in payloads for row in label_rows(payload)]
    ids, values, observed, received, contents = zip(*rows, strict=True) if rows else ((),) * 5
    columns = {
        "prediction_id": pa.array(ids, pa.string()),
        "label": pa.array(values, pa.float64()),
        "observed_at": pa.array(observed, pa.int64()).cast(TIME),
        "received_at": pa.array(received, pa.int64()).cast(TIME),
        "day": pa.array([_day(at) for at in received], pa.string()),
    }
    if any(content is not None for content in contents):
        return pa.table({**columns, CONTENT.name: pa.array(contents, CONTENT.type)}, schema=CONTENT_LABELS)
    return pa.table(columns, schema=LABELS)
