"""Opening of Redis clients by url; nothing is sent before a client's first command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster

from toque.clusters.redis_clients.address import FILES, RedisAddress
from toque.clusters.redis_clients.cluster import AsyncClusterClient, ClusterClient, primaries_of
from toque.clusters.redis_clients.errors import InvalidRedisUrl
from toque.clusters.redis_clients.patience import AsyncBoundedRetry, BoundedRetry
from toque.clusters.redis_clients.sentinel import (
    AsyncMasterConnection,
    AsyncSentinels,
    AsyncTlsMasterConnection,
    MasterConnection,
    Sentinels,
    TlsMasterConnection,
)

PATIENCE_S: Final = 10.0
_IDLE_CHECK_S = 15  # a connection that was idle for longer is checked before it is used
_SENTINEL_TIMEOUT_S = 1.0  # a Sentinel that is away costs as much, once a failover


def open_redis(
    url: str, *, timeout_s: float = 5.0, connect_timeout_s: float = 2.0, patience_s: float = PATIENCE_S
) -> Any:
    """Open a client of the Redis at `url`, which threads may share.

    timeout_s: for one answer; connect_timeout_s: for one connection; patience_s: how long a command is tried again while
    Redis is away, loads its data or fails over. Settings in the url go before them. A command may run twice.
    Raises: InvalidRedisUrl; every command raises redis.RedisError.
    """
    address = RedisAddress.of(url)
    patience = float(address.settings.get("patience", patience_s))
    settings = _connection(address, timeout_s, connect_timeout_s)
    if address.kind == "cluster":
        node = redis.cluster.ClusterNode
        return ClusterClient(lambda: [node(host, port) for host, port in address.hosts], patience, **settings)
    settings |= {"db": address.db, "retry": BoundedRetry(patience)}
    if address.kind == "sentinel":
        watch = Sentinels(
            list(address.hosts),
            sentinel_kwargs=_for_sentinels(address, settings) | {"retry": BoundedRetry(0.0)},
        )
        kind = TlsMasterConnection if address.tls else MasterConnection
        return watch.master_for(address.service, connection_class=kind, **settings)
    return redis.Redis(**_of_server(address, settings))


def open_redis_async(
    url: str, *, timeout_s: float = 5.0, connect_timeout_s: float = 2.0, patience_s: float = PATIENCE_S
) -> Any:
    """Open a client of the Redis at `url` for the running event loop, as `open_redis` does.

    Raises: InvalidRedisUrl; every command raises redis.RedisError.
    """
    address = RedisAddress.of(url)
    patience = float(address.settings.get("patience", patience_s))
    settings = _connection(address, timeout_s, connect_timeout_s)
    if address.kind == "cluster":
        node = redis.asyncio.cluster.ClusterNode
        nodes = [node(host, port) for host, port in address.hosts]
        return AsyncClusterClient(patience, startup_nodes=nodes, **settings)
    settings |= {"db": address.db, "retry": AsyncBoundedRetry(patience)}
    if address.kind == "sentinel":
        watch = AsyncSentinels(
            list(address.hosts),
            sentinel_kwargs=_for_sentinels(address, settings) | {"retry": AsyncBoundedRetry(0.0)},
        )
        kind = AsyncTlsMasterConnection if address.tls else AsyncMasterConnection
        return watch.master_for(address.service, connection_class=kind, **settings)
    return redis.asyncio.Redis(**_of_server(address, settings))


def is_cluster(client: Any) -> bool:
    """Whether a client's keys are spread over slots, so that a call's keys must share a hash tag."""
    return isinstance(client, redis.cluster.RedisCluster | redis.asyncio.cluster.RedisCluster)


def primaries(client: Any) -> Sequence[Any]:
    """List the clients of the servers that take writes: of a Cluster one each, else `client` itself."""
    return primaries_of(client) if is_cluster(client) else [client]


def _connection(address: RedisAddress, timeout_s: float, connect_timeout_s: float) -> dict[str, Any]:
    """Settings of every connection: the url's over ours."""
    given = {
        name: value for name, value in address.settings.items() if name not in {"patience", "sentinel_auth"}
    }
    settings = {
        "username": address.username,
        "password": address.password,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "socket_keepalive": True,
        "health_check_interval": _IDLE_CHECK_S,
    }
    if address.tls:
        _check_files(given)
        return settings | {"ssl": True} | given
    if tls := sorted(name for name in given if name.startswith("ssl_")):
        raise InvalidRedisUrl(f"Redis url: {', '.join(tls)} without TLS; begin the url with rediss")
    return settings | given


def _check_files(settings: dict[str, Any]) -> None:
    for name in FILES:
        if (file := settings.get(name)) and not Path(file).is_file():
            raise InvalidRedisUrl(
                f"Redis url: {name}={file!r} is not a file here; name one that each node has"
            )


def _for_sentinels(address: RedisAddress, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of the connections to the Sentinels, which have no databases and are asked with little patience."""
    chosen = {
        name: value for name, value in settings.items() if name not in {"db", "retry", "max_connections"}
    }
    if address.settings.get("sentinel_auth") == "none":
        chosen |= {"username": None, "password": None}
    return chosen | {"socket_timeout": _SENTINEL_TIMEOUT_S, "socket_connect_timeout": _SENTINEL_TIMEOUT_S}


def _of_server(address: RedisAddress, settings: dict[str, Any]) -> dict[str, Any]:
    if address.kind == "socket":
        return settings | {"unix_socket_path": address.path}
    ((host, port),) = address.hosts
    return settings | {"host": host, "port": port}
