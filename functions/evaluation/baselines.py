"""Baselines that a model must beat: the base rate, and a linear model on the same columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.model_formats.matrices import (
    binary_labels,
    category_matrix,
    is_tensor,
    number_labels,
    numeric_matrix,
    tensor_array,
    text_labels,
    text_matrix,
)

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression

Baseline = Literal["constant", "logistic", "linear", "ridge", "poisson", "nearest", "popularity"]
"""What to beat: shares or mean, a linear model, for which a gate takes any of its names, or the popularity of a ranking's items."""
ClassIndices = Callable[[pa.Table, str], npt.NDArray[np.int64]]
_ROWS = 50_000  # a logistic regression of some hundred columns learns nothing more from further rows
_NEAREST_ROWS = 5_000  # that a row is compared with, each with each
_MIN_CATEGORY_ROWS = 20
_WIDE = 500  # weights beyond which Newton's matrix costs more than the gradients of L-BFGS


def constant(
    train: pa.Table, test: pa.Table, _: Sequence[str], __: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """Answer every row of `test` with the training rows' share of label 1."""
    return np.full(test.num_rows, float(binary_labels(train, label).mean()))


def logistic(
    train: pa.Table, test: pa.Table, numeric: Sequence[str], categorical: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """Answer with a logistic regression on standardised numbers, missing flags and one-hot categories.

    The regression learns from at most 50,000 rows, evenly spread over `train`.
    """
    train = _spread(train)
    fit_rows, test_rows = _encoded(train, test, numeric, categorical)
    model = _logistic(fit_rows.shape[1]).fit(fit_rows, binary_labels(train, label))
    probability: npt.NDArray[Any] = model.predict_proba(test_rows)[:, 1]
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
    """Answer every row of `test` with the training rows' share of each class; `class_indices` reads the label column."""
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
    """Answer with the probabilities of each class of a logistic regression, as `logistic` fits it."""
    train = _spread(train)
    fit_rows, test_rows = _encoded(train, test, numeric, categorical)
    model = _logistic(fit_rows.shape[1] * classes).fit(fit_rows, class_indices(train, label))
    probability = np.zeros((test.num_rows, classes))
    probability[:, model.classes_] = model.predict_proba(test_rows)
    return probability


def label_constant(
    train: pa.Table,
    test: pa.Table,
    _: Sequence[str],
    __: Sequence[str],
    label: str,
    *,
    flags: Callable[[pa.Table, str], npt.NDArray[np.float64]],
) -> npt.NDArray[Any]:
    """Answer every row of `test` with the training rows' share of each label; `flags` reads the label column."""
    return np.tile(flags(train, label).mean(axis=0), (test.num_rows, 1))


def label_logistic(
    train: pa.Table,
    test: pa.Table,
    numeric: Sequence[str],
    categorical: Sequence[str],
    label: str,
    *,
    flags: Callable[[pa.Table, str], npt.NDArray[np.float64]],
) -> npt.NDArray[Any]:
    """Answer with a logistic regression for each label, as `logistic` fits it; its share for a label that all or no rows have."""
    train = _spread(train)
    fit_rows, test_rows = _encoded(train, test, numeric, categorical)
    found = flags(train, label)
    probability = np.tile(found.mean(axis=0), (test.num_rows, 1))
    for place, own in enumerate(found.T):
        if 0 < own.sum() < len(own):
            probability[:, place] = (
                _logistic(fit_rows.shape[1]).fit(fit_rows, own).predict_proba(test_rows)[:, 1]
            )
    return probability


def number_constant(
    train: pa.Table, test: pa.Table, _: Sequence[str], __: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """Answer every row of `test` with the mean of the training rows' labels."""
    return np.full(test.num_rows, float(number_labels(train, label).mean()))


def number_linear(
    train: pa.Table, test: pa.Table, numeric: Sequence[str], categorical: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """Answer with a ridge regression on the columns as `logistic` encodes them."""
    return _ridge(train, test, numeric, categorical, lambda rows: number_labels(rows, label))


def count_linear(
    train: pa.Table, test: pa.Table, numeric: Sequence[str], categorical: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """Answer with a Poisson regression, whose logarithm is linear in the columns as `logistic` encodes them."""
    from sklearn.linear_model import PoissonRegressor  # late, as in `_columns`

    train = _spread(train)
    fit_rows, test_rows = _encoded(train, test, numeric, categorical)
    solver = "newton-cholesky" if fit_rows.shape[1] <= _WIDE else "lbfgs"
    model = PoissonRegressor(alpha=1.0 / train.num_rows, max_iter=200, solver=solver)
    rate: npt.NDArray[Any] = model.fit(fit_rows, number_labels(train, label)).predict(test_rows)
    return rate


def vector_constant(
    train: pa.Table, test: pa.Table, _: Sequence[str], __: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """Answer every row of `test` with the mean of the training rows' label vectors."""
    return np.tile(tensor_array(train, label).mean(axis=0, dtype=np.float64), (test.num_rows, 1))


def vector_linear(
    train: pa.Table, test: pa.Table, numeric: Sequence[str], categorical: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """Answer with a ridge regression of each value on the columns as `logistic` encodes them."""
    return _ridge(train, test, numeric, categorical, lambda rows: tensor_array(rows, label))


def _ridge(
    train: pa.Table,
    test: pa.Table,
    numeric: Sequence[str],
    categorical: Sequence[str],
    labels: Callable[[pa.Table], npt.NDArray[Any]],
) -> npt.NDArray[Any]:
    from sklearn.linear_model import Ridge  # late, as in `_columns`

    train = _spread(train)
    fit_rows, test_rows = _encoded(train, test, numeric, categorical)
    answers: npt.NDArray[Any] = Ridge().fit(fit_rows, labels(train)).predict(test_rows)
    return answers


def text_constant(
    train: pa.Table, test: pa.Table, _: Sequence[str], __: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """Answer every row of `test` with the training rows' commonest text, of equally common ones the first by alphabet."""
    names, counts = np.unique(text_labels(train, label).astype(str), return_counts=True)
    return np.full(test.num_rows, str(names[counts.argmax()]), dtype=object)


def text_nearest(
    train: pa.Table, test: pa.Table, numeric: Sequence[str], categorical: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """Answer with the text of the nearest training row: by two and three letters of its texts (TF-IDF), else by its numbers."""
    # late, as in `_columns`
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import NearestNeighbors

    train = _spread(train, _NEAREST_ROWS)
    if categorical:
        pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3))
        fit_rows = pieces.fit_transform([*_joined(train, categorical), "none"])[:-1]  # one piece at least
        test_rows = pieces.transform(_joined(test, categorical))
    else:
        fit_rows, test_rows = _encoded(train, test, numeric, ())
    found = NearestNeighbors(n_neighbors=1).fit(fit_rows).kneighbors(test_rows, return_distance=False)
    answers: npt.NDArray[Any] = text_labels(train, label)[found[:, 0]]
    return answers


def _joined(table: pa.Table, columns: Sequence[str]) -> list[str]:
    """Texts of each row's columns as one."""
    return [" ".join(text or "" for text in row) for row in text_matrix(table, columns).tolist()]


def no_order(
    _: pa.Table, test: pa.Table, __: Sequence[str], ___: Sequence[str], ____: str
) -> npt.NDArray[Any]:
    """Answer the same score for every item of `test`, which leaves their order to chance."""
    return np.zeros(test.num_rows)


def popularity(
    train: pa.Table, test: pa.Table, _: Sequence[str], categorical: Sequence[str], label: str
) -> npt.NDArray[Any]:
    """Answer with the mean label of the training rows with the same item, the one column of `categorical`; 0 for a new item."""
    items, place = np.unique(category_matrix(train, categorical)[:, 0], return_inverse=True)
    mean = np.bincount(place, number_labels(train, label)) / np.bincount(place)
    asked = category_matrix(test, categorical)[:, 0]
    found = np.minimum(np.searchsorted(items, asked), len(items) - 1)
    score: npt.NDArray[Any] = np.where(items[found] == asked, mean[found], 0.0)
    return score


BASELINES: dict[Baseline, Callable[..., npt.NDArray[Any]]] = {"constant": constant, "logistic": logistic}


def _spread(train: pa.Table, rows: int = _ROWS) -> pa.Table:
    """Select at most `rows` rows, evenly spread."""
    if train.num_rows <= rows:
        return train
    return train.take(np.linspace(0, train.num_rows - 1, rows).astype(np.int64))


def _logistic(weights: int) -> LogisticRegression:
    """Make a logistic regression, with Newton's method for few weights: a few steps instead of a hundred."""
    from sklearn.linear_model import LogisticRegression  # late, as in `_columns`

    solver = "newton-cholesky" if weights <= _WIDE else "lbfgs"
    return LogisticRegression(C=1.0, max_iter=200, solver=solver)


def _encoded(
    train: pa.Table, test: pa.Table, numeric: Sequence[str], categorical: Sequence[str]
) -> tuple[Any, Any]:
    """Encode both tables' rows for a linear model, dense or sparse; statistics are those of `train`."""
    rows = _matrix(train, numeric, categorical)
    columns = _columns(rows.shape[1] - len(categorical), len(categorical))
    fit_rows = columns.fit_transform(rows)
    return fit_rows, columns.transform(_matrix(test, numeric, categorical))


def _columns(numeric: int, categorical: int) -> ColumnTransformer:
    # late, all four: a process that only names gates does without
    from sklearn.compose import ColumnTransformer
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
    """Join numbers and category hashes side by side; as float64 the hashes stay distinct enough. Tensors are flattened."""
    nested = [
        name for name in numeric if name in table.column_names and is_tensor(table.schema.field(name).type)
    ]
    plain = numeric_matrix(table, [name for name in numeric if name not in nested])
    tensors = [tensor_array(table, name).reshape(table.num_rows, -1) for name in nested]
    numbers = np.hstack([plain, *tensors]).astype(np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    return np.hstack([numbers, category_matrix(table, categorical).astype(np.float64)])
