"""Vectors, lists, maps, decimals and times: round trips bit for bit, offline equal to online, and refusals."""

import itertools
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal as DecimalNumber
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toque.featurestore import (
    Bool,
    Decimal,
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    Float32,
    Float64,
    InRange,
    Int32,
    Int64,
    InvalidDefinition,
    InvalidRows,
    List,
    Map,
    RequestSource,
    String,
    UnixTimestamp,
    Vector,
    on_demand_feature_view,
    view_statistics,
)
from toque.featurestore.definitions.dtypes import FeatureType, parse_type
from toque.featurestore.definitions.encoding import RowLayout
from toque.featurestore.rows import conform
from toque.registry import open_store
from toque.registry.times import from_epoch_us

AT = datetime(2013, 6, 1, tzinfo=UTC)
FIELDS = [
    Field("v", Vector(3)),
    Field("raw", Vector(2, finite=False)),
    Field("counts", List(Int32)),
    Field("words", List(String, null_items=True)),
    Field("times", List(UnixTimestamp)),
    Field("flags", List(Bool, null_items=True)),
    Field("shares", Map(Float64)),
    Field("hits", Map(Int64)),
    Field("price", Decimal(20, 3)),
    Field("seen", UnixTimestamp),
    Field("text", String),
]
_NUMBERS = itertools.count()  # of the views that a property makes
everything = FeatureView("everything", [Entity("k")], FIELDS)
VALUES: dict[str, Any] = {
    "v": [1.0, -0.0, 0.5],
    "raw": [float("inf"), 0.25],
    "counts": [3, -1],
    "words": ["früh", None, ""],
    "times": [AT, AT + timedelta(microseconds=1)],
    "flags": [True, None],
    "shares": {"a": 0.5, "b": float("inf")},
    "hits": {},
    "price": DecimalNumber("-12.500"),
    "seen": AT,
    "text": "x" * 1000,
}
_SCALARS: dict[FeatureType, st.SearchStrategy[Any]] = {
    Float64: st.floats(allow_nan=False),
    Float32: st.floats(width=32, allow_nan=False),
    Int64: st.integers(-(2**63), 2**63 - 1),
    Int32: st.integers(-(2**31), 2**31 - 1),
    Bool: st.booleans(),
    String: st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    UnixTimestamp: st.integers(-(2**50), 2**50).map(from_epoch_us),
}


def values_of(dtype: FeatureType) -> st.SearchStrategy[Any]:
    """Any value of a type, null included."""
    if isinstance(dtype, Vector):
        number = st.floats(width=32, allow_nan=False, allow_infinity=not dtype.finite)
        return st.none() | st.lists(number, min_size=dtype.length, max_size=dtype.length)
    if isinstance(dtype, List):
        item = _SCALARS[dtype.item]
        return st.none() | st.lists(st.none() | item if dtype.null_items else item, max_size=4)
    if isinstance(dtype, Map):
        return st.none() | st.dictionaries(_SCALARS[String], _SCALARS[dtype.item], max_size=4)
    if isinstance(dtype, Decimal):
        unscaled = st.integers(-(10**dtype.precision) + 1, 10**dtype.precision - 1)
        return st.none() | unscaled.map(lambda number: DecimalNumber(number).scaleb(-dtype.scale))
    return st.none() | _SCALARS[dtype]


any_type: st.SearchStrategy[FeatureType] = st.one_of(
    st.sampled_from(list(_SCALARS)),
    st.builds(Vector, st.integers(1, 9), finite=st.booleans()),
    st.builds(List, st.sampled_from(list(_SCALARS)), null_items=st.booleans()),
    st.builds(Map, st.sampled_from([Float64, Float32, Int64, Int32])),
    st.integers(1, 27).flatmap(lambda p: st.builds(Decimal, st.just(p), st.integers(0, p))),
)


@st.composite
def some_rows(draw: st.DrawFn) -> tuple[FeatureView, list[dict[str, Any]]]:
    types = draw(st.lists(any_type, min_size=1, max_size=5))
    fields = [Field(f"f{i}", dtype) for i, dtype in enumerate(types)]
    row = st.fixed_dictionaries({f.name: values_of(f.dtype) for f in fields})
    rows = draw(st.lists(row, min_size=1, max_size=4))
    return FeatureView("drawn", [Entity("k")], fields), rows


def typed(view: FeatureView, rows: list[dict[str, Any]]) -> pa.Table:
    columns = {f.name: pa.array([_arrow(row[f.name]) for row in rows], f.dtype.arrow) for f in view.schema}
    keys = pa.array([f"k{i}" for i in range(len(rows))])
    times = pa.array([AT] * len(rows))
    return pa.table({"k": keys, **columns, "event_timestamp": times, "created_timestamp": times})


def _arrow(value: Any) -> Any:
    return list(value.items()) if isinstance(value, dict) else value


def exactly(value: Any) -> Any:
    """A value in which -0.0 is not 0.0."""
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, list):
        return [exactly(item) for item in value]
    return {key: exactly(item) for key, item in value.items()} if isinstance(value, dict) else value


@settings(max_examples=100)
@given(some_rows())
def test_every_row_comes_back_bit_for_bit(drawn: tuple[FeatureView, list[dict[str, Any]]]) -> None:
    view, rows = drawn
    layout = RowLayout(view.schema)
    table = conform(view, typed(view, rows), clock=lambda: AT)
    whole = layout.encode(table)
    assert whole == [packed for i in range(len(rows)) for packed in layout.encode(table.slice(i, 1))]
    for row, packed in zip(rows, whole, strict=True):
        values = layout.decode(packed)[2]
        assert exactly(dict(zip(layout.names, values, strict=True))) == exactly(row)


@settings(max_examples=12)
@given(drawn=some_rows())
def test_offline_equals_online(
    view_store: FeatureStore, drawn: tuple[FeatureView, list[dict[str, Any]]]
) -> None:
    unnamed, rows = drawn
    fs = view_store
    view = FeatureView(f"drawn_{next(_NUMBERS)}", unnamed.entities, unnamed.schema)
    fs.apply([view])
    fs.push(view, typed(view, rows), to="offline")
    fs.materialize_incremental(views=[view])
    asked = [{"k": f"k{i}"} for i in range(len(rows))]
    online = fs.get_online_features(view, asked).columns()
    entities = [{**keys, "event_timestamp": AT} for keys in asked]
    offline = fs.get_historical_features(entities, features=view).to_arrow().select(view.features)
    assert exactly(online) == exactly(pydict(offline))
    assert exactly(online) == exactly({f.name: [row[f.name] for row in rows] for f in view.schema})


def pydict(table: pa.Table) -> dict[str, list[Any]]:
    return {name: table[name].to_pylist(maps_as_pydicts="strict") for name in table.column_names}


@pytest.fixture(scope="module")
def view_store(redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """A store for all examples of a property."""
    store = open_store(tmp_path_factory.mktemp("types").as_uri())
    made = FeatureStore(store, redis_server.url, "types", clock=lambda: AT)
    yield made
    made.online.close()


def test_types_are_named_by_text() -> None:
    for f in FIELDS:
        assert parse_type(f.dtype.value) == f.dtype
    assert Vector(384).value == "Vector(384)"
    for wrong in (
        "Vector(0)",
        "Vector(x)",
        "List(Vector(3))",
        "Map(String)",
        "Decimal(39, 0)",
        "Decimal(3, 4)",
        "Float",
    ):
        with pytest.raises(InvalidDefinition):
            parse_type(wrong)
    with pytest.raises(InvalidDefinition, match="join key 'k' is Vector"):
        Entity("e", [Field("k", Vector(2))])
    with pytest.raises(InvalidDefinition, match="InRange is for numbers"):
        FeatureView("x", [], FIELDS, expectations=[InRange("v", 0, 1)])


def test_a_vector_lies_in_its_slot_and_a_list_behind_the_slots() -> None:
    view = FeatureView(
        "w", [Entity("k")], [Field("v", Vector(2)), Field("l", List(Int32)), Field("m", Map(Float32))]
    )
    row = {
        "k": "a",
        "v": [1.0, 2.0],
        "l": [7],
        "m": {"b": 1, "a": 2},
        "event_timestamp": AT,
        "created_timestamp": AT,
    }
    packed = RowLayout(view.schema).encode(conform(view, [row], clock=lambda: AT))[0]
    slots = struct.pack("<ff", 1, 2) + struct.pack("<II", 8, 4 + 8 + 2 + 8)
    ends = struct.pack("<Ii", 1, 7) + struct.pack("<III", 2, 1, 1) + b"ab" + struct.pack("<ff", 2, 1)
    assert packed[21:] == b"\x00" + slots + ends


def test_definitions_come_back_with_their_types_and_null_rules(offline_fs: FeatureStore) -> None:
    view = FeatureView("all_types", [Entity("k")], [*FIELDS, Field("needed", Vector(2), nullable=False)])
    offline_fs.apply([view])
    assert offline_fs.get_feature_view("all_types") == view
    row = VALUES | {"k": "a", "event_timestamp": AT}
    with pytest.raises(InvalidRows, match="'needed' is null in 1 rows"):
        offline_fs.write_offline(view, [row | {"needed": None}])


def test_all_kinds_of_tables_give_the_same_rows(offline_fs: FeatureStore) -> None:
    view = FeatureView(
        "kinds", [Entity("k")], [Field("v", Vector(2)), Field("l", List(Int64)), Field("d", Decimal(9, 2))]
    )
    offline_fs.apply([view])
    rows: list[dict[str, Any]] = [
        {"k": "a", "v": [0.1, 2.0], "l": [1, 2], "d": DecimalNumber("1.50"), "event_timestamp": AT},
        {"k": "b", "v": None, "l": [], "d": None, "event_timestamp": AT},
    ]
    for given_as in (
        rows,
        pd.DataFrame(rows),
        pl.DataFrame(rows, schema_overrides={"v": pl.Array(pl.Float64, 2)}),
        [{**row, "v": None if row["v"] is None else np.array(row["v"])} for row in rows],
    ):
        got = conform(view, given_as, clock=lambda: AT).select(["v", "l", "d"]).to_pydict()
        assert got == {
            "v": [[np.float32(0.1), 2.0], None],
            "l": [[1, 2], []],
            "d": [DecimalNumber("1.50"), None],
        }


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("v", [1.0, 2.0], r"'v' \(Vector\(3\)\) has 2 numbers, not 3 in row 1: \[1.0, 2.0\]; give all"),
        (
            "v",
            [1.0, 2.0, float("nan")],
            "not finite in float32 in row 1: .*nan.*; give null, or declare finite=False",
        ),
        ("v", [1.0, 2.0, 1e39], r"'v': 1e\+39 is beyond what Float32 holds; correct it"),
        ("raw", [1e39, 1.0], r"'raw': 1e\+39 is beyond what Float32 holds"),
        ("v", [1.0, True, 3.0], "'v' cannot be of one type: some values are true or false"),
        ("shares", {"a": 0.5, "b": True}, "'shares' cannot be of one type: some values are true or false"),
        ("v", [1.0, None, 3.0], "has an item that is null in row 1"),
        ("v", "abc", "got string such as .abc.; give a list a row"),
        ("counts", [1, None], r"'counts' \(List\(Int32\)\) has an item that is null"),
        ("counts", [2**40], "does not fit Int32"),
        ("shares", {"a": None}, "has a value that is null in row 1.*leave it out"),
        ("shares", {"a": "x"}, "cannot be of one type|must be Float64"),
        ("price", "1.2345", "has too many digits in row 1: '1.2345'; round it"),
        ("price", "twelve", "is no decimal number in row 1: 'twelve'; write it like"),
        ("seen", "2013-06-01T10:00:00", "has no time zone; give a time"),
        ("seen", "soon", "'soon' is no time"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_a_remedy(field: str, value: Any, told: str) -> None:
    others = [
        VALUES | {"k": "a", "event_timestamp": AT, field: None},
        VALUES | {"k": "b", "event_timestamp": AT},
    ]
    with pytest.raises(InvalidRows, match=told):
        conform(everything, [others[0], others[1] | {field: value}], clock=lambda: AT)


def test_on_demand_views_compute_with_vectors_and_lists(fs: FeatureStore, clock: Any) -> None:
    stored = FeatureView(
        "stored", [Entity("k")], [Field("v", Vector(2)), Field("l", List(Int64)), Field("d", Decimal(9, 2))]
    )
    ask = RequestSource("ask", [Field("q", Vector(2))])

    @on_demand_feature_view(
        sources=[stored, ask],
        schema=[Field("score", Float64), Field("both", Vector(2)), Field("double", List(Int64))],
    )
    def scores(inputs: Any) -> Any:
        """Compare the stored vector with the request's."""
        assert inputs["v"].dtype == np.float32
        double = [None if one is None else [2 * each for each in one] for one in inputs["l"]]
        return {
            "score": (inputs["v"] * inputs["q"]).sum(1),
            "both": inputs["v"] + inputs["q"],
            "double": double,
        }

    fs.apply([scores])
    clock.now = AT + timedelta(hours=1)
    fs.push(stored, [{"k": "a", "v": [1.0, 2.0], "l": [1, 2], "d": 1, "event_timestamp": AT}])
    asked = [{"k": "a", "q": [3.0, 4.0]}, {"k": "nobody", "q": [1.0, 1.0]}]
    online = fs.get_online_features(scores, asked).columns()
    entities = [{**row, "event_timestamp": clock.now} for row in asked]
    offline = fs.get_historical_features(entities, features=scores).to_arrow()
    assert online == {"score": [11.0, None], "both": [[4.0, 6.0], None], "double": [[2, 4], None]}
    assert pydict(offline.select(list(online))) == online
    with pytest.raises(InvalidRows, match=r"entity row 0: column 'q' \(Vector\(2\)\) has 3 numbers, not 2"):
        fs.get_online_features(scores, [{"k": "a", "q": [1.0, 2.0, 3.0]}])


def test_statistics_count_values_of_every_type(offline_fs: FeatureStore, clock: Any) -> None:
    offline_fs.apply([everything])
    clock.now = AT
    rows = [VALUES | {"k": key, "event_timestamp": AT} for key in ("a", "b")]
    offline_fs.write_offline(everything, [*rows, dict.fromkeys(VALUES) | {"k": "c", "event_timestamp": AT}])
    found = {each.name: each for each in view_statistics(offline_fs, everything)}
    counted = [each.model_dump(include={"rows", "values", "distinct"}) for each in found.values()]
    assert all(each == {"rows": 3, "values": 2, "distinct": 1} for each in counted)
    assert found["price"].mean == -12.5
