"""Clients of Redis, opened from one url: a server, Sentinel or a Cluster, with TLS and users.

It knows addresses, connections and how long to wait for a failover. It must not know keys, features or functions.
"""

from toque.clusters.redis_clients.address import InvalidRedisUrl, RedisAddress, redis_url_of
from toque.clusters.redis_clients.clients import is_cluster, open_redis, open_redis_async, primaries
from toque.clusters.redis_clients.patience import TRANSIENT

__all__ = [
    "TRANSIENT",
    "InvalidRedisUrl",
    "RedisAddress",
    "is_cluster",
    "open_redis",
    "open_redis_async",
    "primaries",
    "redis_url_of",
]
