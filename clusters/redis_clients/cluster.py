"""Clients of a Redis Cluster that wait for failovers; the library's own give up after a few tries without a pause."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis._parsers import Encoder
from redis.asyncio.cluster import ClusterPubSub
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import ClusterPipeline, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError, SlotNotCoveredError

from toque.clusters.redis_clients.patience import AsyncBoundedRetry, BoundedRetry

_ATTEMPTS = 2  # with one only, the library would not look for another node
_AWAY: Final = ("cannot be connected", "slots are not covered")
_NEVER_SET: Final = (
    "connection_pool"  # what a script asks for first, to tell a server's client from a Cluster's
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
