"""Readers of streams, by the type that their description names: Redis streams and Kafka topics.

An entry of a Redis stream is a JSON object in one of its fields, and its id is its position: the milliseconds at
which Redis took it and a number, packed into one integer. Kafka needs `pip install 'toque[kafka]'`; its positions the
platform keeps itself, so there is no consumer group that could lose them.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from typing import Any

import numpy as np
from redis.exceptions import RedisError, ResponseError

from toque.clusters.redis_clients import RedisAddress, open_redis
from toque.featurestore.definitions.batch_source import Secrets, revealed, secrets_in
from toque.featurestore.definitions.stream_source import Connection, Messages, StreamReader
from toque.featurestore.errors import InvalidDefinition, MessagesLost, UnreadableSource
from toque.registry.times import epoch_us

LAG_COUNTED = 10_000
"""Entries that are counted; of more, the number follows from how fast the last of these came."""
_READ_ROWS = 5_000
"""Entries at a time: answers with more are gone through by the garbage collector, which takes longer than to read them."""
_NUMBER_BITS = 20
_NUMBERS, _MILLISECONDS = 1 << _NUMBER_BITS, 1 << 43
_PAUSE_S = 0.01  # of a poll that finds nothing
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RedisStream:
    """Stream of a Redis, or `partitions` of them, named `key:0`, `key:1`, …

    url: as of the online store (`redis://…`), or `$NAME`, a secret that holds it, as one with a password must be.
    field: of an entry, that holds the event as JSON.
    Raises: InvalidDefinition.
    """

    url: str
    key: str
    partitions: int = 1
    field: str = "event"

    def __post_init__(self) -> None:
        if self.partitions < 1:
            raise InvalidDefinition(
                f"RedisStream {self.key!r}: partitions must be at least 1, got {self.partitions}"
            )
        if not self.url.startswith("$"):
            if re.search(r"://[^/@]*:[^/@]+@", self.url):
                raise InvalidDefinition(
                    "RedisStream: url holds a password; name a secret that holds the url, as url='$EVENTS_REDIS'"
                )
            RedisAddress.of(self.url)

    def describe(self) -> dict[str, Any]:
        """Describe the reader as JSON."""
        return {
            "type": "redis_stream",
            "url": self.url,
            "key": self.key,
            "partitions": self.partitions,
            "field": self.field,
        }

    @property
    def secret_names(self) -> tuple[str, ...]:
        """Names of the secrets that a connection needs."""
        return tuple(secrets_in(self.url))

    def key_of(self, partition: int) -> str:
        """Name of the stream that is a partition."""
        return self.key if self.partitions == 1 else f"{self.key}:{partition}"

    def connect(self, secrets: Secrets) -> Connection:
        """Connect to Redis at the first read."""
        return _RedisConnection(self, revealed(self.url, secrets))


class _RedisConnection:
    """Connection to the streams of one source."""

    def __init__(self, reads: RedisStream, url: str) -> None:
        self._reads = reads
        self._client: Any = open_redis(url)
        self._client.set_response_callback("XRANGE", _as_given)
        self._next: dict[int, int] = {}
        self._emptied: set[int] = (
            set()
        )  # partitions that had lost the entry before the next, and nothing after it

    def partitions(self) -> list[int]:
        """List the partitions that are declared."""
        return list(range(self._reads.partitions))

    def assign(self, positions: Mapping[int, int | None]) -> None:
        """Read on from a position in each partition; `poll` tells whether Redis still has what follows it."""
        self._next = {each: at or 0 for each, at in positions.items()}
        self._emptied = set()

    def poll(self, *, timeout_s: float, limit: int) -> Messages:
        """Read entries of all partitions in one round trip, again until there are some."""
        deadline = time.monotonic() + timeout_s
        found = Messages()
        while self._next:
            count = max(1, min(_READ_ROWS, limit) // len(self._next))
            while len(found) < limit and self._read(found, count):
                pass
            if len(found) or time.monotonic() >= deadline:
                return found
            time.sleep(_PAUSE_S)
        time.sleep(timeout_s)
        return found

    def _read(self, found: Messages, count: int) -> bool:
        """Read up to `count` entries of each partition; returns whether there may be more.

        Each is read from the entry before on: while that is there, nothing after it was cut off.
        """
        with self._readable():
            pipe = self._client.pipeline(transaction=False)
            for partition, at in self._next.items():
                pipe.xrange(self._reads.key_of(partition), min=_id(_from(at)), count=count + 1)
            answers = pipe.execute()
        name = self._reads.field.encode()
        for partition, entries in zip(tuple(self._next), answers, strict=True):
            at = self._next[partition]
            if _from(at) < at:
                if entries and _position(entries[0][0]) < at:
                    del entries[0]
                    self._emptied.discard(partition)
                else:
                    self._require_rest(partition, at)
            if not entries:
                continue
            positions = _positions([given for given, _ in entries])
            found.partitions += [partition] * len(entries)
            found.positions += positions.tolist()
            found.taken_us += ((positions >> _NUMBER_BITS) * 1000).tolist()
            found.values += [_value(fields, name) for _, fields in entries]
            self._next[partition] = found.positions[-1] + 1
        return any(len(entries) >= count for entries in answers)

    def _require_rest(self, partition: int, at: int) -> None:
        """Check that the entry before a position went alone, or with older ones. Raises: MessagesLost, UnreadableSource.

        Entries are cut off from the oldest on, and ids only rise. So nothing is missing while an older one is there, or while the
        stream is empty and gave no id since; after that, what is there came to an empty stream and is all that came. A stream
        whose last id is before the position was made anew, or its server lost the end of it; and so was one that is beyond it
        and has deleted no entry up to there (Redis 7 tells).
        """
        key = self._reads.key_of(partition)
        with self._readable():
            oldest = self._client.xrange(key, count=1)
            try:
                about = self._client.xinfo_stream(key)
                last = _position(about["last-generated-id"])
                deleted = _position(about.get("max-deleted-entry-id", _id(at)))
            except ResponseError:  # there is no such stream
                last, deleted = -1, 0
        first = _position(oldest[0][0]) if oldest else None
        if first is None:
            lost = last != at - 1
            self._emptied |= set() if lost else {partition}
        elif last < at - 1:
            lost = True
        else:
            lost = partition not in self._emptied if first >= at else deleted < at - 1
        if lost:
            there = f"its oldest entry is {_text(oldest[0][0])}" if oldest else "it has none"
            raise MessagesLost(
                f"Redis stream {key!r} no longer has entry {_id(at - 1)}, after which it is to be read on, and {there}: what came "
                "in between was cut off or deleted, or the stream was made anew, as far as Redis can tell; keep more of it "
                "(MAXLEN, MINID), and go on from what it has with `toque streams replay NAME --from TIME`"
            )

    def lag(self, positions: Mapping[int, int | None]) -> dict[int, int]:
        """Count the entries from each position on; beyond `LAG_COUNTED` their number is told from the times of those."""
        with self._readable():
            return {partition: self._count(partition, at or 0) for partition, at in positions.items()}

    def _count(self, partition: int, at: int) -> int:
        key, counted, more = self._reads.key_of(partition), 0, True
        entries: list[Any] = []
        while more and counted < LAG_COUNTED:
            entries = self._client.xrange(key, min=_id(at), count=_READ_ROWS)
            counted, more = counted + len(entries), len(entries) == _READ_ROWS
            at = _position(entries[-1][0]) + 1 if entries else at
        newest = self._client.xrevrange(key, count=1) if more else []
        if not newest:
            return counted
        begin, end, last = (_position(each[0]) for each in (entries[0], entries[-1], newest[0]))
        further = (len(entries) - 1) * (last - end) // max(1, end - begin)
        there: int = self._client.xlen(key)
        return counted + max(0, min(further, there - counted))

    def position_at(self, partition: int, at: datetime) -> int:
        """Find the position of a time, whether or not there is an entry."""
        del partition  # ids of all are times
        return -(-epoch_us(at) // 1000) << _NUMBER_BITS

    def close(self) -> None:
        """End the connection to Redis."""
        self._client.close()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            raise UnreadableSource(f"Redis stream {self._reads.key!r} cannot be read: {error}") from error


def _from(position: int) -> int:
    """Position of the entry that was read last; of a time, which is before all numbers of its millisecond, the position itself."""
    return position - 1 if position & (_NUMBERS - 1) else position


def _id(position: int) -> str:
    at = max(0, position)
    return f"{at >> _NUMBER_BITS}-{at & (_NUMBERS - 1)}"


def _as_given(answer: Any, **options: Any) -> Any:
    """Leave an answer as it came: dictionaries of every entry would take longer than reading them."""
    del options
    return answer


def _value(fields: Mapping[bytes, bytes] | Sequence[bytes] | None, name: bytes) -> bytes | None:
    """Find the value of one field of an entry: names and values by turns, a mapping from the client of a cluster."""
    if type(fields) is list and fields[0] == name:  # nearly all
        value: bytes = fields[1]
        return value
    if fields is None:
        return None
    if isinstance(fields, Mapping):
        return fields.get(name)
    return next(
        (value for field, value in zip(fields[::2], fields[1::2], strict=True) if field == name), None
    )


def _text(given: bytes | str) -> str:
    return given.decode() if isinstance(given, bytes) else given


def _positions(given: Sequence[bytes | str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Pack the ids of entries into integers, as `_position` does one."""
    texts = [each.encode() for each in given if isinstance(each, str)] or given
    numbers = np.fromstring(b"-".join(texts).replace(b"-", b" "), np.int64, sep=" ")  # type: ignore[arg-type]
    milliseconds, number = numbers[::2], numbers[1::2]
    if (number >= _NUMBERS).any() or (milliseconds >= _MILLISECONDS).any():
        return np.array([_position(each) for each in given])  # which says what is wrong
    return (milliseconds << _NUMBER_BITS) | number


def _position(given: bytes | str) -> int:
    """Pack an entry's id into one integer. Raises: UnreadableSource for one that does not fit."""
    text = given.encode() if isinstance(given, str) else given
    milliseconds, number = map(int, text.split(b"-"))
    if number >= _NUMBERS or milliseconds >= _MILLISECONDS:
        raise UnreadableSource(
            f"Redis stream: the id of entry {_text(given)} is beyond {_NUMBERS - 1} within its millisecond, or beyond the year 2248: "
            "XADD was given it, or '*' made it on a server whose clock had been ahead. Delete the entry or set its clock right, then "
            "replay the stream from the time of the next one"
        )
    return (milliseconds << _NUMBER_BITS) | number


_BROKER_PATIENCE_S = 10.0
_SENSITIVE = re.compile(r"password|secret|private|\.key", re.IGNORECASE)
_KEPT_SETTINGS = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",  # a position that the broker no longer has must not be passed over in silence
    "isolation.level": "read_committed",
}
"""Settings that decide whether every event comes once; they are not the user's."""
_FETCH_BOUNDS = {"queued.max.messages.kbytes": 16_384, "fetch.wait.max.ms": 20, "fetch.error.backoff.ms": 50}


@dataclass(frozen=True, slots=True)
class KafkaTopic:
    """Topic of a Kafka cluster.

    servers: `host:port,…`. settings: more of librdkafka's by name; a value of `$NAME` is that of the secret `NAME`, as
    passwords must be.
    producer_time: let an event become known at the time that its producer gave the message, where the topic keeps that one
    (`message.timestamp.type=CreateTime`, Kafka's default) and not when the log took it. Such messages are refused otherwise.
    Raises: InvalidDefinition.
    """

    topic: str
    servers: str
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)
    producer_time: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", dict(self.settings))
        if not self.topic or not self.servers:
            raise InvalidDefinition(
                f"KafkaTopic needs a topic and servers, got {self.topic!r}, {self.servers!r}"
            )
        for name, value in self.settings.items():
            if name in _KEPT_SETTINGS or name in {"bootstrap.servers", "group.id"}:
                raise InvalidDefinition(f"KafkaTopic: setting {name!r} is the platform's own; leave it out")
            if _SENSITIVE.search(name) and not str(value).startswith("$"):
                raise InvalidDefinition(
                    f"KafkaTopic: setting {name!r} holds a secret; name it, as in {{{name!r}: '$KAFKA_PASSWORD'}}"
                )

    def describe(self) -> dict[str, Any]:
        """Describe the reader as JSON."""
        return {
            "type": "kafka",
            "topic": self.topic,
            "servers": self.servers,
            "settings": dict(self.settings),
            **({"producer_time": True} if self.producer_time else {}),
        }

    @property
    def secret_names(self) -> tuple[str, ...]:
        """Names of the secrets that a connection needs."""
        return tuple(secrets_in(self.servers, *map(str, self.settings.values())))

    def connect(self, secrets: Secrets) -> Connection:
        """Connect to the cluster by its client. Raises: UnreadableSource if the client is not installed or refuses the settings."""
        settings = {name: revealed(each, secrets) for name, each in self.settings.items()}
        return _KafkaConnection(
            self.topic,
            _FETCH_BOUNDS
            | settings
            | _KEPT_SETTINGS
            | {"bootstrap.servers": revealed(self.servers, secrets), "group.id": "toque"},
            producer_time=self.producer_time,
        )


class _KafkaConnection:
    """Connection to a topic, whose client fetches ahead within bounds."""

    def __init__(self, topic: str, settings: Mapping[str, Any], *, producer_time: bool) -> None:
        try:
            self._kafka: Any = import_module("confluent_kafka")
        except ImportError as error:
            raise UnreadableSource("a Kafka source needs its client: pip install 'toque[kafka]'") from error
        self._topic, self._producer_time = topic, producer_time
        try:
            self._consumer: Any = self._kafka.Consumer(
                dict(settings), logger=logging.getLogger("confluent_kafka")
            )
        except (self._kafka.KafkaException, TypeError) as error:
            raise UnreadableSource(f"Kafka topic {topic!r}: its settings are refused: {error}") from error

    def partitions(self) -> list[int]:
        """List the partitions of the topic."""
        try:
            found = self._consumer.list_topics(self._topic, timeout=_BROKER_PATIENCE_S).topics[self._topic]
        except (self._kafka.KafkaException, KeyError) as error:
            raise self._unreadable("cannot be listed", error) from error
        if found.error is not None:
            raise self._unreadable("cannot be listed", found.error)
        return sorted(found.partitions)

    def assign(self, positions: Mapping[int, int | None]) -> None:
        """Read on from a position in each partition."""
        oldest = self._kafka.OFFSET_BEGINNING
        self._consumer.assign(
            [self._at(each, oldest if at is None else at) for each, at in positions.items()]
        )

    def poll(self, *, timeout_s: float, limit: int) -> Messages:
        """Read messages; those of the log's own (transactions) are passed over, and so positions have gaps."""
        found = Messages()
        for message in self._consumer.consume(limit, timeout_s):
            error = message.error()
            if error is not None:
                if error.retriable() or error.code() in self._passing:
                    _logger.warning("Kafka topic %r: %s; it is tried again", self._topic, error)
                    continue
                raise self._unreadable(f"partition {message.partition()} cannot be read on", error)
            found.add(message.partition(), message.offset(), self._taken_us(message), message.value())
        return found

    def _taken_us(self, message: Any) -> int:
        """Read when the log took a message. Raises: UnreadableSource if the message has another time, or none."""
        kind, at_ms = message.timestamp()
        accepted = {self._kafka.TIMESTAMP_LOG_APPEND_TIME}
        if self._producer_time:
            accepted.add(self._kafka.TIMESTAMP_CREATE_TIME)
        if kind not in accepted:
            has = "its producer's time" if kind == self._kafka.TIMESTAMP_CREATE_TIME else "no time"
            raise UnreadableSource(
                f"Kafka topic {self._topic!r}: the message at {message.offset()} of partition {message.partition()} has {has}, and not "
                "that at which the log took it, from which an event is known; set message.timestamp.type=LogAppendTime of the "
                "topic, or declare KafkaTopic(…, producer_time=True) to let events be known at their producers' times"
            )
        return int(at_ms) * 1000

    @property
    def _passing(self) -> frozenset[int]:
        """Codes of errors after which the client goes on by itself."""
        codes = self._kafka.KafkaError
        return frozenset({codes._TRANSPORT, codes._ALL_BROKERS_DOWN, codes._PARTITION_EOF, codes._RESOLVE})  # noqa: SLF001  # public names of the library

    def lag(self, positions: Mapping[int, int | None]) -> dict[int, int]:
        """Count the messages from each position on."""
        try:
            bounds = {
                each: self._consumer.get_watermark_offsets(self._at(each), timeout=_BROKER_PATIENCE_S)
                for each in positions
            }
        except self._kafka.KafkaException as error:
            raise self._unreadable("does not tell how far it goes", error) from error
        return {
            each: max(0, bounds[each][1] - (bounds[each][0] if at is None else at))
            for each, at in positions.items()
        }

    def position_at(self, partition: int, at: datetime) -> int:
        """Find the first message at or after a time."""
        asked = self._at(partition, -(-epoch_us(at) // 1000))
        try:
            (found,) = self._consumer.offsets_for_times([asked], timeout=_BROKER_PATIENCE_S)
            end = self._consumer.get_watermark_offsets(self._at(partition), timeout=_BROKER_PATIENCE_S)[1]
        except self._kafka.KafkaException as error:
            raise self._unreadable("does not find a time", error) from error
        return int(found.offset if found.offset >= 0 else end)

    def close(self) -> None:
        """End the connection to the cluster."""
        self._consumer.close()

    def _at(self, partition: int, position: int | None = None) -> Any:
        given = () if position is None else (position,)
        return self._kafka.TopicPartition(self._topic, partition, *given)

    def _unreadable(self, what: str, error: Any) -> UnreadableSource:
        codes = self._kafka.KafkaError
        lost = isinstance(error, codes) and error.code() == codes._AUTO_OFFSET_RESET  # noqa: SLF001  # as above
        return (MessagesLost if lost else UnreadableSource)(
            f"Kafka topic {self._topic!r} {what}: {error}; check servers and topic, or replay from a position that it has"
        )


STREAM_READERS: Mapping[str, Callable[..., StreamReader | Any]] = {
    "kafka": KafkaTopic,
    "redis_stream": RedisStream,
}
