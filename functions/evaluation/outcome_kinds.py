"""Kinds of outcome: how each is answered and labelled, and by which metrics, loss and baselines a gate judges it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.evaluation.baselines import (
    BASELINES,
    Baseline,
    class_constant,
    class_logistic,
    count_linear,
    label_constant,
    label_logistic,
    no_order,
    number_constant,
    number_linear,
    popularity,
    text_constant,
    text_nearest,
    vector_constant,
    vector_linear,
)
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.meanings import Outcome
from toque.functions.evaluation.metrics.numbers import (
    COUNT_METRICS,
    NUMBER_METRICS,
    TEXT_METRICS,
    VECTOR_METRICS,
    cosine_distance,
    edit_distance,
    poisson_deviance,
    squared_error,
)
from toque.functions.evaluation.metrics.probabilities import (
    CLASS_METRICS,
    LABEL_METRICS,
    METRICS,
    by_label,
    class_row_log_loss,
    label_row_log_loss,
    row_log_loss,
)
from toque.functions.evaluation.metrics.ranking import MOST_RELEVANT, RANKING_METRICS, ndcg_loss, padded
from toque.functions.model_formats.matrices import (
    binary_labels,
    count_labels,
    label_flags,
    named_column,
    number_labels,
    relevance_labels,
    text_labels,
    vector_labels,
)
from toque.functions.model_formats.table_inputs import first_output, first_text
from toque.registry import ModelVersion
from toque.registry.models import Signature, TensorSpec

Array = npt.NDArray[Any]
Learn = Callable[[pa.Table, pa.Table, Sequence[str], Sequence[str], str], Array]


@dataclass(frozen=True, slots=True)
class OutcomeKind:
    """Metrics, loss and baselines by which outcomes of one kind are judged.

    output: name of the answer, by which a version's kind is known; label: reads (rows,) of a table; answers: converts a version's
    outputs to what `metrics` and `row_loss` take; loss: name of the mean of `row_loss`; baselines: fit and answer for a model to
    beat; with_interval: metrics reported with an interval; classes: that the answer has a probability for; linear: name of the
    linear baseline; details: further figures of a gate, which no limit is about; group: the column that names the request of each
    row, where a request is what is judged; size: of the answer, unless it has classes; datatype: of the answer.
    """

    name: Outcome
    output: str
    loss: str
    label: Callable[[pa.Table, str], Array]
    answers: Callable[[dict[str, Array]], Array]
    metrics: Mapping[str, Callable[[Array, Array], float]]
    row_loss: Callable[[Array, Array], npt.NDArray[np.float64]]
    baselines: Mapping[Baseline, Learn]
    with_interval: tuple[str, ...]
    classes: tuple[str, ...] = ()
    linear: str = "logistic"
    details: Callable[[Array, Array], dict[str, float]] = lambda _label, _answers: {}
    group: str = ""
    size: int = 1
    datatype: str = "FP32"

    def by_unit(self, table: pa.Table, values: Array) -> Array:
        """Arrange values of a table's rows by what is judged: unchanged, or by request, (requests, items) with NaN beyond."""
        return padded(values, self._requests(table)) if self.group else values

    def unit_rows(self, table: pa.Table) -> pa.Table:
        """Select the first row of each unit that is judged, in the order of `by_unit`."""
        if not self.group:
            return table
        _, first = np.unique(self._requests(table), return_index=True)
        return table.take(np.sort(first))

    def take(self, table: pa.Table, units: npt.NDArray[np.int64]) -> pa.Table:
        """Select all rows of some units, by their numbers in the order of `by_unit`."""
        if not self.group:
            return table.take(units)
        code, (_, first) = self._requests(table), np.unique(self._requests(table), return_index=True)
        chosen = code[np.sort(first)[units]]
        return table.filter(np.isin(code, chosen))

    def _requests(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """Number of the request of each row (rows,)."""
        names = named_column(table, self.group).combine_chunks().dictionary_encode()
        if names.indices.null_count:
            raise EvaluationError(
                f"column {self.group!r}, which names the request of each row, has {names.indices.null_count} nulls"
            )
        codes: npt.NDArray[np.int64] = names.indices.to_numpy().astype(np.int64)
        return codes

    def mean_loss(self, label: Array, answers: Array) -> float:
        """Mean of `row_loss` over the rows. Raises: EvaluationError as it does."""
        return float(np.mean(self.row_loss(label, answers)))

    @property
    def answer_spec(self) -> TensorSpec:
        """Tensor of the answer: a number a row, or one for each class."""
        columns = list(self.classes) or None
        shape = [-1, len(self.classes) or self.size]
        return TensorSpec(name=self.output, datatype=self.datatype, shape=shape, columns=columns)


def outcome_kind(version: ModelVersion) -> OutcomeKind:
    """Find the kind of a version's outcome by its signature, as `kind_of` does, and its tag `group`."""
    return kind_of(version.signature, version.tags.get(GROUP_TAG, ""))


GROUP_TAG = "group"
"""Tag of a version that ranks: the column that names the request of each row."""


def kind_of(signature: Signature | None, group: str = "") -> OutcomeKind:
    """Find the kind by the first output of a signature: by its name, texts by their type, else several named columns are classes."""
    output = signature.outputs[0] if signature is not None else None
    if output is None:
        return BINARY
    named = next((kind for kind in (NUMBER, COUNT) if kind.output == output.name), None)
    named = TEXT if output.datatype == TEXT.datatype else named
    if named is not None:
        return named
    if output.name == _VECTOR:
        return kind_for("vector", size=output.shape[-1])
    if output.name == _SCORE:
        return kind_for("ranking", group=group)
    if output.name == _LABELS and output.columns:
        return kind_for("multilabel", output.columns)
    return kind_for("multiclass", output.columns) if output.columns and len(output.columns) > 1 else BINARY


def kind_for(outcome: Outcome, classes: Sequence[str] = (), group: str = "", size: int = 1) -> OutcomeKind:
    """Make the kind of a declared outcome.

    classes: their names in the order of the answer; group: the column of requests; size: of a vector.

    Raises: EvaluationError for a ranking without a column of requests.
    """
    plain: dict[str, OutcomeKind] = {kind.name: kind for kind in (BINARY, NUMBER, COUNT, TEXT)}
    if outcome in plain:
        return plain[outcome]
    if outcome == "ranking":
        return _ranking(group)
    if outcome == "vector":
        return replace(_A_VECTOR, size=size)
    return _labels(classes) if outcome == "multilabel" else _classes(classes)


_LABELS, _SCORE, _VECTOR = "label_probability", "item_score", "embedding"


BINARY = OutcomeKind(
    name="binary",
    output="probability",
    loss="log loss",
    label=lambda table, name: binary_labels(table, name).astype(np.int64),
    answers=first_output,
    metrics=METRICS,
    row_loss=row_log_loss,
    baselines=BASELINES,
    with_interval=("log_loss", "auc", "ece"),
)
NUMBER = OutcomeKind(
    name="number",
    output="value",
    loss="squared error",
    label=number_labels,
    answers=first_output,
    metrics=NUMBER_METRICS,
    row_loss=squared_error,
    baselines={"constant": number_constant, "logistic": number_linear},
    with_interval=("rmse", "mae"),
    linear="ridge",
)
COUNT = OutcomeKind(
    name="count",
    output="rate",
    loss="poisson deviance",
    label=count_labels,
    answers=first_output,
    metrics=COUNT_METRICS,
    row_loss=poisson_deviance,
    baselines={"constant": number_constant, "logistic": count_linear},
    with_interval=("deviance", "mae"),
    linear="poisson",
)

TEXT = OutcomeKind(
    name="text",
    output="text",
    loss="edit distance",
    label=text_labels,
    answers=first_text,
    metrics=TEXT_METRICS,
    row_loss=edit_distance,
    baselines={"constant": text_constant, "logistic": text_nearest},
    with_interval=(),
    linear="nearest",
    datatype="BYTES",
)


def _classes(names: Sequence[str]) -> OutcomeKind:
    class_indices = partial(_class_indices, names=names)
    return OutcomeKind(
        name="multiclass",
        output="probability",
        loss="log loss",
        label=class_indices,
        answers=lambda outputs: next(iter(outputs.values())),
        metrics=CLASS_METRICS,
        row_loss=class_row_log_loss,
        baselines={
            "constant": partial(class_constant, class_indices=class_indices, classes=len(names)),
            "logistic": partial(class_logistic, class_indices=class_indices, classes=len(names)),
        },
        with_interval=("log_loss", "accuracy", "ece"),
        classes=tuple(names),
    )


_A_VECTOR = OutcomeKind(
    name="vector",
    output=_VECTOR,
    loss="cosine distance",
    label=vector_labels,
    answers=lambda outputs: next(iter(outputs.values())),
    metrics=VECTOR_METRICS,
    row_loss=cosine_distance,
    baselines={"constant": vector_constant, "logistic": vector_linear},
    with_interval=("cosine_distance", "euclidean_distance"),
    linear="ridge",
)


def _labels(names: Sequence[str]) -> OutcomeKind:
    flags = partial(label_flags, names=names)
    return OutcomeKind(
        name="multilabel",
        output=_LABELS,
        loss="log loss",
        label=flags,
        answers=lambda outputs: next(iter(outputs.values())),
        metrics=LABEL_METRICS,
        row_loss=label_row_log_loss,
        baselines={
            "constant": partial(label_constant, flags=flags),
            "logistic": partial(label_logistic, flags=flags),
        },
        with_interval=("log_loss", "macro_f1", "ece"),
        classes=tuple(names),
        details=partial(by_label, names=names),
    )


def _ranking(group: str) -> OutcomeKind:
    if not group:
        raise EvaluationError(
            f"a ranking is judged by request: name the column of requests, group=… in the definition or the tag {GROUP_TAG!r} "
            "of a version"
        )
    return OutcomeKind(
        name="ranking",
        output=_SCORE,
        loss="ndcg loss",
        label=partial(relevance_labels, most=MOST_RELEVANT),
        answers=first_output,
        metrics=RANKING_METRICS,
        row_loss=ndcg_loss,
        baselines={"constant": no_order, "logistic": number_linear, "popularity": popularity},
        with_interval=("ndcg", "mrr"),
        linear="ridge",
        group=group,
    )


def _class_indices(table: pa.Table, label: str, *, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Convert the label column to indices among the classes that the version knows."""
    texts = named_column(table, label).cast(pa.string())
    found = pc.index_in(texts, pa.array(names))
    if found.null_count:
        unknown = pc.unique(texts.filter(pc.is_null(found))).to_pylist()
        raise EvaluationError(
            f"label column {label!r} holds {unknown[:5]} in {found.null_count} rows, the version knows the classes "
            f"{list(names)[:20]}: leave those rows out or train on them"
        )
    class_indices: npt.NDArray[np.int64] = found.to_numpy().astype(np.int64)
    return class_indices
