"""Readers of Kafka topics and Redis streams: every message once and in order, from the position asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, TIMESTAMP_NOT_AVAILABLE

from tests.conditions.logs import REDIS_LOSSES, REDIS_TRIMS, fill
from tests.featurestore.streams.kafka import Broker
from toque.featurestore import InvalidDefinition, KafkaTopic, RedisStream, UnreadableSource
from toque.featurestore.definitions.stream_source import Connection, Messages, StreamReader
from toque.featurestore.errors import MessagesLost
from toque.featurestore.streams import readers

Send = Callable[[int, list[int]], None]


def no_secrets(name: str) -> str:
    raise AssertionError(name)


@pytest.fixture(scope="module")
def broker() -> Broker:
    return Broker()


@pytest.fixture(params=["kafka", "redis"])
def log(request: pytest.FixtureRequest) -> tuple[StreamReader, Send]:
    """A log of several partitions, and a function that sends numbers to one of them."""
    topic = f"t{time.monotonic_ns()}"
    if request.param == "kafka":
        broker: Broker = request.getfixturevalue("broker")

        def send(partition: int, numbers: list[int]) -> None:
            broker.send(topic, [{"n": n} for n in numbers], partition=partition)

        return KafkaTopic(topic, broker.servers, producer_time=True), send
    url: str = request.getfixturevalue("redis_url")
    client: Any = redis.Redis.from_url(url)

    def add(partition: int, numbers: list[int]) -> None:
        for n in numbers:
            client.xadd(f"{topic}:{partition}", {"event": json.dumps({"n": n})})

    return RedisStream("$EVENTS", topic, partitions=4), add


@pytest.fixture
def connect(redis_url: str) -> Iterator[Callable[[StreamReader], Connection]]:
    opened: list[Connection] = []

    def one(reader: StreamReader) -> Connection:
        opened.append(reader.connect({"EVENTS": redis_url}.__getitem__))
        return opened[-1]

    yield one
    for each in opened:
        each.close()


def read(connection: Connection, count: int) -> Messages:
    found, deadline = Messages(), time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} messages came"
        more = connection.poll(timeout_s=0.2, limit=100)
        for each in zip(more.partitions, more.positions, more.taken_us, more.values, strict=True):
            found.add(*each)
    return found


def numbers(messages: Messages, partition: int) -> list[int]:
    pairs = zip(messages.partitions, messages.values, strict=True)
    return [json.loads(value or b"")["n"] for each, value in pairs if each == partition]


def test_every_message_comes_once_and_in_order(
    log: tuple[StreamReader, Send], connect: Callable[[StreamReader], Connection]
) -> None:
    reader, send = log
    send(0, list(range(30)))
    send(2, list(range(100, 150)))
    connection = connect(reader)
    assert connection.partitions() == [0, 1, 2, 3]
    connection.assign(dict.fromkeys(range(4)))
    found = read(connection, 80)
    assert numbers(found, 0) == list(range(30))
    assert numbers(found, 2) == list(range(100, 150))
    now = time.time() * 1e6
    assert all(abs(at - now) < 60e6 for at in found.taken_us)
    assert connection.lag({0: None, 2: None, 1: None}) == {0: 30, 2: 50, 1: 0}


def test_it_is_read_on_from_a_position(
    log: tuple[StreamReader, Send], connect: Callable[[StreamReader], Connection]
) -> None:
    reader, send = log
    send(1, list(range(20)))
    first = connect(reader)
    first.assign({1: None})
    found = read(first, 20)
    after = found.positions[11] + 1
    second = connect(reader)
    second.assign({1: after})
    assert numbers(read(second, 8), 1) == list(range(12, 20))
    assert second.lag({1: after}) == {1: 8}
    send(1, [99])
    assert numbers(read(second, 1), 1) == [99]


def test_the_lag_of_a_redis_stream_is_told_from_times_where_it_is_too_long_to_be_counted(
    redis_url: str, connect: Callable[[StreamReader], Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_READ_ROWS", 8)
    monkeypatch.setattr(readers, "LAG_COUNTED", 16)
    client: Any = redis.Redis.from_url(redis_url)
    for n in range(1_000):
        client.xadd("long", {"event": b"{}"}, id=f"{1_000 + 10 * n}-0")
    connection = connect(RedisStream("$EVENTS", "long"))
    assert connection.lag({0: None}) == {0: 1_000}
    assert connection.lag({0: 6_000 << 20}) == {0: 500}
    assert connection.lag({0: 10_900 << 20}) == {0: 10}
    for n in range(100):
        client.xadd("long", {"event": b"{}"}, id=f"{1_000_000}-{n}")  # at once, after a pause
    assert connection.lag({0: 10_930 << 20}) == {0: 107}
    client.xtrim("long", minid="10850-0")
    assert connection.lag({0: 10_850 << 20})[0] <= 115  # no more than there are


def test_a_redis_stream_is_read_in_pages(
    redis_url: str, connect: Callable[[StreamReader], Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_READ_ROWS", 8)
    client: Any = redis.Redis.from_url(redis_url)
    for partition, count in ((0, 30), (1, 3)):
        for n in range(count):
            client.xadd(f"paged:{partition}", {"other": b"{}", "event": json.dumps({"n": n})})
    connection = connect(RedisStream("$EVENTS", "paged", partitions=2))
    connection.assign({0: None, 1: None})
    assert connection.lag({0: None, 1: None}) == {0: 30, 1: 3}
    first = connection.poll(timeout_s=1, limit=10)
    assert 10 <= len(first) < 20
    second = connection.poll(timeout_s=1, limit=100)
    assert numbers(first, 0) + numbers(second, 0) == list(range(30))
    assert numbers(first, 1) + numbers(second, 1) == list(range(3))


def test_a_redis_stream_finds_the_position_of_a_time(
    redis_url: str, connect: Callable[[StreamReader], Connection]
) -> None:
    client: Any = redis.Redis.from_url(redis_url)
    at = datetime(2024, 5, 1, tzinfo=UTC)
    for minute in range(5):
        entry = f"{int((at + timedelta(minutes=minute)).timestamp() * 1000)}-7"
        client.xadd("clicks", {"event": json.dumps({"n": minute})}, id=entry)
    connection = connect(RedisStream("$EVENTS", "clicks"))
    connection.assign({0: connection.position_at(0, at + timedelta(minutes=3))})
    assert numbers(read(connection, 2), 0) == [3, 4]


def test_what_the_broker_no_longer_has_is_not_passed_over(broker: Broker) -> None:
    broker.send("short", [{"n": 1}])
    connection = KafkaTopic("short", broker.servers).connect(no_secrets)
    connection.assign({0: 500})
    with pytest.raises(MessagesLost, match=r"'short' partition 0 cannot be read on.*replay from a position"):
        read(connection, 1)
    connection.close()


@pytest.mark.parametrize("anew", [False, True], ids=["reads on", "begins anew"])
@pytest.mark.parametrize("loss", REDIS_LOSSES)
def test_what_a_redis_stream_no_longer_has_is_not_passed_over(
    loss: str, redis_url: str, connect: Callable[[StreamReader], Connection], *, anew: bool
) -> None:
    client: Any = redis.Redis.from_url(redis_url)
    reader = RedisStream("$EVENTS", "short")
    fill(client, "short", 0, 5)
    connection = connect(reader)
    connection.assign({0: None})
    after = read(connection, 5).positions[-1] + 1
    fill(client, "short", 5, 20)
    REDIS_LOSSES[loss](client, "short")
    if anew:
        connection = connect(reader)
        connection.assign({0: after})
    for _ in range(2):  # it goes no further, however often it is asked
        with pytest.raises(
            MessagesLost, match=r"'short' no longer has entry 1004-0, .* was cut off or deleted"
        ):
            connection.poll(timeout_s=0, limit=10)


@pytest.mark.parametrize("anew", [False, True], ids=["reads on", "begins anew"])
@pytest.mark.parametrize("trim", REDIS_TRIMS)
def test_a_redis_stream_that_lost_only_what_was_read_is_read_on(
    trim: str, redis_url: str, connect: Callable[[StreamReader], Connection], *, anew: bool
) -> None:
    client: Any = redis.Redis.from_url(redis_url)
    reader = RedisStream("$EVENTS", "kept")
    fill(client, "kept", 0, 5)
    connection = connect(reader)
    connection.assign({0: None})
    after = read(connection, 5).positions[-1] + 1
    REDIS_TRIMS[trim](client, "kept")
    if anew:
        connection = connect(reader)
        connection.assign({0: after})
    for first in (5, 8):
        assert len(connection.poll(timeout_s=0, limit=10)) == 0
        fill(client, "kept", first, first + 3)
        assert numbers(read(connection, 3), 0) == [*range(first, first + 3)]


@pytest.mark.parametrize(("deleted", "is_lost"), [("0-0", True), ("1003-0", True), ("1004-0", False)])
def test_a_stream_that_was_made_anew_and_is_beyond_again_is_known_by_what_it_deleted(
    redis_url: str, connect: Callable[[StreamReader], Connection], deleted: str, *, is_lost: bool
) -> None:
    client: Any = redis.Redis.from_url(redis_url)
    fill(client, "again", -30, -27)
    fill(client, "again", 10, 13)
    connection: Any = connect(RedisStream("$EVENTS", "again"))
    asked = connection._client.xinfo_stream  # of a server of version 7, which tells this too
    connection._client.xinfo_stream = lambda key: asked(key) | {"max-deleted-entry-id": deleted.encode()}
    connection.assign({0: (1004 << 20) + 1})
    if is_lost:
        with pytest.raises(MessagesLost, match="'again' no longer has entry 1004-0"):
            connection.poll(timeout_s=0, limit=10)
    else:
        assert numbers(read(connection, 3), 0) == [10, 11, 12]


def test_a_redis_stream_is_read_from_a_time_before_its_oldest_entry(
    redis_url: str, connect: Callable[[StreamReader], Connection]
) -> None:
    client: Any = redis.Redis.from_url(redis_url)
    fill(client, "late", 10, 13)
    connection = connect(RedisStream("$EVENTS", "late"))
    connection.assign({0: connection.position_at(0, datetime.fromtimestamp(1, UTC))})
    assert numbers(read(connection, 3), 0) == [10, 11, 12]


class Dated:
    """Message of a topic that keeps times of some kind, as the client gives it."""

    def __init__(self, kind: int, at_ms: int) -> None:
        self._timestamp = kind, at_ms

    def error(self) -> None:
        return None

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return 7

    def value(self) -> bytes:
        return b"{}"

    def timestamp(self) -> tuple[int, int]:
        return self._timestamp


@pytest.mark.parametrize(
    ("kind", "producer_time", "refusal"),
    [
        (TIMESTAMP_LOG_APPEND_TIME, False, None),
        (TIMESTAMP_LOG_APPEND_TIME, True, None),
        (TIMESTAMP_CREATE_TIME, True, None),
        (TIMESTAMP_CREATE_TIME, False, "at 7 of partition 2 has its producer's time, .*LogAppendTime"),
        (TIMESTAMP_NOT_AVAILABLE, False, "has no time"),
        (TIMESTAMP_NOT_AVAILABLE, True, "has no time"),
    ],
)
def test_a_kafka_message_is_known_from_when_the_log_took_it(
    kind: int, refusal: str | None, *, producer_time: bool
) -> None:
    connection: Any = KafkaTopic("t", "localhost:1", producer_time=producer_time).connect(no_secrets)
    messages = [Dated(kind, 5_000 if kind else -1)]
    connection._consumer = SimpleNamespace(consume=lambda *_: messages, close=connection._consumer.close)
    if refusal is None:
        assert connection.poll(timeout_s=0, limit=1).taken_us == [5_000_000]
    else:
        with pytest.raises(UnreadableSource, match=refusal):
            connection.poll(timeout_s=0, limit=1)
    connection.close()


def test_whose_times_count_is_part_of_a_topics_description() -> None:
    assert "producer_time" not in KafkaTopic("t", "h:1").describe()  # as in definitions of 0.1
    assert KafkaTopic("t", "h:1", producer_time=True).describe()["producer_time"] is True


def test_an_id_beyond_what_a_position_holds_is_refused(
    redis_url: str, connect: Callable[[StreamReader], Connection]
) -> None:
    client: Any = redis.Redis.from_url(redis_url)
    client.xadd("odd", {"event": b"{}"}, id="5-99999999")
    connection = connect(RedisStream("$EVENTS", "odd"))
    connection.assign({0: None})
    with pytest.raises(UnreadableSource, match="5-99999999 is beyond 1048575 within its millisecond"):
        connection.poll(timeout_s=1, limit=10)


def test_secrets_stand_in_no_declaration() -> None:
    with pytest.raises(InvalidDefinition, match=r"'sasl.password' holds a secret; name it"):
        KafkaTopic("t", "localhost:9092", {"sasl.password": "hunter2"})
    with pytest.raises(InvalidDefinition, match=r"'enable.auto.commit' is the platform's own"):
        KafkaTopic("t", "localhost:9092", {"enable.auto.commit": "true"})
    with pytest.raises(InvalidDefinition, match="url holds a password"):
        RedisStream("redis://:hunter2@localhost:6379/0", "t")
    reader = KafkaTopic("t", "$SERVERS", {"sasl.password": "$PASSWORD"})
    assert reader.secret_names == ("SERVERS", "PASSWORD")


def test_a_redis_that_is_away_is_named() -> None:
    connection = RedisStream("redis://127.0.0.1:1/0?patience=0.1", "t").connect(no_secrets)
    connection.assign({0: None})
    with pytest.raises(UnreadableSource, match="Redis stream 't' cannot be read"):
        connection.poll(timeout_s=0.1, limit=1)
