"""On-demand views: the same bits in a training set and in a request, in the form of arrays and of frames."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from toque.featurestore import (
    Bool,
    Field,
    Float32,
    Float64,
    Int64,
    InvalidDefinition,
    InvalidRows,
    OnDemandFeatureView,
    RequestSource,
    String,
    UnixTimestamp,
    on_demand_feature_view,
)
from toque.featurestore.applied import deserialize
from toque.featurestore.definitions.computed import ValueInputs, to_arrow, to_python
from toque.featurestore.definitions.views import digest
from toque.featurestore.offline.retrieval import finish, plan_retrieval

START = datetime(2024, 1, 1, tzinfo=UTC)
ask = RequestSource(
    "ask",
    [
        Field("amount", Float64),
        Field("count", Int64),
        Field("word", String),
        Field("flag", Bool),
        Field("at", UnixTimestamp),
    ],
)
MADE = [Field("ratio", Float64), Field("small", Float32), Field("long", Bool), Field("day", Int64)]


@on_demand_feature_view(sources=[ask], schema=MADE, form="polars")
def framed(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(
        ratio=(pl.col("amount").abs() + 1).log() / pl.col("count"),
        small=pl.col("amount").sin() * 3,
        long=pl.col("word").str.len_chars() > 3,
        day=pl.col("at").dt.weekday().cast(pl.Int64),
    )


@on_demand_feature_view(sources=[ask], schema=MADE)
def arrayed(columns: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    days = [
        np.nan if np.isnat(at) else (at.astype("datetime64[D]").astype(int) + 3) % 7 + 1
        for at in columns["at"]
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(np.abs(columns["amount"]) + 1) / columns["count"]
    return {
        "ratio": ratio,
        "small": np.sin(columns["amount"]) * 3,
        "long": np.array([None if word is None else len(word) > 3 for word in columns["word"]], dtype=object),
        "day": np.array(days, dtype=np.float64),
    }


def values(seed: int, rows: int) -> dict[str, list[Any]]:
    chance = np.random.default_rng(seed)

    def some(made: list[Any]) -> list[Any]:
        return [None if chance.random() < 0.1 else each for each in made]

    return {
        "amount": some((chance.normal(size=rows) * 10.0 ** chance.integers(-9, 9, rows)).tolist()),
        "count": some(chance.integers(0, 2**62, rows).tolist()),
        "word": some(["x" * int(n) for n in chance.integers(0, 8, rows)]),
        "flag": some([bool(each) for each in chance.integers(0, 2, rows)]),
        "at": some([START + timedelta(hours=int(n)) for n in chance.integers(0, 9999, rows)]),
    }


def offline(view: OnDemandFeatureView, given: Mapping[str, list[Any]]) -> pa.Table:
    table = pa.table({f.name: pa.array(given[f.name], f.dtype.arrow) for f in ask.schema})
    return finish(table, [], plan_retrieval([view[list(view.features)]]))


def online(view: OnDemandFeatureView, given: Mapping[str, list[Any]], row: int) -> dict[str, Any]:
    dtypes = {f.name: f.dtype for f in ask.schema}
    plan = plan_retrieval([view[list(view.features)]])
    made = plan.compute(ValueInputs({name: [each[row]] for name, each in given.items()}, dtypes), rows=1)
    return {name: to_python(f, column)[0] for name, (f, column) in made.items()}


@pytest.mark.parametrize("view", [framed, arrayed], ids=["polars", "numpy"])
@pytest.mark.parametrize("seed", range(5))
def test_a_request_gets_the_bits_of_the_training_set(view: OnDemandFeatureView, seed: int) -> None:
    given = values(seed, rows=101)
    trained = offline(view, given)
    for row in range(101):
        asked = pa.table(
            {
                name: pa.array([each], trained.schema.field(name).type)
                for name, each in online(view, given, row).items()
            }
        )
        assert asked.equals(trained.slice(row, 1).combine_chunks()), row
        for name, value in online(view, given, row).items():
            assert value == trained[name][row].as_py()


def test_the_polars_form_gets_exact_types() -> None:
    seen: list[pl.Schema] = []

    def look(rows: pl.DataFrame) -> pl.DataFrame:
        seen.append(rows.schema)
        return rows.select(same=pl.col("count"))

    view = OnDemandFeatureView("look", [ask], [Field("same", Int64)], look, form="polars")
    given = values(1, rows=9) | {"count": [2**62 + n for n in range(9)]}
    assert offline(view, given)["same"].to_pylist() == given["count"]  # a float64 would round them
    assert online(view, given, 3) == {"same": 2**62 + 3}
    assert {str(each) for each in seen} == {
        str(
            pl.Schema(
                {
                    "amount": pl.Float64,
                    "count": pl.Int64,
                    "word": pl.String,
                    "flag": pl.Boolean,
                    "at": pl.Datetime("us", "UTC"),
                }
            )
        )
    }


@pytest.mark.parametrize(
    ("transform", "form"),
    [
        (lambda rows: rows.select(share=pl.col("amount") / pl.col("amount").sum()), "polars"),
        (lambda columns: {"share": columns["amount"] - np.nanmean(columns["amount"])}, "numpy"),
        (lambda columns: {"share": np.random.default_rng().normal(size=len(columns["amount"]))}, "numpy"),
    ],
)
def test_what_mixes_rows_or_is_random_is_refused_in_a_training_set(transform: Any, form: Any) -> None:
    view = OnDemandFeatureView("share", [ask], [Field("share", Float64)], transform, form=form)
    with pytest.raises(InvalidRows, match=r"'share': row \d+ is .* among 50 rows .* each row from itself"):
        offline(view, values(2, rows=50))


def test_what_a_frame_must_have() -> None:
    def view(transform: Any) -> OnDemandFeatureView:
        return OnDemandFeatureView("bad", [ask], [Field("day", Int64)], transform, form="polars")

    given = values(3, rows=5)
    for transform, message in (
        (lambda _: {"day": [1] * 5}, "returned dict; with form='polars' it returns a polars.DataFrame"),
        (lambda rows: rows, "did not return 'day'"),
        (lambda _: pl.DataFrame({"day": [1]}), "returned 1 rows for 5"),
        (lambda _: pl.DataFrame({"day": ["x"] * 5}), "'day'"),
        (lambda rows: rows.select("nothing"), "fails on its inputs: ColumnNotFoundError"),
    ):
        with pytest.raises(InvalidRows, match=message):
            offline(view(transform), given)
    with pytest.raises(InvalidDefinition, match="form='rows' is none of"):
        OnDemandFeatureView("bad", [ask], MADE, lambda rows: rows, form="rows")  # type: ignore[arg-type]


def test_the_form_is_part_of_a_definition_and_the_first_one_changes_no_digest() -> None:
    assert framed.describe()["form"] == "polars"
    assert "form" not in arrayed.describe()
    assert digest(framed.semantics()) != digest(arrayed.semantics())
    catalog = {"on_demand_feature_view": framed.describe()}

    class Applied:
        def get(self, kind: str, _: str) -> Any:
            return type("Record", (), {"definition": catalog[kind]})

    rebuilt = deserialize.on_demand(Applied(), "framed", transform=lambda _: framed.transform)  # type: ignore[arg-type]
    assert rebuilt.form == "polars"


@pytest.mark.parametrize("form", [np.array, pl.Series])
def test_a_computed_number_beyond_its_type_is_infinite_in_both_forms(form: Any) -> None:
    assert to_arrow(Field("x", Float32), form([1e39, -1e39, 0.5])).to_pylist() == [np.inf, -np.inf, 0.5]
