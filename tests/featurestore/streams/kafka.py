"""Kafka brokers of the test's own: librdkafka's mock cluster, which other clients and processes reach by TCP."""

from __future__ import annotations

import ctypes
import json
import random
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import confluent_kafka
from confluent_kafka import Producer

from tests.featurestore.streams.history import MemoryLog
from toque.featurestore import KafkaTopic
from toque.featurestore.definitions.stream_source import Connection
from toque.registry.times import epoch_us

PARTITIONS = 4  # of a topic that the mock cluster makes by itself
BROKERS = 3
_PRODUCER = 0  # RD_KAFKA_PRODUCER


def _library() -> Any:
    """Open the library that confluent_kafka brings, whose mock cluster has more than Python's client shows."""
    (path,) = Path(confluent_kafka.__file__).parents[1].glob("confluent_kafka.libs/librdkafka*")
    found: Any = ctypes.CDLL(str(path))
    found.rd_kafka_new.restype = ctypes.c_void_p
    found.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
    found.rd_kafka_mock_cluster_new.argtypes = [ctypes.c_void_p, ctypes.c_int]
    found.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    found.rd_kafka_mock_cluster_bootstraps.argtypes = [ctypes.c_void_p]
    return found


class Broker:
    """Brokers with topics of four partitions, each led by one of them; they live as long as this process."""

    def __init__(self) -> None:
        self._library = _library()
        text = ctypes.create_string_buffer(512)
        handle = self._library.rd_kafka_new(_PRODUCER, None, text, ctypes.sizeof(text))
        assert handle, text.value
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(handle, BROKERS))
        self.servers = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self._producer = Producer({"bootstrap.servers": self.servers, "log_level": 0, "linger.ms": 0})

    def send(self, topic: str, events: Iterable[dict[str, Any] | bytes], *, partition: int = 0) -> None:
        """Send events, dicts as JSON, and wait until a broker has them."""
        for each in events:
            value = each if isinstance(each, bytes) else json.dumps(each, default=str).encode()
            self._producer.produce(topic, value=value, partition=partition)
        assert self._producer.flush(20) == 0

    def send_at(self, topic: str, value: bytes, *, partition: int, at: datetime) -> None:
        """Send a message as of a time, in whole milliseconds, and wait until a broker has it."""
        taken_ms = epoch_us(at) // 1000
        self._producer.produce(topic, value=value, partition=partition, timestamp=taken_ms)
        assert self._producer.flush(20) == 0

    def create(self, topic: str) -> None:
        """Create a topic of which every broker has all partitions."""
        given = self._cluster, topic.encode(), PARTITIONS, BROKERS
        assert self._library.rd_kafka_mock_topic_create(*given) == 0

    def lead(self, topic: str, partition: int, broker: int) -> None:
        """Move a partition to a broker, from 1 on."""
        given = self._cluster, topic.encode(), ctypes.c_int32(partition), ctypes.c_int32(broker)
        assert self._library.rd_kafka_mock_partition_set_leader(*given) == 0

    def cut_off(self, topic: str, partition: int, before: int) -> None:
        """Delete the messages before a position, as retention does."""
        given = self._cluster, topic.encode(), ctypes.c_int32(partition), ctypes.c_int64(before)
        assert self._library.rd_kafka_mock_partition_delete_records(*given) == 0

    def set_up(self, broker: int, *, up: bool) -> None:
        """Take a broker down, so that its connections break, or up again."""
        change = (
            self._library.rd_kafka_mock_broker_set_up if up else self._library.rd_kafka_mock_broker_set_down
        )
        assert change(self._cluster, ctypes.c_int32(broker)) == 0


class KafkaLog(MemoryLog):
    """Topic of a broker, which remembers what it was sent."""

    patience_s = 0.05

    def __init__(self, broker: Broker, topic: str) -> None:
        super().__init__(PARTITIONS)
        self.broker, self.topic = broker, topic
        self.reads = KafkaTopic(
            topic, broker.servers, producer_time=True
        )  # the mock cluster takes what producers give
        broker.create(topic)

    def send(self, partition: int, value: bytes, *, at: datetime) -> None:
        at -= timedelta(microseconds=at.microsecond % 1000)  # Kafka's times are whole milliseconds
        super().send(partition, value, at=at)
        self.broker.send_at(self.topic, value, partition=partition, at=at)

    def connect(self) -> Connection:
        return self.reads.connect(str)

    def disturb(self, chance: random.Random) -> None:
        """Move a partition to another broker now and then."""
        if chance.random() < 0.2:
            self.broker.lead(self.topic, chance.randrange(PARTITIONS), chance.randrange(1, BROKERS + 1))
