"""Benchmark of features computed from others: run `python -m toque.load.benchmarks.prep.computed_features [--rows 1000000]`.

On demand: one function in three forms, a Python function called row by row, arrays and frames, in a batch of a training set
and for requests of 1 and 100 rows; the baseline is the row form, in the same run. Derived: the rows that follow from two inputs,
beside polars' `join_asof` of the same, which knows nothing of late rows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

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
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.on_demand import to_python
from toque.featurestore.definitions.on_demand_inputs import ValueInputs
from toque.featurestore.definitions.views import projection
from toque.featurestore.offline.derived import InputRows, derive
from toque.featurestore.offline.pinned_retrieval import finish
from toque.featurestore.retrieval import plan_retrieval
from toque.featurestore.rows import offline_schema
from toque.load.benchmarks.timing import Timing, print_machine, timed

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
    return rows.select(
        ratio=(pl.col("amount").abs() + 1).log() / pl.col("count"),
        length=pl.col("word").str.len_chars().cast(pl.Int64),
    )


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


def main() -> None:
    """Time each form in a batch and for requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="of the training set (default: 1,000,000)"
    )
    rows = parser.parse_args().rows
    print_machine("polars", "numpy", "pyarrow")
    chance = np.random.default_rng(0)
    given = pa.table(
        {
            "amount": chance.normal(size=rows),
            "count": chance.integers(1, 1000, rows),
            "word": pa.array(["x" * int(n) for n in chance.integers(0, 9, rows)]),
        }
    )
    _compare(f"training set of {rows:,}", lambda view: lambda: _batch(view, given), repeats=5)
    for size in (1, 100):
        request = given.slice(0, size).to_pydict()
        _compare(f"request of {size}", partial(_request, given=request), repeats=500)
    _derived(rows)


def _derived(rows: int) -> None:
    """Time the rows of a derived view of two inputs, of `rows` rows together."""
    each, keys = rows // 2, max(rows // 50, 1)
    inputs = [_input(view, each, keys, seed) for seed, view in enumerate((wear, load))]
    none = offline_schema(total).empty_table()

    def derived() -> pa.Table:
        return derive(total, inputs, none, transform=_total, now=START)

    def joined() -> pl.DataFrame:
        left, right = (pl.DataFrame(given.rows).sort(EVENT_TIMESTAMP) for given in inputs)
        moments = pl.concat([left.select("plane", EVENT_TIMESTAMP), right.select("plane", EVENT_TIMESTAMP)])
        moments = moments.unique().sort(EVENT_TIMESTAMP)
        once = moments.join_asof(left, on=EVENT_TIMESTAMP, by="plane", check_sortedness=False)
        return _total(
            once.join_asof(right.rename({"y": "z"}), on=EVENT_TIMESTAMP, by="plane", check_sortedness=False)
        )

    floor = timed(joined, repeats=3)
    took = timed(derived, repeats=3)
    print(f"{'join_asof of ' + format(rows, ','):40}{floor}", flush=True)
    print(
        f"{'derived from ' + format(rows, ','):40}{took}{took.p50_s / floor.p50_s:9.2f}x of join_asof",
        flush=True,
    )


def _input(view: FeatureView, rows: int, keys: int, seed: int) -> InputRows:
    chance = np.random.default_rng(seed)
    event = pa.array(chance.integers(0, 10**13, rows)).cast(TIMESTAMP)
    made = {"plane": chance.integers(0, keys, rows), view.features[0]: chance.normal(size=rows)}
    table = pa.table(made | {EVENT_TIMESTAMP: event, CREATED_TIMESTAMP: event}, schema=offline_schema(view))
    return InputRows(projection(view), table, [True] * rows)


def _total(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(total=pl.sum_horizontal(pl.all().exclude("plane", "^.*timestamp.*$")))


def _compare(what: str, call: Callable[[OnDemandFeatureView], object], *, repeats: int) -> None:
    baseline: Timing | None = None
    for form, view in VIEWS.items():
        took = timed(partial(call, view), repeats=repeats)
        baseline = baseline or took
        print(f"{what + ', ' + form:40}{took}{baseline.p50_s / took.p50_s:9.2f}x of row by row", flush=True)


def _batch(view: OnDemandFeatureView, given: pa.Table) -> pa.Table:
    return finish(given, [], plan_retrieval([view[list(view.features)]]))


def _request(view: OnDemandFeatureView, given: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    plan = plan_retrieval([view[list(view.features)]])
    size = len(given["amount"])
    made = plan.compute(ValueInputs(given, {f.name: f.dtype for f in ask.schema}), rows=size)
    return {name: to_python(f, column) for name, (f, column) in made.items()}


total = FeatureView("total", [plane], source=Derived([wear, load], [Field("total", Float64)], _total))


if __name__ == "__main__":
    main()
