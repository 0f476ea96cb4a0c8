"""Streams whose messages are written by schemas of a registry: read by them, and waiting while the registry is away."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.featurestore.streams.events import START, clicks, event
from tests.featurestore.streams.kafka import Broker
from tests.featurestore.streams.schema_registry import Registry, wire
from tests.waiting import until
from toque.featurestore import InvalidDefinition, KafkaTopic, SchemaRegistry, StreamSource, UnreadableSource
from toque.featurestore.streams.consumer import StreamConsumer
from toque.featurestore.streams.registered import connect
from toque.featurestore.streams.table import StreamTable
from toque.registry import open_store

CLICK = {
    "type": "record",
    "name": "Click",
    "fields": [
        {"name": "user", "type": "string"},
        {"name": "amount", "type": ["null", "double"]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "id", "type": "string"},
    ],
}
WITHOUT_AMOUNT = CLICK | {"fields": [each for each in CLICK["fields"] if each["name"] != "amount"]}


def varint(number: int) -> bytes:
    zigzag, found = (number << 1) ^ (number >> 63), bytearray()
    while zigzag > 127:
        found.append(zigzag & 127 | 128)
        zigzag >>= 7
    return bytes([*found, zigzag])


def text(value: str) -> bytes:
    return varint(len(value.encode())) + value.encode()


def click(name: str, amount: float | None, *, known: bool = True) -> bytes:
    """A click as Avro: user, amount if the schema has it, the time and a name."""
    value = b"\x00" if amount is None else b"\x02" + struct.pack("<d", amount)
    at = varint(int(START.timestamp() * 1e6))
    return text("gräfin") + (value if known else b"") + at + text(name)


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    made.schemas[7] = {"schema": json.dumps(CLICK)}
    yield made
    made.go_away()


@pytest.fixture(scope="module")
def broker() -> Broker:
    return Broker()


def source(broker: Broker, topic: str, registry: Registry) -> StreamSource:
    return clicks(
        reads=KafkaTopic(topic, broker.servers, producer_time=True),
        schemas=SchemaRegistry(registry.url, "$REGISTRY_LOGIN"),
        commit_every=timedelta(milliseconds=1),
    )


@contextmanager
def followed(declared: StreamSource, folder: Path) -> Iterator[StreamTable]:
    """Follow a source in a thread, storing its events only."""
    table = StreamTable(declared, open_store(f"file://{folder}/store"), "default")
    connection = connect(table, {"REGISTRY_LOGIN": "ada:secret"}.__getitem__)
    now = START + timedelta(hours=1)
    consumer = StreamConsumer(table, [], connection, online=None, owned=lambda: [0], clock=lambda: now)
    stop = threading.Event()
    following = threading.Thread(target=consumer.run, args=(stop,))
    following.start()
    try:
        yield table
    finally:
        stop.set()
        following.join()


def stored(table: StreamTable) -> list[Any]:
    return table.events().column("id").to_pylist()


def rejected(table: StreamTable) -> list[str]:
    return table.rejected.read().sort_by("stream_position")["reason"].to_pylist()


def send(broker: Broker, topic: str, *values: bytes) -> None:
    for each in values:
        broker.send_at(topic, each, partition=0, at=START)


def test_messages_are_read_by_the_schema_that_wrote_them(
    broker: Broker, registry: Registry, tmp_path: Path
) -> None:
    registry.schemas[8] = {"schema": json.dumps(WITHOUT_AMOUNT), "schemaType": "AVRO"}
    registry.schemas[300] = {"schema": '{"type": "object"}', "schemaType": "JSON"}
    as_json = wire(300, json.dumps(event("ada", 2.0)).encode())
    send(broker, "read", wire(7, click("e1", 1.5)), wire(8, click("e2", None, known=False)), as_json)
    with followed(source(broker, "read", registry), tmp_path) as table:
        until(lambda: table.positions() == {0: 3})
        rows = table.events().to_pylist()
    assert [(row["user"], row["amount"], row["id"]) for row in rows] == [
        ("gräfin", 1.5, "e1"),
        ("gräfin", None, "e2"),
        ("ada", 2.0, "e0"),
    ]
    assert {row["event_timestamp"] for row in rows} == {START}
    assert registry.asked == ["/schemas/ids/7", "/schemas/ids/8", "/schemas/ids/300"]
    assert set(registry.logins) == {"Basic YWRhOnNlY3JldA=="}  # ada:secret in base64


def test_what_no_schema_reads_goes_aside_with_its_reason_and_the_rest_goes_on(
    broker: Broker, registry: Registry, tmp_path: Path
) -> None:
    registry.schemas[9] = {"schema": 'syntax = "proto3";', "schemaType": "PROTOBUF"}
    registry.schemas[10] = {"schema": json.dumps(CLICK), "references": [{"name": "shop", "subject": "s"}]}
    registry.schemas[11] = {"schema": '"no.such.Type"'}
    bad = [b'{"user": "u"}', b"\x00\x00", wire(99, b"?"), wire(9, b"?"), wire(10, b"?"), wire(11, b"?")]
    send(broker, "aside", *bad, wire(7, click("e1", 1.0)[:-1]), wire(7, click("e2", 1.0)))
    with followed(source(broker, "aside", registry), tmp_path) as table:
        until(lambda: table.positions() == {0: 8})
        assert stored(table) == ["e2"]
        reasons = rejected(table)
    head = "the message does not begin with a zero byte and the number of a schema"
    assert reasons[:3] == [head, head, "the schema registry knows no schema 99"]
    assert "schema 9 is of type PROTOBUF" in reasons[3]
    assert "schema 10 is of type AVRO that refers to others" in reasons[4]
    assert "schema 11 cannot be read" in reasons[5]
    assert "the message is not of schema 7: 2 bytes are said, 1 are there" in reasons[6]
    assert registry.asked.count("/schemas/ids/99") == 1


def test_a_stream_waits_while_its_registry_is_away_and_goes_on_when_it_is_back(
    broker: Broker, registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry.schemas[12] = {"schema": json.dumps(CLICK)}
    declared = source(broker, "away", registry)
    send(broker, "away", wire(7, click("e1", 1.0)))
    with followed(declared, tmp_path) as table:
        until(lambda: stored(table) == ["e1"])
        registry.go_away()
        send(broker, "away", wire(7, click("e2", 1.0)))
        until(lambda: stored(table) == ["e1", "e2"])  # by a schema that is known
        send(broker, "away", wire(7, click("e3", 1.0)), wire(12, click("e4", 1.0)))
        until(lambda: caplog.text.count("does not answer") >= 2)
    with followed(declared, tmp_path) as table:  # another consumer finds the first schema in the store
        send(broker, "away", wire(7, click("e5", 1.0)))
        registry.come_back()
        until(lambda: table.positions() == {0: 5})
        assert sorted(stored(table)) == ["e1", "e2", "e3", "e4", "e5"]
        assert not table.rejected.exists()
    assert registry.asked == ["/schemas/ids/7", "/schemas/ids/12"]


def test_an_error_of_the_registry_is_not_taken_for_an_unknown_schema(
    broker: Broker, registry: Registry, tmp_path: Path
) -> None:
    table = StreamTable(source(broker, "errors", registry), open_store(f"file://{tmp_path}/store"), "default")
    for status, said in (
        (404, {"error_code": 404, "message": "HTTP 404 Not Found"}),
        (500, {}),
        (401, []),
        (200, "Sign in"),
    ):
        connection = connect(table, {"REGISTRY_LOGIN": "ada:secret"}.__getitem__)
        registry.answer = lambda _, status=status, said=said: (status, said)  # type: ignore[method-assign,misc]
        with pytest.raises(UnreadableSource, match=f"answers {status} .* for schema 1"):
            connection.schemas.json_of(wire(1, b""))  # type: ignore[attr-defined]
        connection.close()


@pytest.mark.parametrize(
    ("url", "login", "message"),
    [
        ("registry:8081", "", "url is like https://registry:8081"),
        ("https://ada:secret@registry:8081", "", "without user and password.* got 'registry:8081'"),
        ("https://registry:8081", "ada:secret", "login holds a password"),
    ],
)
def test_a_registry_that_cannot_be_asked_is_refused(url: str, login: str, message: str) -> None:
    with pytest.raises(InvalidDefinition, match=message):
        SchemaRegistry(url, login)
