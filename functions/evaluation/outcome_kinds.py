"""Kinds of outcome and how a gate judges each: a probability, the probabilities of several classes, or a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from functions.evaluation.baselines import (
    BASELINES,
    Baseline,
    class_constant,
    class_logistic,
    number_constant,
    number_linear,
)
from functions.evaluation.errors import EvaluationError
from functions.evaluation.metrics.classes import CLASS_METRICS, class_row_log_loss
from functions.evaluation.metrics.numbers import NUMBER_METRICS, squared_error
from functions.evaluation.metrics.probabilities import METRICS, row_log_loss
from functions.model_formats.matrices import binary_labels, named_column, number_labels
from functions.model_formats.table_inputs import first_output
from registry import ModelVersion
from registry.models import Signature

Array = npt.NDArray[Any]
Learn = Callable[[pa.Table, pa.Table, Sequence[str], Sequence[str], str], Array]


@dataclass(frozen=True, slots=True)
class OutcomeKind:
    """Metrics, loss and baselines by which outcomes of one kind are judged.

    label: reads (rows,) of a table; answers: converts a version's outputs to what `metrics` and `row_loss` take; loss: name
    of the mean of `row_loss`; baselines: fit and answer for a model to beat; with_interval: metrics reported with an interval;
    linear: name of the linear baseline.
    """

    name: Literal["binary", "multiclass", "regression"]
    loss: str
    label: Callable[[pa.Table, str], Array]
    answers: Callable[[dict[str, Array]], Array]
    metrics: Mapping[str, Callable[[Array, Array], float]]
    row_loss: Callable[[Array, Array], npt.NDArray[np.float64]]
    baselines: Mapping[Baseline, Learn]
    with_interval: tuple[str, ...]
    classes: tuple[str, ...] = ()
    linear: str = "logistic"


def outcome_kind(version: ModelVersion) -> OutcomeKind:
    """Find the kind of a version's outcome by its signature, as `kind_of` does."""
    return kind_of(version.signature)


def kind_of(signature: Signature | None) -> OutcomeKind:
    """Find the kind by the first output of a signature: one named "value" is a number, named columns are classes."""
    output = signature.outputs[0] if signature is not None else None
    if output is not None and output.name == "value":
        return NUMBER
    if output is not None and output.columns is not None and len(output.columns) > 1:
        return _classes(output.columns)
    return BINARY


BINARY = OutcomeKind(
    name="binary",
    loss="log loss",
    label=lambda table, name: binary_labels(table, name).astype(np.float64),
    answers=first_output,
    metrics=METRICS,
    row_loss=row_log_loss,
    baselines=BASELINES,
    with_interval=("log_loss", "auc", "ece"),
)
NUMBER = OutcomeKind(
    name="regression",
    loss="squared error",
    label=number_labels,
    answers=first_output,
    metrics=NUMBER_METRICS,
    row_loss=squared_error,
    baselines={"constant": number_constant, "logistic": number_linear},
    with_interval=("rmse", "mae"),
    linear="ridge",
)


def _classes(names: Sequence[str]) -> OutcomeKind:
    class_indices = partial(_class_indices, names=names)
    return OutcomeKind(
        name="multiclass",
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
