"""Streams: logs of events, followed as they come into both stores, each event once."""

from featurestore.definitions.schema_registry import SchemaRegistry
from featurestore.definitions.stream_source import StreamSource
from featurestore.streams.kafka import KafkaTopic
from featurestore.streams.redis_stream import RedisStream
from featurestore.streams.table import StreamTable

__all__ = ["KafkaTopic", "RedisStream", "SchemaRegistry", "StreamSource", "StreamTable"]
