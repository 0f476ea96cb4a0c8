"""Streams: logs of events, followed as they come into both stores, each event once."""

from toque.featurestore.definitions.stream_source import SchemaRegistry, StreamSource
from toque.featurestore.streams.readers import KafkaTopic, RedisStream
from toque.featurestore.streams.table import StreamTable

__all__ = ["KafkaTopic", "RedisStream", "SchemaRegistry", "StreamSource", "StreamTable"]
