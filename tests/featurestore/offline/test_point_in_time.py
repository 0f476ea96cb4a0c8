"""The point-in-time join against an oracle written from its definition."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toque.featurestore.definitions.dtypes import TIMESTAMP, Float64, String
from toque.featurestore.definitions.encoding import RowLayout, precedence
from toque.featurestore.definitions.fields import (
    Field,
)
from toque.featurestore.offline.point_in_time import join

START = datetime(2013, 1, 1, tzinfo=UTC)
MICRO = timedelta(microseconds=1)
LAYOUT = RowLayout([Field("x", Float64), Field("s", String)])
ROW_SCHEMA = pa.schema(
    [
        ("a", pa.string()),
        ("b", pa.int64()),
        ("x", pa.float64()),
        ("s", pa.string()),
        ("event_timestamp", TIMESTAMP),
        ("created_timestamp", TIMESTAMP),
    ]
)
ENTITY_SCHEMA = pa.schema(
    [("id", pa.int64()), ("a", pa.string()), ("b", pa.int64()), ("event_timestamp", TIMESTAMP)]
)

MODES = st.sampled_from(["as_stored", "as_known"])
moment = st.integers(0, 12).map(lambda n: START + n * MICRO)
key_a = st.sampled_from(["p", "q"])
key_b = st.sampled_from([1, 2])
row = st.fixed_dictionaries(
    {
        "a": key_a,
        "b": key_b,
        "x": st.one_of(st.none(), st.sampled_from([0.5, 1.5, -2.0])),
        "s": st.one_of(st.none(), st.sampled_from(["", "u", "vv"])),
        "event_timestamp": moment,
        "created_timestamp": moment,
    }
)
entity = st.fixed_dictionaries(
    {
        "a": st.one_of(st.none(), key_a, st.just("z")),
        "b": st.one_of(st.none(), key_b),
        "event_timestamp": moment,
    }
)


def packed(r: dict[str, Any]) -> bytes:
    return LAYOUT.encode(pa.Table.from_pylist([r], schema=ROW_SCHEMA))[0]


def oracle(
    e: dict[str, Any], rows: list[dict[str, Any]], ttl: timedelta | None, *, as_known: bool
) -> tuple[Any, Any]:
    """The newest visible row, straight from the words of the definition."""
    t = e["event_timestamp"]
    visible = [
        r
        for r in rows
        if r["a"] == e["a"]
        and r["b"] == e["b"]
        and r["event_timestamp"] <= t
        and (ttl is None or r["event_timestamp"] >= t - ttl)
        and (not as_known or r["created_timestamp"] <= t)
    ]
    if not visible:
        return None, None
    best = max(visible, key=lambda r: precedence(packed(r)))
    return best["x"], best["s"]


def joined(
    entities: list[dict[str, Any]], rows: list[dict[str, Any]], ttl: timedelta | None, *, as_known: bool
) -> Any:
    numbered = [{"id": i, **e} for i, e in enumerate(entities)]
    return join(
        pa.Table.from_pylist(numbered, schema=ENTITY_SCHEMA),
        pa.Table.from_pylist(rows, schema=ROW_SCHEMA),
        keys=[("a", "a"), ("b", "b")],
        features={"x": "x", "s": "s"},
        layout=LAYOUT,
        ttl=ttl,
        as_known=as_known,
    )


@settings(max_examples=150)  # of a whole store five hundred: `test_definition.py`
@given(
    st.lists(entity, max_size=12),
    st.lists(row, max_size=30),
    st.sampled_from([None, 1 * MICRO, 4 * MICRO]),
    MODES,
)
def test_every_entity_row_matches_the_definition(
    entities: list[dict[str, Any]], rows: list[dict[str, Any]], ttl: timedelta | None, mode: str
) -> None:
    as_known = mode == "as_known"
    out = joined(entities, rows, ttl, as_known=as_known)
    assert out.column("id").to_pylist() == list(range(len(entities)))
    expected = [oracle(e, rows, ttl, as_known=as_known) for e in entities]
    assert list(zip(out.column("x").to_pylist(), out.column("s").to_pylist(), strict=True)) == expected


@settings(max_examples=50)
@given(st.lists(entity, max_size=8), st.lists(row, max_size=20), st.randoms(use_true_random=False), MODES)
def test_the_order_of_rows_makes_no_difference(
    entities: list[dict[str, Any]], rows: list[dict[str, Any]], random: Any, mode: str
) -> None:
    as_known = mode == "as_known"
    shuffled = random.sample(rows, len(rows))
    assert joined(entities, rows, None, as_known=as_known).equals(
        joined(entities, shuffled, None, as_known=as_known)
    )


def test_times_too_far_apart_for_one_integer_are_ranked() -> None:
    centuries = [START + timedelta(days=40_000) * i for i in range(3)]
    rows = pa.table(
        {
            "k": pa.array([str(i % 20_000) for i in range(60_000)]),
            "x": pa.array([float(i) for i in range(60_000)]),
            "event_timestamp": pa.array([centuries[i // 20_000] for i in range(60_000)], TIMESTAMP),
            "created_timestamp": pa.array([START] * 60_000, TIMESTAMP),
        }
    )
    entities = pa.table(
        {
            "k": [str(i) for i in range(20_000)],
            "event_timestamp": pa.array([centuries[1] + MICRO] * 20_000, TIMESTAMP),
        }
    )
    layout = RowLayout([Field("x", Float64)])
    out = join(entities, rows, keys=[("k", "k")], features={"x": "x"}, layout=layout)
    assert out.column("x").to_pylist() == [20_000.0 + i for i in range(20_000)]


def test_without_keys_all_rows_are_of_one_entity() -> None:
    rows = pa.table(
        {
            "x": [1.0, 2.0],
            "event_timestamp": pa.array([START, START + MICRO], TIMESTAMP),
            "created_timestamp": pa.array([START, START], TIMESTAMP),
        }
    )
    entities = pa.table({"event_timestamp": pa.array([START, START + 5 * MICRO, START - MICRO], TIMESTAMP)})
    out = join(entities, rows, keys=[], features={"x": "x"}, layout=RowLayout([Field("x", Float64)]))
    assert out.column("x").to_pylist() == [1.0, 2.0, None]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000])
def test_a_long_backfilled_history_is_searched_for_what_was_known(n: int) -> None:
    known_late = START + timedelta(days=1)
    rows = pa.table(
        {
            "k": ["a"] * n,
            "x": [float(i) for i in range(n)],
            "event_timestamp": pa.array([START + i * MICRO for i in range(n)], TIMESTAMP),
            "created_timestamp": pa.array(
                [START if i == n // 3 else known_late for i in range(n)], TIMESTAMP
            ),
        }
    )
    entities = pa.table(
        {"k": ["a"] * n, "event_timestamp": pa.array([START + i * MICRO for i in range(n)], TIMESTAMP)}
    )
    layout = RowLayout([Field("x", Float64)])
    out = join(entities, rows, keys=[("k", "k")], features={"x": "x"}, layout=layout, as_known=True)
    assert out.column("x").to_pylist() == [None if i < n // 3 else float(n // 3) for i in range(n)]
