"""Opening of Redis clients by url; nothing is sent before a client's first command.

A connection of the library that is lost amid a command goes back to the address it had, so a retry would wait for a
dead master; ours ask the Sentinels again. The library's clients of a Cluster give up after a few tries without a
pause; ours wait for failovers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from redis._parsers import Encoder
from redis.asyncio.cluster import ClusterPubSub
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import ClusterPipeline, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError, SlotNotCoveredError

from toque.clusters.redis_clients.address import FILES, InvalidRedisUrl, RedisAddress
from toque.clusters.redis_clients.patience import AsyncBoundedRetry, BoundedRetry

PATIENCE_S: Final = 10.0
_IDLE_CHECK_S = 15  # a connection that was idle for longer is checked before it is used
_SENTINEL_TIMEOUT_S = 1.0  # a Sentinel that is away costs as much, once a failover
_ATTEMPTS = 2  # with one only, the library would not look for another node
_AWAY: Final = ("cannot be connected", "slots are not covered")  # what the library says where no node answers
# What a script asks for first, to tell a server's client from a Cluster's.
_NEVER_SET: Final = "connection_pool"


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


class Sentinels(redis.sentinel.Sentinel):
    """Sentinels at some hosts, asked in turn."""

    def discover_master(self, service_name: str) -> Any:
        """Ask for the address of the master. Raises: redis.ConnectionError if no Sentinel names one."""
        try:
            return super().discover_master(service_name)
        except redis.sentinel.MasterNotFoundError as error:
            raise redis.sentinel.MasterNotFoundError(_said(self.sentinels, service_name)) from error


class AsyncSentinels(redis.asyncio.sentinel.Sentinel):
    """Sentinels at some hosts, asked in turn on an event loop."""

    async def discover_master(self, service_name: str) -> Any:
        """Ask for the address of the master. Raises: redis.ConnectionError if no Sentinel names one."""
        try:
            return await super().discover_master(service_name)
        except redis.asyncio.sentinel.MasterNotFoundError as error:
            raise redis.asyncio.sentinel.MasterNotFoundError(_said(self.sentinels, service_name)) from error


class MasterConnection(redis.sentinel.SentinelManagedConnection):
    """Connection to the master, wherever it is by now."""

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002  # the library's
        """Send a command, to the present master where the connection was lost."""
        if not self._sock:
            self.connect()
        super().send_packed_command(command, check_health)


class TlsMasterConnection(MasterConnection, redis.sentinel.SentinelManagedSSLConnection):
    """Connection by TLS to the master, wherever it is by now."""


class AsyncMasterConnection(redis.asyncio.sentinel.SentinelManagedConnection):
    """Connection to the master on an event loop."""

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002  # as above
        """Send a command, to the present master where the connection was lost."""
        if not self.is_connected:
            await self.connect()
        await super().send_packed_command(command, check_health)


class AsyncTlsMasterConnection(AsyncMasterConnection, redis.asyncio.sentinel.SentinelManagedSSLConnection):
    """Connection by TLS to the master on an event loop."""


def _said(sentinels: Any, service: str) -> str:
    places = [sentinel.connection_pool.connection_kwargs for sentinel in sentinels]
    hosts = ", ".join(f"{place['host']}:{place['port']}" for place in places)
    return (
        f"no Sentinel at {hosts} names a healthy master {service!r}; check service= in the url, that they run, and "
        "whether they take the password (sentinel_auth=none if they have none)"
    )


class ClusterClient(RedisCluster):
    """Client of a Cluster that discovers the nodes at its first command, not when it is made.

    make_nodes: makes the nodes to ask first, anew at each attempt, as the library changes them.
    """

    def __init__(self, make_nodes: Callable[[], list[Any]], patience_s: float, **connection: Any) -> None:
        self._make_nodes, self._connection = make_nodes, connection
        self._patient = BoundedRetry(patience_s, attempts=_ATTEMPTS)
        self.encoder = Encoder(
            "utf-8", "strict", decode_responses=False
        )  # a script can be made before it is sent
        self._opening = threading.RLock()
        self._opened = False

    def __getattr__(self, name: str) -> Any:
        """Discover the nodes when the first attribute that depends on them is asked for. Raises: RedisError."""
        if name.startswith("__") or name == _NEVER_SET or vars(self).get("_opened", True):
            raise AttributeError(name)
        with self._opening:
            if not self._opened:
                self._patient.call_with_retry(self._open, _nothing)
        return getattr(self, name)

    def _open(self) -> None:
        self._opened = True  # what the constructor asks for and has not set yet is absent
        try:
            super().__init__(startup_nodes=self._make_nodes(), retry=self._patient, **self._connection)
        except BaseException as error:
            self._opened = False
            raise _as_redis_error(error) from error

    def close(self) -> None:
        """Close the connections to all nodes."""
        if vars(self).get("_opened"):
            super().close()

    def _internal_execute_command(self, *args: Any, **options: Any) -> Any:
        run = super()._internal_execute_command
        return _patiently(self._patient, lambda: run(*args, **options))

    def mget_nonatomic(self, keys: Any, *args: Any) -> list[Any]:
        """Read keys of any slots, one round trip a node. Raises: RedisError."""
        read = super().mget_nonatomic
        values: list[Any] = _patiently(self._patient, lambda: read(keys, *args))
        return values

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:
        """Make a pipeline; one that is no transaction is sent again, whole, until every node has answered."""
        made = super().pipeline(transaction, shard_hint)
        if not transaction:
            made.__class__ = _PatientPipeline  # the library's method names its own class
        return made


class _PatientPipeline(ClusterPipeline):
    def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002  # the library's signature
        queued = [(each.args, dict(each.options)) for each in self._execution_strategy.command_queue]

        def run() -> list[Any]:
            self.reset()
            for args, options in queued:
                options.pop("target_nodes", None)  # found anew by the keys, as a failover moves them
                self.execute_command(*args, **options)
            return super(_PatientPipeline, self).execute(raise_on_error)

        answers: list[Any] = _patiently(self.retry, run)
        return answers


class AsyncClusterClient(AsyncRedisCluster):
    """Client of a Cluster for one event loop; discovers the nodes at its first command."""

    def __init__(self, patience_s: float, **connection: Any) -> None:
        self._patient = AsyncBoundedRetry(patience_s, attempts=_ATTEMPTS)
        super().__init__(retry=self._patient, **connection)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command on the node of its keys. Raises: RedisError."""
        return await self._patiently(
            lambda: super(AsyncClusterClient, self).execute_command(*args, **options)
        )

    async def mget_nonatomic(self, keys: Any, *args: Any) -> list[Any]:  # type: ignore[override]  # one annotation serves both
        """Read keys of any slots, one round trip a node. Raises: RedisError."""
        read = super().mget_nonatomic
        values: list[Any] = await self._patiently(lambda: read(keys, *args))
        return values

    def pubsub(self, *args: Any, **options: Any) -> Any:
        """Make a subscription, which discovers the nodes first as every command does."""
        made = super().pubsub(*args, **options)
        made.__class__ = _Subscription  # the library's method names its own class
        return made

    async def discovered(self) -> None:
        """Wait until the nodes are known. Raises: RedisError."""
        await self._patiently(self.initialize)

    async def _patiently(self, do: Callable[[], Any]) -> Any:
        async def attempt() -> Any:
            try:
                return await do()
            except RedisClusterException as error:
                raise _as_redis_error(error) from error

        return await self._patient.call_with_retry(attempt, _nothing_async)


class _Subscription(ClusterPubSub):
    cluster: Any  # an AsyncClusterClient

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        await self.cluster.discovered()
        return await super().execute_command(*args, **options)


def _patiently(retry: Any, do: Callable[[], Any]) -> Any:
    def attempt() -> Any:
        try:
            return do()
        except RedisClusterException as error:
            raise _as_redis_error(error) from error

    return retry.call_with_retry(attempt, _nothing)


def _as_redis_error(error: BaseException) -> BaseException:
    """Convert what the library says where no node answers, which ends with the failover, to an error of Redis's."""
    if isinstance(error, RedisClusterException):
        away = isinstance(error, SlotNotCoveredError) or any(each in str(error) for each in _AWAY)
        return RedisConnectionError(str(error)) if away else RedisError(str(error))
    return error


def _nothing(_: Exception) -> None: ...


async def _nothing_async(_: Exception) -> None: ...


def primaries_of(client: ClusterClient) -> Sequence[Any]:
    """Open a client to each primary of the Cluster."""
    return [client.get_redis_connection(node) for node in client.get_primaries()]
