"""Values of the column `tensors`: those of a row by name, large ones from the table beside it, and the texts that were answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.prediction_log.errors import PredictionLogError
from toque.functions.prediction_log.records import large_values_table, read_value
from toque.registry.store import ObjectStore, Table

__all__ = ["TEXT_COLUMNS", "answered_texts", "large_values", "tensor_values"]

Array = npt.NDArray[Any]
_MESSAGE = "message"
"""Output of a language model that has the whole message, as the API gives it."""
_TIMINGS = "timings_ms"
"""Output that every answer of a language model has but embeddings."""
TEXT_COLUMNS = ("prediction_id", "tensors", "day")
"""Columns of the log that `answered_texts` needs."""


def answered_texts(
    store: ObjectStore, model: str, rows: pa.Table, wanted: npt.NDArray[np.bool_]
) -> list[str | None]:
    """Read the first text that each wanted row was answered with; None for the others, and where no text was logged.

    The text of a language model's answer is the content of its message.

    rows: with `TEXT_COLUMNS`; wanted: (rows,). Raises: PredictionLogError as `tensor_values`.
    """
    places = np.flatnonzero(wanted)
    chosen = rows.select(list(TEXT_COLUMNS)).take(pa.array(places))
    large = large_values(store, model, chosen)
    found: list[str | None] = [None] * rows.num_rows
    for place, row in zip(places, chosen.to_pylist(), strict=True):
        if _is_without_its_message(row["tensors"] or ()):
            continue
        texts = [each for each in row["tensors"] or () if each["output"] and each["datatype"] == "BYTES"]
        for name, values in tensor_values(texts[:1], row["prediction_id"], large, output=True).items():
            item = values.ravel()[0] if values.size else None
            text = None if item is None else item.decode("utf-8", "replace")
            found[place] = _content(text) if name == _MESSAGE and text is not None else text
    return found


def _is_without_its_message(tensors: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a row is a language model's whose texts the log did not keep: then why it ended is no answer."""
    names = {each["name"] for each in tensors if each["output"]}
    return _TIMINGS in names and _MESSAGE not in names


def _content(text: str) -> str | None:
    """Take the content of a message in JSON, None if it only calls tools; a text that is no message is itself."""
    try:
        message = json.loads(text)
    except json.JSONDecodeError:
        return text
    if not (isinstance(message, dict) and "role" in message):
        return text
    content = message.get("content")
    return content if isinstance(content, str) else None


def tensor_values(
    tensors: Sequence[Mapping[str, Any]], name: str, large: Mapping[tuple[str, str], bytes], *, output: bool
) -> dict[str, Array]:
    """Read the values of a row's inputs or outputs by tensor. name: the prediction's id; large: of `large_values`.

    Raises: PredictionLogError if a large value is gone, or bytes do not fit their type.
    """
    found: dict[str, Array] = {}
    for each in tensors:
        if each["output"] == output:
            data = each["data"] if each["sha256"] is None else large.get((name, each["sha256"]))
            if data is None:
                raise PredictionLogError(
                    f"the value of tensor {each['name']!r} of prediction {name!r} is gone: {each['sha256']} is in no row"
                )
            found[each["name"]] = read_value(each["datatype"], each["shape"], data)
    return found


def large_values(store: ObjectStore, model: str, rows: pa.Table) -> dict[tuple[str, str], bytes]:
    """Read the large values that rows name, by prediction id and digest, each checked. Raises: PredictionLogError."""
    named = {
        (row["prediction_id"], each["sha256"])
        for row in rows.select(["prediction_id", "tensors"]).to_pylist()
        for each in row["tensors"] or ()
        if each["sha256"] is not None
    }
    if not named:
        return {}
    names, digests = (pa.array(sorted(set(each)), pa.string()) for each in zip(*named, strict=True))
    where = pc.field("day").isin(pc.unique(rows["day"]).to_pylist())
    where = where & pc.field("prediction_id").isin(names) & pc.field("sha256").isin(digests)
    found: dict[tuple[str, str], bytes] = {}
    for row in Table(store, large_values_table(model)).read(where=where).to_pylist():
        if hashlib.sha256(row["data"]).hexdigest() != row["sha256"]:
            raise PredictionLogError(
                f"a value of prediction {row['prediction_id']!r} has other bytes than {row['sha256']}: it was changed"
            )
        found[row["prediction_id"], row["sha256"]] = row["data"]
    return found
