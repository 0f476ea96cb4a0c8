"""Streams: logs of events, followed as they come into both stores, each event once."""

from toque.featurestore.definitions.schema_registry import SchemaRegistry
from toque.featurestore.definitions.stream_source import StreamSource
from toque.featurestore.streams.kafka import KafkaTopic
from toque.featurestore.streams.redis_stream import RedisStream
from toque.featurestore.streams.table import StreamTable

__all__ = ["KafkaTopic", "RedisStream", "SchemaRegistry", "StreamSource", "StreamTable"]
