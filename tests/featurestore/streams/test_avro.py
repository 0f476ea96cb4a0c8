"""Avro against the specification's own examples, and against what polars writes."""

from __future__ import annotations

import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from toque.featurestore.streams.registered import reader_of

RECORD = {
    "type": "record",
    "name": "test",
    "fields": [{"name": "a", "type": "long"}, {"name": "b", "type": "string"}],
}
TREE = {
    "type": "record",
    "name": "Node",
    "namespace": "trees",
    "fields": [{"name": "n", "type": "int"}, {"name": "next", "type": ["null", "Node"]}],
}
DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 40, "scale": 2}


@pytest.mark.parametrize(
    ("schema", "data", "value"),
    [
        # Examples of the specification, section "Binary Encoding".
        ("long", "00", 0),
        ("long", "01", -1),
        ("long", "02", 1),
        ("int", "7f", -64),
        ("int", "8001", 64),
        ("string", "06666f6f", "foo"),
        (RECORD, "3606666f6f", {"a": 27, "b": "foo"}),
        ({"type": "enum", "name": "Foo", "symbols": ["A", "B", "C", "D"]}, "06", "D"),
        ({"type": "array", "items": "long"}, "04063600", [3, 27]),
        (["null", "string"], "00", None),
        (["null", "string"], "020261", "a"),
        # By hand: a block of two items with its size, a map of one, doubles, and what is of itself.
        ({"type": "array", "items": "long"}, "0304063600", [3, 27]),
        ({"type": "map", "values": "boolean"}, "02026b0100", {"k": True}),
        ("double", "000000000000f0bf", -1.0),
        ("float", "0000003f", 0.5),
        ("bytes", "0401ff", "\x01ÿ"),
        ({"type": "fixed", "name": "two", "size": 2}, "6162", "ab"),
        (TREE, "02020400", {"n": 1, "next": {"n": 2, "next": None}}),
        (DECIMAL, "04ff85", Decimal("-1.23")),
        (DECIMAL, "1a7fffffffffffffffffffffffff", Decimal("101412048018258352119736256430.07")),
        ({"type": "long", "logicalType": "timestamp-millis"}, "d00f", datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)),
        ({"type": "int", "logicalType": "date"}, "01", date(1969, 12, 31)),
        ({"type": "string", "logicalType": "unheard-of"}, "0261", "a"),
    ],
)  # fmt: skip
def test_a_value_is_read_as_the_specification_says(schema: Any, data: str, value: Any) -> None:
    found = reader_of(schema)(bytes.fromhex(data))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("schema", "data", "message"),
    [
        (RECORD, "36", "it ends early"),
        (RECORD, "3606666f", "3 bytes are said, 2 are there"),
        (RECORD, "3606666f6f00", "1 bytes are left after it"),
        ("string", "01", "-1 bytes are said"),
        ("string", "02ff", "invalid start byte"),
        ("long", "ff" * 11, "more than ten bytes"),
        ("boolean", "02", "2 is no boolean"),
        ("double", "0000", "it ends early"),
        (["null", "string"], "04", "number 2 is chosen of 2"),
        ({"type": "array", "items": "null"}, "feffffff0f00", "items are said"),
        (TREE, "0202" * 100_000, "it ends early, or is of another schema"),
        ({"type": "long", "logicalType": "timestamp-millis"}, "fe" + "ff" * 8 + "01", "of another schema"),
    ],
)
def test_a_value_of_another_schema_is_refused(schema: Any, data: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reader_of(schema)(bytes.fromhex(data))


@pytest.mark.parametrize("schema", ["no.such.Type", {"items": "long"}, 7])
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(ValueError, match=r"is not defined in the schema|is no Avro schema"):
        reader_of(schema)


def test_rows_that_another_library_wrote_are_read() -> None:
    rows = pl.DataFrame(
        {
            "user": ["ada", "gräfin", None],
            "amount": [1.5, -0.0, None],
            "count": [2**62, -(2**62), 0],
            "small": pl.Series([1, -1, None], dtype=pl.Int32),
            "yes": [True, False, None],
            "tags": [["a", "b"], [], None],
            "at": pl.Series([1_714_557_600_000_123, -2_208_988_800_000_000, None]).cast(pl.Datetime("us")),
        }
    )  # fmt: skip
    file = io.BytesIO()
    rows.write_avro(file)
    schema, messages = opened(file.getvalue(), rows.height)
    values = rows.to_dicts()
    for each in values:
        if each["at"] is not None and '"local' not in json.dumps(schema):
            each["at"] = each["at"].replace(tzinfo=UTC)
    assert messages == values


def opened(file: bytes, count: int) -> tuple[Any, list[Any]]:
    """Open a container file of one block: its schema and its values."""
    sync = file[-16:]
    head, block = file.split(sync)[:2]
    begin = head.index(b"avro.schema") + len("avro.schema")
    text = head[begin:]
    schema = json.JSONDecoder().raw_decode(text[text.index(b"{") :].decode(errors="replace"))[0]
    rows = {"type": "array", "items": schema}
    numbers = {
        "type": "record",
        "name": "block",
        "fields": [{"name": "count", "type": "long"}, {"name": "data", "type": "bytes"}],
    }
    found = reader_of(numbers)(block)
    assert found["count"] == count
    body = found["data"].encode("latin-1")
    return schema, reader_of(rows)(bytes([2 * count]) + body + b"\x00")
