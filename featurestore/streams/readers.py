"""Readers of streams by the type that their description names."""

from collections.abc import Callable, Mapping
from typing import Any

from toque.featurestore.definitions.stream_source import StreamReader
from toque.featurestore.streams.kafka import KafkaTopic
from toque.featurestore.streams.redis_stream import RedisStream

STREAM_READERS: Mapping[str, Callable[..., StreamReader | Any]] = {
    "kafka": KafkaTopic,
    "redis_stream": RedisStream,
}
