"""Benchmark of features computed from others, on demand and derived.

On demand: one function in three forms, a Python function called row by row, arrays and frames, in a batch of a training set
and for requests of 1 and 100 rows; the baseline is the row form, in the same run. Derived: the rows that follow from two inputs,
beside polars' `join_asof` of the same, which knows nothing of late rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import numpy as np
import polars as pl
import pyarrow as pa

from toque.featurestore import (
    Derived,
    Entity,
    FeatureView,
    Field,
    Float64,
    Int64,
    OnDemandFeatureView,
    RequestSource,
    String,
)
from toque.featurestore.definitions.computed import ValueInputs, to_python
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import projection
from toque.featurestore.offline.derived import InputRows, derive
from toque.featurestore.offline.retrieval import finish, plan_retrieval
from toque.featurestore.rows import offline_schema
from toque.load.benchmarks.harness import line, main, timed

ask = RequestSource("ask", [Field("amount", Float64), Field("count", Int64), Field("word", String)])
MADE = [Field("ratio", Float64), Field("length", Int64)]


def by_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the features of one row."""
    return {"ratio": math.log(abs(row["amount"]) + 1) / row["count"], "length": len(row["word"])}


def rowwise(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Call `by_row` for each row."""
    rows = zip(*(columns[name].tolist() for name in ("amount", "count", "word")), strict=True)
    made = [by_row({"amount": amount, "count": count, "word": word}) for amount, count, word in rows]
    return {name: np.array([each[name] for each in made]) for name in ("ratio", "length")}


def arrays(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the features of arrays."""
    ratio = np.log(np.abs(columns["amount"]) + 1) / columns["count"]
    return {"ratio": ratio, "length": np.array([len(word) for word in columns["word"]])}


def frames(rows: pl.DataFrame) -> pl.DataFrame:
    """Compute the features of a frame."""
    ratio = (pl.col("amount").abs() + 1).log() / pl.col("count")
    return rows.select(ratio=ratio, length=pl.col("word").str.len_chars().cast(pl.Int64))


plane = Entity("plane", dtype=Int64)
wear, load = (
    FeatureView(name, [plane], [Field(column, Float64)]) for name, column in (("wear", "x"), ("load", "y"))
)
VIEWS = {
    "row by row": OnDemandFeatureView("rows", [ask], MADE, rowwise),
    "numpy": OnDemandFeatureView("arrays", [ask], MADE, arrays),
    "polars": OnDemandFeatureView("frames", [ask], MADE, frames, form="polars"),
}
START = datetime(2024, 1, 1, tzinfo=UTC)


def run(*, rows: Annotated[int, "of the training set"] = 1_000_000) -> None:
    """Time each form in a batch and for requests, and the derived view."""
    chance = np.random.default_rng(0)
    words = pa.array(["x" * int(n) for n in chance.integers(0, 9, rows)])
    columns = {"amount": chance.normal(size=rows), "count": chance.integers(1, 1000, rows), "word": words}
    table = pa.table(columns)
    _compare(f"training set of {rows:,}", partial(_batch, rows=table), repeats=5)
    for size in (1, 100):
        _compare(f"request of {size}", partial(_request, rows=table.slice(0, size).to_pydict()), repeats=500)
    _derived(rows)


def _compare(what: str, call: Callable[[OnDemandFeatureView], object], *, repeats: int) -> None:
    timings = {form: timed(partial(call, view), repeats=repeats) for form, view in VIEWS.items()}
    for form, timing in timings.items():
        line(f"{what}, {form}", timing, timings["row by row"])


def _derived(rows: int) -> None:
    """Time the rows of a derived view of two inputs, of `rows` rows together."""
    inputs = [_input(view, rows // 2, max(rows // 50, 1), seed) for seed, view in enumerate((wear, load))]
    none = offline_schema(total).empty_table()

    def joined() -> pl.DataFrame:
        left, right = (pl.DataFrame(one.rows).sort(EVENT_TIMESTAMP) for one in inputs)
        moments = pl.concat([side.select("plane", EVENT_TIMESTAMP) for side in (left, right)])
        moments = moments.unique().sort(EVENT_TIMESTAMP)
        for side in (left, right.rename({"y": "z"})):
            moments = moments.join_asof(side, on=EVENT_TIMESTAMP, by="plane", check_sortedness=False)
        return _total(moments)

    base = timed(joined, repeats=3)
    line(f"join_asof of {rows:,}", base, base)
    derived = timed(lambda: derive(total, inputs, none, transform=_total, now=START), repeats=3)
    line(f"derived from {rows:,}", derived, base)


def _input(view: FeatureView, rows: int, keys: int, seed: int) -> InputRows:
    chance = np.random.default_rng(seed)
    event = pa.array(chance.integers(0, 10**13, rows)).cast(TIMESTAMP)
    made = {"plane": chance.integers(0, keys, rows), view.features[0]: chance.normal(size=rows)}
    table = pa.table(made | {EVENT_TIMESTAMP: event, CREATED_TIMESTAMP: event}, schema=offline_schema(view))
    return InputRows(projection(view), table, [True] * rows)


def _total(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(total=pl.sum_horizontal(pl.all().exclude("plane", "^.*timestamp.*$")))


def _batch(view: OnDemandFeatureView, rows: pa.Table) -> pa.Table:
    return finish(rows, [], plan_retrieval([view[list(view.features)]]))


def _request(view: OnDemandFeatureView, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    plan = plan_retrieval([view[list(view.features)]])
    inputs = ValueInputs(rows, {field.name: field.dtype for field in ask.schema})
    columns = plan.compute(inputs, rows=len(rows["amount"]))
    return {name: to_python(field, column) for name, (field, column) in columns.items()}


total = FeatureView("total", [plane], source=Derived([wear, load], [Field("total", Float64)], _total))


if __name__ == "__main__":
    main(run, "polars", "numpy", "pyarrow")
