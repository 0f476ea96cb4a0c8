"""Logged predictions as arrays, each with its realised loss once the label has arrived: a number, a list or a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.meanings import Loss
from toque.functions.evaluation.metrics.numbers import (
    by_row,
    cosine_of,
    edit_distance_of,
    euclidean_of,
    mismatch_of,
    token_distance_of,
    unit_deviance,
)
from toque.functions.evaluation.metrics.ranking import MOST_RELEVANT, ndcg_loss, padded
from toque.functions.model_formats.errors import TrainingDataError
from toque.functions.model_formats.table_inputs import first_text, select_inputs
from toque.functions.stats import LARGEST
from toque.registry.models import Signature
from toque.registry.models.traffic import OUTSIDE

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

OF_A_MEAN: frozenset[Loss] = frozenset({"log_loss", "poisson_deviance"})
"""Losses of answers that are the mean of their label."""
NO_CAP = 1e6
"""Cap of a loss that bounds infinities alone."""
_of_any_size = np.errstate(over="ignore", invalid="ignore")
"""Labels may be as large as a float64: a loss that is none is held at the cap, or NaN."""


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
    told: the label as business metrics take it: `label`, but for a loss of texts the number that was sent, such as a thumb.
    output: the first output. loss: NaN unless answered and labelled. expected: the loss to expect if a probability is
    right, its entropy; NaN for other outputs. bias: a probability or a rate less the label, 0 on average where it is calibrated;
    held within `LARGEST`; NaN for other outputs, and where the loss is. outside: whether the unit was outside the experiment's part of its layer,
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
    told: Floats
    output: Floats
    loss: Floats
    expected: Floats
    bias: Floats
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


def score(rows: pa.Table, *, loss: Loss = "log_loss", clip: float = 0.01, cap: float = NO_CAP) -> Scored:
    """Compute losses of `rows` of the prediction log joined with labels.

    clip: probabilities are held in [clip, 1 - clip]; cap: the most that the squared error, deviance or distance of a row counts,
    `LARGEST` where it is above that.
    Log loss takes one output as the probability of label 1, several as the probabilities of classes 0, 1, …; or as those of
    several labels, where the column `truth` lists a 0 or 1 for each. A distance is of the answer from the vector in `truth`, or of
    two texts, `answer_text` and `label_text`, whose lengths are then `output` and `label`.
    The loss of a ranking is of a request, so that one element is a request, judged once all its items have a label: `label` is
    their sum, `output` the highest score.
    """
    if loss == "ndcg_loss":
        return _by_request(score(rows, loss="squared_error"))
    cap = min(cap, LARGEST)
    rows = rows.sort_by([("predicted_at", "ascending"), ("prediction_id", "ascending")])
    ids = rows["prediction_id"].to_numpy(zero_copy_only=False)
    unit = rows["unit"].to_numpy(zero_copy_only=False)
    flat, start, width = _outputs(rows["outputs"])
    finite = np.isfinite(flat)
    answered = (width > 0) & (_per_row(finite, start, width) == width)
    number = _floats(rows["label"])
    label = number.copy()
    output = np.full(len(ids), np.nan)
    output[answered] = flat[start[answered]]
    realised = np.full(len(ids), np.nan)
    judged = np.flatnonzero(answered & np.isfinite(label))
    if loss in NUMBER_LOSSES:
        realised[judged] = NUMBER_LOSSES[loss](
            NumberLabels(flat, start[judged], width[judged], label[judged], clip, cap)
        )
    single = np.where(width == 1, output, np.nan)
    mean = single if loss in OF_A_MEAN else np.full(len(ids), np.nan)
    if "label_text" in rows.column_names and loss in TEXT_LOSSES:
        texts = _texts(rows, answered)
        realised[texts.places] = TEXT_LOSSES[loss](texts)
        label[texts.places] = [len(each) for each in texts.truth]
    if "truth" in rows.column_names and loss in LIST_LOSSES:
        for several in _truths(rows["truth"], flat, start, np.where(answered, width, 0)):
            found, where = LIST_LOSSES[loss](several, clip, cap), several.places
            realised[where], label[where] = found, several.truth.mean(axis=1)
            if loss in OF_A_MEAN:
                mean[where] = several.answers.mean(axis=1)
    label = np.where(np.isnan(realised) & answered, np.nan, label)
    expected = entropy(single, clip) if loss == "log_loss" else np.full(len(ids), np.nan)
    return Scored(
        id=ids,
        version=rows["version"].to_numpy(),
        shadow=rows["shadow"].to_numpy(zero_copy_only=False).astype(bool),
        unit=np.array([own or request_of(name) for own, name in zip(unit, ids, strict=True)], dtype=object),
        at=rows["predicted_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy(),
        latency_ms=_floats(rows["latency_ms"]),
        answered=answered,
        label=label,
        told=number if loss in TEXT_LOSSES else label,
        output=output,
        loss=realised,
        expected=expected,
        bias=np.where(np.isnan(realised), np.nan, np.clip(mean - label, -LARGEST, LARGEST)),
        outside=_outside(rows),
    )


def possible_difference(
    first: Scored, second: Scored, *, loss: Loss, clip: float = 0.01, cap: float = NO_CAP
) -> float:
    """Find the most by which losses of two versions can differ on one of these rows, whatever its label; 0 where nothing bounds it.

    first, second: the same labelled rows in the same order. Of one probability of a label 0 or 1 it follows from both answers, of
    others from the bounds of the loss.
    """
    if not len(first):
        return 0.0
    p, q = first.output, second.output
    if loss == "log_loss":
        if not np.isfinite(first.expected + second.expected).all():
            return math.log((1 - clip) / clip)
        p, q = np.clip(p, clip, 1 - clip), np.clip(q, clip, 1 - clip)
        return math.log(max(float(np.maximum(a / b, b / a).max()) for a, b in ((p, q), (1 - p, 1 - q))))
    if loss == "squared_error" and np.isin(first.label, (0.0, 1.0)).all():
        return min(cap, float(np.abs(p - q).max() * max(np.abs(p + q - label).max() for label in (0.0, 2.0))))
    if loss in {"squared_error", "poisson_deviance", "euclidean_distance"}:
        return cap if cap < NO_CAP else 0.0
    return 1.0


def _by_request(items: Scored) -> Scored:
    """Join the items that one version scored for one request; a row that a client sent again under its id counts once."""
    _, first = np.unique(_keys(items.id, items), return_index=True)
    items = items.where(np.sort(first))
    request = np.array([request_of(name) for name in items.id], dtype=object)
    _, first, code = np.unique(_keys(request, items), return_index=True, return_inverse=True)
    begin = np.sort(first)
    found = items.where(begin)
    relevance, output = padded(items.label, code), padded(items.output, code)
    item = padded(np.ones(len(code)), code) == 1.0
    answered = (np.isfinite(output) | ~item).all(axis=1)
    grades = (relevance >= 0) & (relevance <= MOST_RELEVANT) & (relevance == np.floor(relevance))
    judged = answered & (grades | ~item).all(axis=1)
    realised = np.full(len(begin), np.nan)
    if judged.any():
        realised[judged] = ndcg_loss(relevance[judged], output[judged])
    label = np.where(judged, np.nansum(relevance, axis=1), np.nan)
    return replace(
        found,
        id=request[begin],
        unit=np.where(found.unit == found.id, request[begin], found.unit),
        answered=answered,
        label=label,
        told=label,
        output=np.where(answered, np.max(np.where(item, output, -np.inf), axis=1, initial=-np.inf), np.nan),
        loss=realised,
        expected=np.full(len(begin), np.nan),
        bias=np.full(len(begin), np.nan),
    )


def _keys(names: npt.NDArray[np.object_], rows: Scored) -> npt.NDArray[np.str_]:
    """Text for each row (rows,) that is the same for rows of one name, version and way of answering."""
    parts = zip(names, rows.version, rows.shadow, strict=True)
    return np.array([f"{version}/{shadow:d}/{name}" for name, version, shadow in parts], dtype=np.str_)


def rescore(rows: pa.Table, scorer: Scorer, logged: Mapping[int, Signature]) -> npt.NDArray[Any]:
    """Score logged rows with another version, from the vectors that were logged; returns its first output, (rows, values).

    scorer: a version that reads some or all of the logged columns. logged: signature of each version whose vectors these are.
    The values are float64, or texts. Raises: EvaluationError if a version's vectors lack a column that the scorer reads.
    """
    output = scorer.signature.outputs[0]
    is_text = output.datatype == "BYTES"
    width = output.shape[-1] if len(output.shape) > 1 and not is_text else 1
    found = np.empty((rows.num_rows, width), dtype=object if is_text else np.float64)
    version = rows["version"].to_numpy()
    for number in np.unique(version):
        mine = np.flatnonzero(version == number)
        given = logged.get(int(number))
        if given is None:
            raise EvaluationError(f"version {number} has no signature, so its logged vectors have no names")
        try:
            outputs = scorer.predict(select_inputs(_vectors(rows.take(mine)), given, scorer.signature))
            values = first_text(outputs) if is_text else np.asarray(next(iter(outputs.values())), np.float64)
        except TrainingDataError as error:
            raise EvaluationError(f"the vectors that version {number} logged: {error}") from error
        found[mine] = values.reshape(len(mine), -1)
    return found


def _vectors(rows: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """Logged vectors of rows by input, (rows, columns) each; without columns for a side that was not logged."""
    numeric = np.array([[] if each is None else each for each in rows["numeric"].to_pylist()], np.float32)
    categorical = np.array([each or [] for each in rows["categorical"].to_pylist()], dtype=object)
    return {
        "numeric": numeric.reshape(rows.num_rows, -1),
        "categorical": categorical.reshape(rows.num_rows, -1),
    }


def _outside(rows: pa.Table) -> npt.NDArray[np.bool_]:
    if "arm" not in rows.column_names:  # rows read without arms are not compared by arm
        return np.zeros(rows.num_rows, dtype=bool)
    outside: npt.NDArray[np.bool_] = pc.equal(rows["arm"], OUTSIDE).to_numpy(zero_copy_only=False)
    return outside.astype(bool)


def request_of(row_id: str) -> str:
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


def _texts(rows: pa.Table, answered: npt.NDArray[np.bool_]) -> TextLabels:
    """Take the answered rows whose label and answer are texts."""
    both = pc.and_(pc.is_valid(rows["label_text"]), pc.is_valid(rows["answer_text"])).to_numpy()
    places = np.flatnonzero(answered & both)
    chosen = rows.select(["answer_text", "label_text"]).take(pa.array(places))
    return TextLabels(places, *(chosen[name].to_pylist() for name in ("answer_text", "label_text")))


def _truths(column: pa.ChunkedArray, flat: Floats, start: Places, width: Places) -> Iterator[ListLabels]:
    """Take the rows whose truth is as long as their answer, by that length."""
    true_flat, true_start, true_width = _outputs(column)
    for size in np.unique(true_width[true_width > 0]).tolist():
        places = np.flatnonzero((true_width == size) & (width == size))
        within = np.arange(size)
        answers = flat[start[places][:, None] + within]
        yield ListLabels(places, answers, true_flat[true_start[places][:, None] + within])


@dataclass(frozen=True, slots=True)
class NumberLabels:
    """Answers and labels of judged rows. flat: values of all rows; start, width: place and number of a row's values in it."""

    flat: Floats
    start: Places
    width: Places
    label: Floats
    clip: float
    cap: float


@dataclass(frozen=True, slots=True)
class ListLabels:
    """Answers and truth of rows that have a list of one size each. places: (rows,); answers, truth: (rows, size)."""

    places: Places
    answers: Floats
    truth: Floats


@dataclass(frozen=True, slots=True)
class TextLabels:
    """Answers and truth of rows that have a text each. places: (rows,); answers, truth: as many."""

    places: Places
    answers: Sequence[str]
    truth: Sequence[str]


@_of_any_size
def _log_loss(rows: NumberLabels) -> Floats:
    """Cross entropy of each row, in nats; NaN where the label is neither a probability nor a class."""
    flat, start, width, label, clip = rows.flat, rows.start, rows.width, rows.label, rows.clip
    many = width > 1
    is_class = many & (label == np.floor(label)) & (label >= 0) & (label < width)
    is_probability = ~many & (label >= 0) & (label <= 1)
    index = start + np.where(is_class, label, 0).astype(np.int64)
    p = np.clip(flat[index], clip, 1 - clip)
    binary = -(label * np.log(p) + (1 - label) * np.log1p(-p))
    result: Floats = np.where(is_class, -np.log(p), np.where(is_probability, binary, np.nan))
    return result


@_of_any_size
def _squared_error(rows: NumberLabels) -> Floats:
    error = np.minimum((rows.flat[rows.start] - rows.label) ** 2, rows.cap)
    result: Floats = np.where(rows.width == 1, error, np.nan)
    return result


@_of_any_size
def _poisson_deviance(rows: NumberLabels) -> Floats:
    """Deviance of each row; NaN where the label is no count. A rate below 0 counts as one of nothing."""
    is_count = (rows.width == 1) & (rows.label >= 0) & (rows.label == np.floor(rows.label))
    label = np.where(is_count, rows.label, 0.0)
    result: Floats = np.where(
        is_count, np.minimum(unit_deviance(label, rows.flat[rows.start]), rows.cap), np.nan
    )
    return result


NUMBER_LOSSES: dict[Loss, Callable[[NumberLabels], Floats]] = {
    "log_loss": _log_loss,
    "squared_error": _squared_error,
    "poisson_deviance": _poisson_deviance,
    "ndcg_loss": _squared_error,
}


def _label_log_loss(rows: ListLabels, clip: float, _: float) -> Floats:
    """Mean log loss over the labels of each row, at most −log(clip); NaN where the truth is not 0 and 1."""
    p = np.clip(rows.answers, clip, 1 - clip)
    loss = -(rows.truth * np.log(p) + (1 - rows.truth) * np.log1p(-p)).mean(axis=1)
    result: Floats = np.where(np.isin(rows.truth, (0.0, 1.0)).all(axis=1), loss, np.nan)
    return result


@_of_any_size
def _cosine_distance(rows: ListLabels, _: float, __: float) -> Floats:
    return cosine_of(rows.truth, rows.answers)


@_of_any_size
def _euclidean_distance(rows: ListLabels, _: float, cap: float) -> Floats:
    return np.minimum(euclidean_of(rows.truth, rows.answers), cap)


LIST_LOSSES: dict[Loss, Callable[[ListLabels, float, float], Floats]] = {
    "log_loss": _label_log_loss,
    "cosine_distance": _cosine_distance,
    "euclidean_distance": _euclidean_distance,
}


def _text_loss(distance: Callable[[str, str], float]) -> Callable[[TextLabels], Floats]:
    return lambda rows: by_row(distance, rows.truth, rows.answers)


TEXT_LOSSES: dict[Loss, Callable[[TextLabels], Floats]] = {
    "edit_distance": _text_loss(edit_distance_of),
    "token_distance": _text_loss(token_distance_of),
    "mismatch": _text_loss(mismatch_of),
}


def entropy(probability: Floats, clip: float) -> Floats:
    """Entropy of a binary outcome, in nats."""
    p = np.clip(probability, clip, 1 - clip)
    result: Floats = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return result
