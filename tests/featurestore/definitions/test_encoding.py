"""The bytes of a packed row, as docs/online-store.md states them."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from toque.featurestore.definitions.dtypes import Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from toque.featurestore.definitions.encoding import RowLayout, precedence
from toque.featurestore.definitions.fields import (
    Entity,
    Field,
)
from toque.featurestore.definitions.views import (
    FeatureView,
)
from toque.featurestore.errors import InvalidRows, UnreadableRow
from toque.featurestore.online.keys import RequestKeys, row_keys
from toque.featurestore.online.serving import Lookup
from toque.featurestore.rows import conform

AT = datetime(2013, 6, 1, tzinfo=UTC)
FIELDS = [
    Field("d", Float64),
    Field("f", Float32),
    Field("q", Int64),
    Field("i", Int32),
    Field("b", Bool),
    Field("s", String),
    Field("t", UnixTimestamp),
    Field("u", String),
    Field("n", Float64),
]
VALUES: dict[str, Any] = {
    "d": 1.5,
    "f": 0.25,
    "q": -(2**60),
    "i": -7,
    "b": True,
    "s": "früh",
    "t": AT,
    "u": "",
    "n": None,
}
view = FeatureView("v", [Entity("k")], FIELDS)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    keyed = [{"k": "a", "event_timestamp": AT, "created_timestamp": AT, **row} for row in rows]
    return conform(view, keyed, clock=lambda: AT)


def test_a_row_is_the_documented_bytes() -> None:
    small = FeatureView("w", [Entity("k")], [Field("x", Float64), Field("s", String), Field("n", Int32)])
    row = {"k": "a", "x": 1.0, "s": "hi", "n": None, "event_timestamp": AT, "created_timestamp": AT}
    layout = RowLayout(small.schema)
    packed = layout.encode(conform(small, [row], clock=lambda: AT))[0]
    # CRC-32 of "x:Float64;s:String;n:Int32" is 0x4e2bfa84; 2013-06-01 is 1,370,044,800 s = 0x0004de0c69a16000 µs.
    head = "01" + "84fa2b4e" + "0060a1690cde0400" * 2 + "04"
    assert packed == bytes.fromhex(head + "000000000000f03f" + "02000000" + "00000000" + "6869")


def test_every_type_comes_back_and_nulls_stay_null() -> None:
    layout = RowLayout(FIELDS)
    nothing = dict.fromkeys(VALUES)
    for row, packed in zip([VALUES, nothing], layout.encode(table([VALUES, nothing])), strict=True):
        event, created, values = layout.decode(packed)
        assert (event, created) == (1_370_044_800_000_000,) * 2
        assert dict(zip(layout.names, values, strict=True)) == row


def test_twenty_floats_take_184_bytes() -> None:
    wide = FeatureView("wide", [Entity("k")], [Field(f"f{i}", Float64) for i in range(20)])
    row = {f"f{i}": 0.5 for i in range(20)} | {"k": "a", "event_timestamp": AT}
    assert len(RowLayout(wide.schema).encode(conform(wide, [row], clock=lambda: AT))[0]) == 184


def test_precedence_is_event_then_created_then_content() -> None:
    later = AT.replace(hour=1)
    rows = [
        VALUES,
        VALUES | {"u": "z"},
        VALUES | {"created_timestamp": later},
        VALUES | {"event_timestamp": later},
        VALUES | {"event_timestamp": later, "created_timestamp": later},
    ]
    packed = RowLayout(FIELDS).encode(table(rows))
    assert sorted([packed[i] for i in (3, 0, 4, 2, 1)], key=precedence) == packed


def test_a_row_of_an_unknown_layout_or_a_torn_row_is_refused() -> None:
    lookup = Lookup("default", view[["d"]], [])
    packed = RowLayout(FIELDS).encode(table([VALUES]))[0]
    assert lookup.decode([packed], now_us=2**51).values(["d"]) == {"d": [1.5]}
    for broken, message in [
        (b"\x02" + packed[1:], "encoding 2"),
        (packed[:1] + b"abcd" + packed[5:], "which no applied version has"),
        (packed[:30], "30 bytes is shorter than its layout"),
    ]:
        with pytest.raises(UnreadableRow, match=message):
            lookup.decode([broken], now_us=2**51)


def test_keys_of_several_values_cannot_be_confused() -> None:
    pair = FeatureView("p", [Entity("a"), Entity("b")], [Field("x", Float64)])
    rows = [{"a": "x|y", "b": "z"}, {"a": "x", "b": "y|z"}, {"a": "x%7Cy", "b": "z"}]
    full = [{**row, "x": 1.0, "event_timestamp": AT} for row in rows]
    keys = row_keys("default", pair, conform(pair, full, clock=lambda: AT))
    assert keys == [b"toque:default:p:x%7Cy|z", b"toque:default:p:x|y%7Cz", b"toque:default:p:x%257Cy|z"]
    assert RequestKeys("default", pair, ["a", "b"]).of(rows) == keys


@pytest.mark.parametrize("value", [True, "1", 1.0])
def test_an_integer_key_takes_integers_only(value: Any) -> None:
    flights = FeatureView("flights", [Entity("flight", dtype=Int64)], [Field("x", Float64)])
    keys = RequestKeys("default", flights, ["flight"])
    assert keys.of([{"flight": 12}, {"flight": None}]) == [b"toque:default:flights:12", b"toque:none"]
    with pytest.raises(InvalidRows, match="'flight' of view 'flights' must be Int64, got"):
        keys.of([{"flight": value}])
