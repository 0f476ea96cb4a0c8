"""Records of the log: predictions and labels, as compact messages in the stream and as columns in the tables.

Tensors of a request have the type, shape and bits that the model saw and gave. A number is its little-endian bytes, as in the
protocol, so that a NaN keeps its payload and a zero its sign. An item of a BYTES tensor is a length and its bytes; the length
`_MISSING` stands for a missing text. A tensor whose first dimension is the rows is cut into its rows; another one belongs to the
whole request. Samples of predictions, by a hash of the id, do not depend on who draws them.
"""

from __future__ import annotations

import json
import math
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgpack  # type: ignore[import-untyped]  # it ships no types
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.prediction_log.errors import PredictionLogError
from toque.registry.errors import NewerFormat
from toque.registry.times import epoch_us

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
"""Tensor of one row (see `LoggedTensor`): its bytes, or the SHA-256 by which the table of large values has them."""

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
OBSERVED_AHEAD = timedelta(minutes=5)
"""How far a label's `observed_at` may lie after its `received_at`, for clocks that differ."""
LARGE_BYTES = 16 << 10
"""Bytes of one row's tensor above which the row names them by their SHA-256, and they stand in a table beside it."""
Array = npt.NDArray[Any]
LABELS_TABLE = "labels"


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


_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BYTES": np.dtype(object),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH = struct.Struct("<I")
_MISSING = 0xFFFFFFFF


class LoggedTensor(NamedTuple):
    """Tensor of one request in a record of the log.

    output: whether the model gave it. datatype: the protocol's name. shape: of one row's value, or of the whole tensor if it
    belongs to the request. data: the bytes of all rows, of each row for BYTES, or of the whole tensor.
    """

    output: bool
    name: str
    datatype: str
    shape: Sequence[int]
    by_row: bool
    data: bytes | Sequence[bytes]

    @classmethod
    def of(cls, name: str, array: Array, *, rows: int, output: bool) -> LoggedTensor | None:
        """Pack an array; None if its type is not one of the protocol's, or it holds items that are no texts."""
        datatype = _NAMES.get(array.dtype)
        if datatype is None:
            return None
        by_row = array.ndim > 0 and array.shape[0] == rows
        shape = [int(size) for size in (array.shape[1:] if by_row else array.shape)]
        if datatype != "BYTES":
            return cls(output, name, datatype, shape, by_row, array.tobytes())
        try:
            data = [_packed(each) for each in array] if by_row else _packed(array)
        except TypeError:
            return None
        return cls(output, name, datatype, shape, by_row, data)

    @property
    def size_bytes(self) -> int:
        """Number of bytes of the whole tensor."""
        return len(self.data) if isinstance(self.data, bytes) else sum(map(len, self.data))

    def values(self, rows: int) -> list[bytes]:
        """Cut into the bytes of each row; a tensor of the whole request is each row's."""
        if not self.by_row:
            return [bytes(self.data)] * rows  # type: ignore[arg-type]  # only a tensor by row is a list
        if not isinstance(self.data, bytes):
            return list(self.data)
        size = len(self.data) // rows
        return [self.data[at * size : (at + 1) * size] for at in range(rows)]


def read_value(datatype: str, shape: Sequence[int], data: bytes) -> Array:
    """Read one row's value as an array of its own.

    Raises: PredictionLogError if the datatype is unknown, or the bytes do not fit type and shape.
    """
    dtype = _DTYPES.get(datatype)
    if dtype is None:
        raise PredictionLogError(f"a logged tensor has datatype {datatype!r}; a newer release wrote it")
    try:
        flat = _items(data) if datatype == "BYTES" else np.frombuffer(bytearray(data), dtype)
        return flat.reshape(tuple(shape))
    except (ValueError, struct.error) as error:
        raise PredictionLogError(
            f"a logged tensor of {datatype} {list(shape)} has {len(data)} bytes: {error}"
        ) from None


def _packed(value: Any) -> bytes:
    """Pack the texts of an array, or a single one. Raises: TypeError for an item that is no text."""
    items = value.ravel().tolist() if isinstance(value, np.ndarray) else [value]
    parts: list[bytes] = []
    for item in items:
        if item is None:
            parts.append(_LENGTH.pack(_MISSING))
            continue
        raw = item.encode() if isinstance(item, str) else item
        if not isinstance(raw, bytes):
            raise TypeError(type(item).__name__)
        parts += (_LENGTH.pack(len(raw)), raw)
    return b"".join(parts)


def _items(data: bytes) -> Array:
    found: list[bytes | None] = []
    at = 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length == _MISSING:
            found.append(None)
            continue
        if at + length > len(data):
            raise ValueError(f"item {len(found)} is cut off")
        found.append(data[at : at + length])
        at += length
    out = np.empty(len(found), dtype=object)
    out[:] = found
    return out


def predictions_table(model: str) -> str:
    """Return the name of the table that holds a model's predictions."""
    return f"predictions/{model}"


def large_values_table(model: str) -> str:
    """Return the name of the table that holds the large values which a model's predictions name by digest."""
    return f"predictions_large/{model}"


_HASH_BYTES: Final = 8


def is_sampled(prediction_id: str, share: float) -> bool:
    """Whether a prediction is in the sample of this share of all.

    Every process that asks gets the same answer, and a smaller sample is part of a larger one.
    share: from 0, none, to 1, all.
    """
    found = blake2b(b"sample\0" + prediction_id.encode(), digest_size=_HASH_BYTES).digest()
    return int.from_bytes(found, "big") < share * (1 << 8 * _HASH_BYTES)


__all__ = [
    "ANSWER_TEXT",
    "CONTENT",
    "CONTENT_LABELS",
    "LABELS",
    "LABELS_TABLE",
    "LABEL_TEXT",
    "LARGE",
    "LARGE_BYTES",
    "LOGGED",
    "OBSERVED_AHEAD",
    "PREDICTIONS",
    "TRUTH",
    "BatchPlace",
    "Label",
    "LoggedTensor",
    "decode_prediction",
    "encode_labels",
    "encode_prediction",
    "is_sampled",
    "label_rows",
    "large_values_table",
    "predictions_table",
    "read_value",
]
