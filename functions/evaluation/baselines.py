"""What a model must beat to be worth serving: the base rate, and a linear model on the same columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from functions.model_formats.matrices import binary_labels, category_matrix, number_labels, numeric_matrix

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression

Baseline = Literal["constant", "logistic"]
ClassIndices = Callable[[pa.Table, str], npt.NDArray[np.int64]]
_ROWS = 50_000  # a logistic regression of some hundred columns learns nothing more from further rows
_MIN_CATEGORY_ROWS = 20
_WIDE = 500  # weights beyond which Newton's matrix costs more than the gradients of L-BFGS


def constant(
    train: pa.Table, test: pa.Table, _: Sequence[str], __: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """The training rows' share of label 1 for every row of `test`."""
    return np.full(test.num_rows, float(binary_labels(train, label).mean()))


def logistic(
    train: pa.Table, test: pa.Table, numeric: Sequence[str], categorical: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """Probabilities of a logistic regression on standardised numbers, missing flags and one-hot categories.

    It learns from at most 50,000 rows, evenly spread over `train`.
    """
    train = _spread(train)
    learnt, asked = _encoded(train, test, numeric, categorical)
    model = _logistic(learnt.shape[1]).fit(learnt, binary_labels(train, label))
    probability: npt.NDArray[Any] = model.predict_proba(asked)[:, 1]
    return probability


def class_constant(
    train: pa.Table,
    test: pa.Table,
    _: Sequence[str],
    __: Sequence[str],
    label: str,
    *,
    class_indices: ClassIndices,
    classes: int,
) -> npt.NDArray[Any]:
    """The training rows' share of each class for every row of `test`; `class_indices` reads the label column."""
    shares = np.bincount(class_indices(train, label), minlength=classes) / train.num_rows
    return np.tile(shares, (test.num_rows, 1))


def class_logistic(
    train: pa.Table,
    test: pa.Table,
    numeric: Sequence[str],
    categorical: Sequence[str],
    label: str,
    *,
    class_indices: ClassIndices,
    classes: int,
) -> npt.NDArray[Any]:
    """As `logistic`, the probabilities of each class."""
    train = _spread(train)
    learnt, asked = _encoded(train, test, numeric, categorical)
    model = _logistic(learnt.shape[1] * classes).fit(learnt, class_indices(train, label))
    probability = np.zeros((test.num_rows, classes))
    probability[:, model.classes_] = model.predict_proba(asked)
    return probability


def number_constant(
    train: pa.Table, test: pa.Table, _: Sequence[str], __: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """The mean of the training rows' labels for every row of `test`."""
    return np.full(test.num_rows, float(number_labels(train, label).mean()))


def number_linear(
    train: pa.Table, test: pa.Table, numeric: Sequence[str], categorical: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """Ridge regression on what `logistic` reads."""
    from sklearn.linear_model import Ridge  # late, as in `_columns`

    train = _spread(train)
    learnt, asked = _encoded(train, test, numeric, categorical)
    value: npt.NDArray[Any] = Ridge().fit(learnt, number_labels(train, label)).predict(asked)
    return value


BASELINES: dict[Baseline, Callable[..., npt.NDArray[Any]]] = {"constant": constant, "logistic": logistic}


def _spread(train: pa.Table) -> pa.Table:
    """At most 50,000 rows, evenly spread."""
    if train.num_rows <= _ROWS:
        return train
    return train.take(np.linspace(0, train.num_rows - 1, _ROWS).astype(np.int64))


def _logistic(weights: int) -> LogisticRegression:
    """Newton's method where there are few weights: a few steps instead of a hundred, to the same place."""
    from sklearn.linear_model import LogisticRegression  # late, as in `_columns`

    solver = "newton-cholesky" if weights <= _WIDE else "lbfgs"
    return LogisticRegression(C=1.0, max_iter=200, solver=solver)


def _encoded(
    train: pa.Table, test: pa.Table, numeric: Sequence[str], categorical: Sequence[str]
) -> tuple[Any, Any]:
    """Both tables' rows as a linear model takes them, dense or sparse; all is learnt from `train`."""
    columns = _columns(len(numeric), len(categorical))
    learnt = columns.fit_transform(_matrix(train, numeric, categorical))
    return learnt, columns.transform(_matrix(test, numeric, categorical))


def _columns(numeric: int, categorical: int) -> ColumnTransformer:
    from sklearn.compose import ColumnTransformer  # late, all four: whoever only names a gate does without
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler()
    )
    texts = OneHotEncoder(min_frequency=_MIN_CATEGORY_ROWS, handle_unknown="infrequent_if_exist")
    return ColumnTransformer(
        [
            ("numbers", numbers, list(range(numeric))),
            ("texts", texts, list(range(numeric, numeric + categorical))),
        ]
    )


def _matrix(table: pa.Table, numeric: Sequence[str], categorical: Sequence[str]) -> npt.NDArray[np.float64]:
    """Numbers and category codes side by side; the hashes lose no distinction that matters as float64."""
    numbers = numeric_matrix(table, numeric).astype(np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    return np.hstack([numbers, category_matrix(table, categorical).astype(np.float64)])
