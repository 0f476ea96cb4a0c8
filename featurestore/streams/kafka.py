"""Reader of a Kafka topic, by positions that the platform keeps itself; there is no consumer group that could lose them.

Needs `pip install 'toque[kafka]'`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from typing import Any

from toque.featurestore.definitions.batch_source import Secrets
from toque.featurestore.definitions.stream_source import Connection, Messages
from toque.featurestore.errors import InvalidDefinition, MessagesLost, UnreadableSource
from toque.registry.times import epoch_us

_PATIENCE_S = 10.0
_SENSITIVE = re.compile(r"password|secret|private|\.key", re.IGNORECASE)
_KEPT = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",  # a position that the broker no longer has must not be passed over in silence
    "isolation.level": "read_committed",
}
"""Settings that decide whether every event comes once; they are not the user's."""
_BOUNDS = {"queued.max.messages.kbytes": 16_384, "fetch.wait.max.ms": 20, "fetch.error.backoff.ms": 50}
_logger = logging.getLogger(__name__)


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
            if name in _KEPT or name in {"bootstrap.servers", "group.id"}:
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
        given = [self.servers, *self.settings.values()]
        return tuple(value[1:] for value in map(str, given) if value.startswith("$"))

    def connect(self, secrets: Secrets) -> Connection:
        """Connect to the cluster by its client. Raises: UnreadableSource if the client is not installed or refuses the settings."""

        def value(given: str) -> str:
            return secrets(given[1:]) if str(given).startswith("$") else given

        settings = {name: value(each) for name, each in self.settings.items()}
        return _KafkaConnection(
            self.topic,
            _BOUNDS | settings | _KEPT | {"bootstrap.servers": value(self.servers), "group.id": "toque"},
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
            found = self._consumer.list_topics(self._topic, timeout=_PATIENCE_S).topics[self._topic]
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
                each: self._consumer.get_watermark_offsets(self._at(each), timeout=_PATIENCE_S)
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
            (found,) = self._consumer.offsets_for_times([asked], timeout=_PATIENCE_S)
            end = self._consumer.get_watermark_offsets(self._at(partition), timeout=_PATIENCE_S)[1]
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
