"""Logged predictions as arrays, each with its realised loss once the label has arrived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from functions.evaluation.errors import EvaluationError
from functions.model_formats.errors import TrainingDataError
from functions.model_formats.selected_inputs import select_inputs
from registry.models import Signature
from registry.models.traffic import OUTSIDE

Loss = Literal["log_loss", "squared_error"]
Floats = npt.NDArray[np.float64]


class Scorer(Protocol):
    """Loaded version of a model: arrays by input name in, arrays by output name out."""

    @property
    def signature(self) -> Signature:
        """Signature of the version, with the columns of its inputs."""
        ...

    def predict(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        """Score a batch of rows."""
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """Arrays of logged predictions, one element a row, in order of prediction time.

    at: microseconds since the epoch. unit: the request's unit, or its id without a unit (one for all its rows).
    answered: whether the outputs are present and finite. label: NaN until it arrives, or if it does not fit the output.
    output: the first output. loss: NaN unless answered and labelled. expected: the loss to expect if a probability is
    right, its entropy; NaN for other outputs. outside: whether the unit was outside the experiment's part of its layer,
    where the champion answers beside the arms.
    """

    id: npt.NDArray[np.object_]
    version: npt.NDArray[np.int64]
    shadow: npt.NDArray[np.bool_]
    unit: npt.NDArray[np.object_]
    at: npt.NDArray[np.int64]
    latency_ms: Floats
    answered: npt.NDArray[np.bool_]
    label: Floats
    output: Floats
    loss: Floats
    expected: Floats
    outside: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.at)

    def where(self, mask: npt.NDArray[Any]) -> Self:
        """Select rows by `mask` (rows,) or an index."""
        return type(self)(*(getattr(self, field.name)[mask] for field in fields(self)))

    def first_by_id(self) -> Self:
        """Select the first row of each prediction id, so that a client's retry under the same id counts once."""
        _, index = np.unique(self.id.astype(str), return_index=True)
        return self.where(np.sort(index))


def score(rows: pa.Table, *, loss: Loss = "log_loss", clip: float = 0.01, cap: float = 1e6) -> Scored:
    """Compute losses of `rows` of the prediction log joined with labels.

    clip: probabilities are held in [clip, 1 - clip]; cap: the largest squared error a row may add.
    Log loss takes one output as the probability of label 1, several as the probabilities of classes 0, 1, ….
    """
    rows = rows.sort_by([("predicted_at", "ascending"), ("prediction_id", "ascending")])
    ids = rows["prediction_id"].to_numpy(zero_copy_only=False)
    unit = rows["unit"].to_numpy(zero_copy_only=False)
    flat, start, width = _outputs(rows["outputs"])
    finite = np.isfinite(flat)
    answered = (width > 0) & (_per_row(finite, start, width) == width)
    label = _floats(rows["label"])
    output = np.full(len(ids), np.nan)
    output[answered] = flat[start[answered]]
    realised = np.full(len(ids), np.nan)
    judged = np.flatnonzero(answered & np.isfinite(label))
    parts = flat, start[judged], width[judged], label[judged]
    realised[judged] = _log_loss(*parts, clip) if loss == "log_loss" else _squared_error(*parts, cap)
    expected = (
        _entropy(np.where(width == 1, output, np.nan), clip)
        if loss == "log_loss"
        else np.full(len(ids), np.nan)
    )
    return Scored(
        id=ids,
        version=rows["version"].to_numpy(),
        shadow=rows["shadow"].to_numpy(zero_copy_only=False).astype(bool),
        unit=np.array([own or _request(name) for own, name in zip(unit, ids, strict=True)], dtype=object),
        at=rows["predicted_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy(),
        latency_ms=_floats(rows["latency_ms"]),
        answered=answered,
        label=np.where(np.isnan(realised) & answered, np.nan, label),
        output=output,
        loss=realised,
        expected=expected,
        outside=_outside(rows),
    )


def rescore(rows: pa.Table, scorer: Scorer, logged: Mapping[int, Signature]) -> Floats:
    """Score logged rows with another version, from the vectors that were logged; returns its first output, (rows, values).

    scorer: a version that reads some or all of the logged columns. logged: signature of each version whose vectors these are.
    Raises: EvaluationError if a version's vectors lack a column that the scorer reads.
    """
    width = scorer.signature.outputs[0].shape[-1] if len(scorer.signature.outputs[0].shape) > 1 else 1
    found = np.empty((rows.num_rows, width))
    version = rows["version"].to_numpy()
    for number in np.unique(version):
        mine = np.flatnonzero(version == number)
        given = logged.get(int(number))
        if given is None:
            raise EvaluationError(f"version {number} has no signature, so its logged vectors have no names")
        try:
            inputs = select_inputs(_vectors(rows.take(mine)), given, scorer.signature)
        except TrainingDataError as error:
            raise EvaluationError(f"the vectors that version {number} logged: {error}") from error
        outputs = scorer.predict(inputs)
        found[mine] = np.asarray(next(iter(outputs.values())), dtype=np.float64).reshape(len(mine), -1)
    return found


def _vectors(rows: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """Logged vectors of rows by input, (rows, columns) each."""
    numeric = np.stack(rows["numeric"].to_numpy(zero_copy_only=False)).astype(np.float32)
    categorical = np.array(rows["categorical"].to_pylist(), dtype=object).reshape(rows.num_rows, -1)
    return {"numeric": numeric, "categorical": categorical}


def _outside(rows: pa.Table) -> npt.NDArray[np.bool_]:
    if "arm" not in rows.column_names:  # rows read without arms are not compared by arm
        return np.zeros(rows.num_rows, dtype=bool)
    outside: npt.NDArray[np.bool_] = pc.equal(rows["arm"], OUTSIDE).to_numpy(zero_copy_only=False)
    return outside.astype(bool)


def _request(row_id: str) -> str:
    """Id of a row's request; rows of a request with several have the ids `{id}:{row}`."""
    request, _, row = row_id.rpartition(":")
    return request if request and row.isdecimal() else row_id


def _outputs(column: pa.ChunkedArray) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Flatten all output values into one array, with start and length of each row's values."""
    width = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    flat = _floats(pc.list_flatten(column))
    return flat, np.concatenate(([0], np.cumsum(width)[:-1])).astype(np.int64)[: len(width)], width


def _per_row(
    finite: npt.NDArray[np.bool_], start: npt.NDArray[np.int64], width: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    running = np.concatenate(([0], np.cumsum(finite)))
    counts: npt.NDArray[np.int64] = running[start + width] - running[start]
    return counts


def _floats(column: pa.ChunkedArray | pa.Array) -> Floats:
    values: Floats = pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy(zero_copy_only=False)
    return values


def _log_loss(
    flat: Floats, start: npt.NDArray[np.int64], width: npt.NDArray[np.int64], label: Floats, clip: float
) -> Floats:
    """Cross entropy of each row, in nats; NaN where the label is neither a probability nor a class."""
    many = width > 1
    is_class = many & (label == np.floor(label)) & (label >= 0) & (label < width)
    is_probability = ~many & (label >= 0) & (label <= 1)
    index = start + np.where(is_class, label, 0).astype(np.int64)
    p = np.clip(flat[index], clip, 1 - clip)
    binary = -(label * np.log(p) + (1 - label) * np.log1p(-p))
    result: Floats = np.where(is_class, -np.log(p), np.where(is_probability, binary, np.nan))
    return result


def _entropy(probability: Floats, clip: float) -> Floats:
    """Entropy of a binary outcome, in nats."""
    p = np.clip(probability, clip, 1 - clip)
    result: Floats = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return result


def _squared_error(
    flat: Floats, start: npt.NDArray[np.int64], width: npt.NDArray[np.int64], label: Floats, cap: float
) -> Floats:
    result: Floats = np.where(width == 1, np.minimum((flat[start] - label) ** 2, cap), np.nan)
    return result
