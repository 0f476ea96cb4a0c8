"""Logged rows with the types, shapes and bits that the model saw and gave, whichever columns hold them.

A row has its tensors in the column `tensors`, except those sides of which float32 and texts side by side are the whole: they are
in `numeric` and `categorical`, or in `outputs`, and the version's signature says how they were laid out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.prediction_log.reading.logged_tensors import large_values, tensor_values
from toque.functions.prediction_log.reading.outcomes import read_columns
from toque.registry.models import Signature, TensorSpec
from toque.registry.store import ObjectStore

__all__ = ["ExactRow", "exact_rows", "newest_rows", "typed_predictions"]

Array = npt.NDArray[Any]
Values = Mapping[str, Array]
_COLUMNS = (
    "prediction_id", "version", "arm", "shadow", "predicted_at", "numeric", "categorical", "outputs", "missing",
    "batch", "batch_at", "batch_rows", "tensors", "day",
)  # fmt: skip
_PIECE_ROWS = 256
_FLOAT32 = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class ExactRow:
    """One logged row with its exact values. inputs, outputs: values by tensor, without the dimension of rows; None if the log does not hold them.

    answered: whether the model gave outputs. batch: name of the rows that were scored at once; at: this one's place among them;
    rows: their number. missing: whether a feature had no value.
    """

    prediction_id: str
    predicted_at: datetime
    arm: str
    shadow: bool
    inputs: Values | None
    outputs: Values | None
    answered: bool
    batch: str
    at: int
    rows: int
    missing: bool


def newest_rows(
    store: ObjectStore, model: str, start: datetime, end: datetime, *, version: int, limit: int
) -> pa.Table:
    """Read the newest logged rows of a version, at most about `limit`, with all columns that `exact_rows` needs.

    Raises: ValueError if a time is naive.
    """
    times = read_columns(store, model, start, end, ["predicted_at"], version=version)["predicted_at"]
    if len(times) > limit:
        start = times.take(pc.sort_indices(times))[len(times) - limit].as_py()
    return read_columns(store, model, start, end, _COLUMNS, version=version)


def exact_rows(store: ObjectStore, model: str, signature: Signature, rows: pa.Table) -> Iterator[ExactRow]:
    """Decode rows that `newest_rows` read, those that were scored at once together, each batch in its order.

    Raises: PredictionLogError if a large value is not what its digest says, or bytes do not fit their type.
    """
    keys = [
        _batch_of(*each)
        for each in zip(
            *(
                rows[name].to_pylist()
                for name in ("batch", "prediction_id", "predicted_at", "batch_at", "shadow")
            ),
            strict=True,
        )
    ]
    places = rows["batch_at"].to_pylist()
    order = sorted(range(len(keys)), key=lambda row: (keys[row], places[row] or 0))
    for begin in range(0, len(order), _PIECE_ROWS):
        piece = order[begin : begin + _PIECE_ROWS]
        part = rows.take(pa.array(piece))
        large = large_values(store, model, part)
        floats = zip(_float_lists(part["numeric"]), _float_lists(part["outputs"]), strict=True)
        others = part.drop_columns(["numeric", "outputs"]).to_pylist()
        for index, row, (numeric, outputs) in zip(piece, others, floats, strict=True):
            yield _exact(row | {"numeric": numeric, "outputs": outputs}, keys[index], signature, large)


def _batch_of(batch: str | None, name: str, at: datetime, place: int | None, shadow: bool) -> str:  # noqa: FBT001 - a column
    """Name what a row was scored with: its batch, or its request."""
    if batch is not None:
        return batch
    request = name if place is None else name.removesuffix(f":{place}")
    return f"{request}|{at.isoformat()}|{shadow}"


def _exact(
    row: Mapping[str, Any], batch: str, signature: Signature, large: Mapping[tuple[str, str], bytes]
) -> ExactRow:
    tensors = row["tensors"] or []
    inputs = tensor_values(tensors, row["prediction_id"], large, output=False)
    outputs = tensor_values(tensors, row["prediction_id"], large, output=True)
    return ExactRow(
        prediction_id=row["prediction_id"],
        predicted_at=row["predicted_at"],
        arm=row["arm"],
        shadow=row["shadow"],
        inputs=inputs or _of_view(signature.inputs, row["numeric"], row["categorical"]),
        outputs=outputs
        or (None if row["outputs"] is None else _of_view(signature.outputs, row["outputs"], None)),
        answered=bool(outputs) or row["outputs"] is not None,
        batch=batch,
        at=row["batch_at"] or 0,
        rows=row["batch_rows"] or 1,
        missing=bool(row["missing"]),
    )


def _float_lists(column: pa.ChunkedArray) -> list[Array | None]:
    """Cut a column of lists into arrays; not by Python's floats, which have other NaNs."""
    found: list[Array | None] = []
    for chunk in column.chunks:
        values, offsets = chunk.values.to_numpy(zero_copy_only=False), chunk.offsets.to_numpy()
        valid = chunk.is_valid().to_numpy(zero_copy_only=False)
        found += [
            values[first:last] if there else None
            for first, last, there in zip(offsets[:-1], offsets[1:], valid, strict=True)
        ]
    return found


def _of_view(
    specs: Sequence[TensorSpec], numbers: Array | None, texts: Sequence[str | None] | None
) -> dict[str, Array] | None:
    """Cut float32 and texts that lie side by side into tensors; None if the signature does not say how they lie."""
    found: dict[str, Array] = {}
    flat = np.empty(0, _FLOAT32) if numbers is None else numbers
    words = [None if each is None else each.encode() for each in texts or ()]
    at = {"FP32": 0, "BYTES": 0}
    for spec in specs:
        shape = tuple(spec.shape[1:])
        if spec.datatype not in at or spec.shape[:1] != [-1] or -1 in shape:
            return None
        first, size = at[spec.datatype], math.prod(shape)
        at[spec.datatype] = first + size
        if spec.datatype == "FP32":
            part: Array = flat[first : first + size]
        else:
            part = np.empty(len(words[first : first + size]), dtype=object)
            part[:] = words[first : first + size]
        if len(part) != size:
            return None
        found[spec.name] = part.reshape(shape)
    return found if (at["FP32"], at["BYTES"]) == (len(flat), len(words)) else None


def typed_predictions(store: ObjectStore, model: str, signature: Signature, rows: pa.Table) -> pa.Table:
    """Convert rows that `newest_rows` read to columns of Arrow types: `inputs.NAME` and `outputs.NAME` beside the row's id.

    A BYTES tensor is binary; a value of several items is a list, of several dimensions of one size a fixed-shape tensor. Null
    where the log does not hold the value.
    """
    found = list(exact_rows(store, model, signature, rows))
    columns: dict[str, Any] = {
        "prediction_id": pa.array([row.prediction_id for row in found], pa.string()),
        "predicted_at": pa.array([row.predicted_at for row in found], pa.timestamp("us", tz="UTC")),
    }
    for side, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        for spec in specs:
            values = [(getattr(row, side) or {}).get(spec.name) for row in found]
            columns[f"{side}.{spec.name}"] = _column(values)
    return pa.table(columns)


def _column(values: Sequence[Array | None]) -> pa.Array | pa.ExtensionArray:
    shapes = {value.shape for value in values if value is not None}
    flat: list[Array] = [value.reshape(-1) for value in values if value is not None]
    if not flat:
        return pa.nulls(len(values))
    joined = np.concatenate(flat)
    items = pa.array(joined, pa.binary() if joined.dtype.kind == "O" else None, from_pandas=False)
    if (
        len(shapes) == 1
        and len(next(iter(shapes))) > 1
        and len(flat) == len(values)
        and joined.dtype.kind != "O"
    ):
        kind = pa.fixed_shape_tensor(items.type, next(iter(shapes)))
        return pa.ExtensionArray.from_storage(
            kind, pa.FixedSizeListArray.from_arrays(items, kind.storage_type.list_size)
        )
    sizes = [0 if value is None else value.size for value in values]
    offsets = pa.array(np.cumsum([0, *sizes]), pa.int32())
    absent = pa.array([value is None for value in values])
    lists = pa.ListArray.from_arrays(offsets, items, mask=absent)
    return pc.list_element(lists, 0) if shapes == {()} and len(flat) == len(values) else lists
