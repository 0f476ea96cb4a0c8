"""Records of the log: predictions and labels, as compact messages in the stream and as columns in the tables."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]  # it ships no types
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.prediction_log.tensors import LoggedTensor
from toque.registry.errors import NewerFormat
from toque.registry.times import epoch_us

__all__ = [
    "ANSWER_TEXT",
    "CONTENT",
    "CONTENT_LABELS",
    "LABELS",
    "LABEL_TEXT",
    "LARGE",
    "LOGGED",
    "OBSERVED_AHEAD",
    "PREDICTIONS",
    "TRUTH",
    "BatchPlace",
    "Label",
    "decode_prediction",
    "encode_labels",
    "encode_prediction",
    "label_rows",
]

TIME = pa.timestamp("us", tz="UTC")

PREDICTIONS = pa.schema(
    [
        pa.field("prediction_id", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("shadow", pa.bool_(), nullable=False),
        pa.field("unit", pa.string()),
        pa.field("predicted_at", TIME, nullable=False),
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

TENSOR = pa.struct(
    [
        pa.field("output", pa.bool_()),
        pa.field("name", pa.string()),
        pa.field("datatype", pa.string()),
        pa.field("shape", pa.list_(pa.int32())),
        pa.field("data", pa.binary()),
        pa.field("sha256", pa.string()),
    ]
)
"""Tensor of one row (`toque.functions.prediction_log.tensors`): its bytes, or the SHA-256 by which the table of large values has them."""

LOGGED = pa.unify_schemas(
    [
        TRACED_PREDICTIONS,
        pa.schema(
            [
                pa.field("propensity", pa.float64()),
                pa.field("batch", pa.string()),
                pa.field("batch_at", pa.int32()),
                pa.field("batch_rows", pa.int32()),
                pa.field("tensors", pa.list_(TENSOR)),
            ]
        ),
    ]
)
"""All columns that a table of predictions may have; it has those after `PREDICTIONS` from the first row on that needs them.

propensity: chance of the arm when the request was routed. batch_at: place of the row among the `batch_rows` rows that the model
scored at once, null if it was alone; batch: name of such a batch if it held several requests. tensors: of the row, where
`numeric`, `categorical` and `outputs` do not hold them as they were.
"""

LARGE = pa.schema(
    [
        pa.field("prediction_id", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("data", pa.binary(), nullable=False),
        pa.field("day", pa.string(), nullable=False),
    ]
)
"""Values of tensors that are larger than `LARGE_BYTES`, beside the rows that name them."""


class BatchPlace(NamedTuple):
    """Place of a request in a batch that the model scored at once with others' rows."""

    batch: str
    at: int
    rows: int


RowTrace = tuple[str, str | None]
"""Trace of a request: its id and, if it was kept, its stages as JSON."""

PINNED = "pinned"
"""Arm of a request that asked for a version by number: not split, and no evidence on a split."""

LOAD_TEST = "load:test"
"""Arm of a request that said it is of a load test (no arm of a split has a colon): in the log, and read by nothing that judges, learns or pays."""

LABELS = pa.schema(
    [
        pa.field("prediction_id", pa.string(), nullable=False),
        pa.field("label", pa.float64(), nullable=False),
        pa.field("observed_at", TIME, nullable=False),
        pa.field("received_at", TIME, nullable=False),
        pa.field("day", pa.string(), nullable=False),
    ]
)
"""One row per label received; `day` is the day of `received_at`. A correction is a later row."""

CONTENT = pa.field("content", pa.string())
"""Column of a label that is a text, or a list of names or numbers, as JSON; then `label` is NaN. A table has it from the first on."""

CONTENT_LABELS = LABELS.append(CONTENT)
TRUTH = pa.field("truth", pa.list_(pa.float64()))
"""Column beside `content` where it was read with the predictions: the numbers that it says, in the order of the answer."""
ANSWER_TEXT, LABEL_TEXT = pa.field("answer_text", pa.string()), pa.field("label_text", pa.string())
"""Columns beside `truth` where some of the labels are texts: what was answered, the first text of the outputs, and what was true."""

_FIELDS = (
    "id", "model", "version", "arm", "shadow", "unit", "at_us", "latency_ms",
    "rows", "numeric", "categorical", "outputs", "missing", "entities",
)  # fmt: skip
TRACE_FIELDS = ("trace_id", "stages")
_KEPT_FIELDS = ("propensity", "place", "tensors")

_LABEL_FIELDS = 4
_packers = threading.local()
_KEPT_BYTES = 1 << 20


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
    propensity: float | None = None,
    place: BatchPlace | None = None,
    tensors: Sequence[LoggedTensor] | None = None,
) -> bytes:
    """Encode the answered rows of one request as a record; without the last four it is as releases without them write it.

    at_us: microseconds since 1970, UTC. numeric: (rows, F), outputs: (rows, K), row-major; None is not logged. propensity,
    tensors: as the columns of `LOGGED`; place: of the request in a batch with others.
    """
    fields = (
            id, model, version, arm, shadow, unit, at_us, latency_ms, rows,
            None if numeric is None else numeric.tobytes(),
            categorical,
            None if outputs is None else outputs.tobytes(),
            missing,
            entities,
    )  # fmt: skip
    if propensity is None and place is None and tensors is None:
        return _pack(fields if trace is None else fields + trace)
    return _pack((*fields, *(trace or (None, None)), propensity, place, tensors))


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
    """Decode the fields of `encode_prediction`, arrays still as bytes; fields that the record ends before are missing.

    Raises: NewerFormat if there are others.
    """
    values = msgpack.unpackb(payload)
    names = (*_FIELDS, *TRACE_FIELDS, *_KEPT_FIELDS)
    known = (len(_FIELDS), len(_FIELDS) + len(TRACE_FIELDS), len(names))
    if not isinstance(values, list) or len(values) not in known:
        raise _newer("prediction", values, known[-1])
    return dict(zip(names, values, strict=False))


def _newer(what: str, values: Any, known: int) -> NewerFormat:
    """Make the error for a record that has other fields: their number is a record's format, and later ones add at the end."""
    found = f"{len(values)} fields" if isinstance(values, list) else type(values).__name__
    return NewerFormat(f"a {what} in the log", found, f"{known} fields")


OBSERVED_AHEAD = timedelta(minutes=5)
"""How far a label's `observed_at` may lie after its `received_at`, for clocks that differ."""


@dataclass(frozen=True, slots=True)
class Label:
    """Label: the truth about one prediction, as observed at a time and received at another (both aware).

    label: a number, a text, or a list of names or of numbers.
    """

    prediction_id: str
    label: float | str | Sequence[str] | Sequence[float]
    observed_at: datetime
    received_at: datetime


def encode_labels(labels: Sequence[Label]) -> bytes:
    """Encode labels that are acknowledged together as one record.

    Raises: ValueError if a time is naive.
    """
    packed: bytes = msgpack.packb([_label_fields(each) for each in labels])
    return packed


def _label_fields(label: Label) -> tuple[Any, ...]:
    """Fields of a label, four as releases without lists write it, or with the text or list as JSON at the end."""
    times = epoch_us(label.observed_at), epoch_us(label.received_at)
    if isinstance(label.label, int | float):
        return (label.prediction_id, label.label, *times)
    content = label.label if isinstance(label.label, str) else list(label.label)
    return (label.prediction_id, math.nan, *times, json.dumps(content))


def label_rows(payload: bytes) -> list[Any]:
    """Decode the labels of one record: id, number, both times since 1970, and the text or list as JSON or None. Raises: NewerFormat."""
    rows = msgpack.unpackb(payload)
    if not isinstance(rows, list):
        raise _newer("label", rows, _LABEL_FIELDS)
    for row in rows:
        if len(row) not in {_LABEL_FIELDS, _LABEL_FIELDS + 1}:
            raise _newer("label", row, _LABEL_FIELDS + 1)
    return [[*row, None][: _LABEL_FIELDS + 1] for row in rows]
