"""What a model must beat to be worth serving: the base rate, and a logistic regression on the same columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from functions.training.dataset import binary_labels, category_matrix, numeric_matrix

Baseline = Literal["constant", "logistic"]
_ROWS = 50_000  # a logistic regression of some hundred columns learns nothing more from further rows
_MIN_CATEGORY_ROWS = 20


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
    if train.num_rows > _ROWS:
        train = train.take(np.linspace(0, train.num_rows - 1, _ROWS).astype(np.int64))
    width = len(numeric)
    model = _pipeline(width, len(categorical))
    model.fit(_matrix(train, numeric, categorical), binary_labels(train, label))
    probability: npt.NDArray[Any] = model.predict_proba(_matrix(test, numeric, categorical))[:, 1]
    return probability


BASELINES: dict[Baseline, Callable[..., npt.NDArray[Any]]] = {"constant": constant, "logistic": logistic}


def _pipeline(numeric: int, categorical: int) -> Pipeline:
    numbers = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler()
    )
    texts = OneHotEncoder(min_frequency=_MIN_CATEGORY_ROWS, handle_unknown="infrequent_if_exist")
    columns = ColumnTransformer(
        [
            ("numbers", numbers, list(range(numeric))),
            ("texts", texts, list(range(numeric, numeric + categorical))),
        ]
    )
    return make_pipeline(columns, LogisticRegression(C=1.0, max_iter=200))


def _matrix(table: pa.Table, numeric: Sequence[str], categorical: Sequence[str]) -> npt.NDArray[np.float64]:
    """Numbers and category codes side by side; the hashes lose no distinction that matters as float64."""
    numbers = numeric_matrix(table, numeric).astype(np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    return np.hstack([numbers, category_matrix(table, categorical).astype(np.float64)])
