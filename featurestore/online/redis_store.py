"""The online store: the newest row of each view and key in Redis, under any order of concurrent writers.

A write is a script that compares (event, created, content) with the stored row, atomically. A read is one MGET for
all views and rows of a request. The layout of keys and values is in `docs/online-store.md`.

A read costs an event loop some fifty microseconds in redis-py, for four keys as for sixty: reads that arrive during a
read go together in the next one. A single read goes at once, so none waits for others to arrive.
"""

from __future__ import annotations

import asyncio
import json
import os
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import polars as pl
import pyarrow as pa
from redis.exceptions import NoScriptError, RedisError

from toque.clusters.redis_clients import TRANSIENT, RedisAddress, open_redis, open_redis_async
from toque.featurestore.definitions.encoding import RowLayout, precedence
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import OnlineStoreUnavailable
from toque.featurestore.online.keys import prefix, row_keys

Key = tuple[Any, ...]
Values = list[bytes | None]

# The script's argument lists stay far below Lua's limit, and a call below two milliseconds.
KEYS_PER_CALL = 500
CALLS_PER_TRIP = 16
FEW = 500  # up to so many rows a dictionary finds the newest faster than a query
READ_PATIENCE_S = 2.0  # while serving: then the request is answered without the features
KEYS_AT_ONCE = 4_096  # more keys are left for the next read: a few milliseconds of Redis each
_UNREACHABLE = (RedisError, OSError)

NEWEST_WINS = """
local function newer(a, b)
  if a == b then return false end
  if #b < 21 then return true end
  local a_event, a_created = struct.unpack('<i8i8', a, 6)
  local b_event, b_created = struct.unpack('<i8i8', b, 6)
  if a_event ~= b_event then return a_event > b_event end
  if a_created ~= b_created then return a_created > b_created end
  for i = 22, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x > y end
  end
  return #a > #b
end
local there = redis.call('MGET', unpack(KEYS))
local winners, n = {}, 0
for i = 1, #KEYS do
  if not there[i] or newer(ARGV[i], there[i]) then
    n = n + 1
    winners[2 * n - 1], winners[2 * n] = KEYS[i], ARGV[i]
  end
end
if n > 0 then redis.call('MSET', unpack(winners)) end
return n
"""


class OnlineStore:
    """Online store with the packed rows of a project in Redis.

    redis_url: of a server, Sentinels or a Cluster; see `toque.clusters.redis_clients.RedisAddress`.
    Raises: InvalidRedisUrl.
    """

    def __init__(self, redis_url: str, project: str) -> None:
        self.project = project
        address = RedisAddress.of(redis_url)
        self._where, self._clustered = f"Redis at {address.where}", address.kind == "cluster"
        self._url = redis_url
        self._async: WeakKeyDictionary[Any, tuple[Any, CoalescedReads]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """Pickle for a worker: the address, without connections."""
        return type(self), (self._url, self.project)

    @cached_property
    def client(self) -> Any:
        """Synchronous Redis client, which connects at its first command."""
        return open_redis(self._url)

    @cached_property
    def _connections(self) -> ConnectionCache:
        return ConnectionCache(self.client)

    @cached_property
    def _script(self) -> Any:
        return self.client.register_script(NEWEST_WINS)

    def write(self, view: FeatureView, rows: pa.Table) -> int:
        """Write rows online; of rows of one key the newest stays.

        rows: in the view's offline schema.
        Returns: how many rows were new or newer than the stored ones.
        Raises: OnlineStoreUnavailable; rows written before it stay, and a rerun completes the rest.
        """
        return self.write_newest(view, newest_rows(view, rows) if rows.num_rows > FEW else rows)

    def write_newest(self, view: FeatureView, newest: pa.Table) -> int:
        """Write rows of which nearly all are the newest of their key here; returns and raises as `write`."""
        values = RowLayout(view.schema).encode(newest)
        pairs: dict[bytes, bytes] = {}
        for key, value in zip(row_keys(self.project, view, newest), values, strict=True):
            if key not in pairs or precedence(value) > precedence(pairs[key]):
                pairs[key] = value
        return self._put(pairs.items())

    def replace(self, view: FeatureView, pieces: Iterable[pa.Table]) -> tuple[int, int]:
        """Put the newest of some rows in place of whatever a view has online, and delete the rows of other keys.

        pieces: of the rows in the view's offline schema, each with all rows of its keys. For rows that were computed anew: `write`
        would keep the old one of two with the same times. Rows that others write meanwhile may be overwritten: have them written again.
        Returns: how many were put, and how many were deleted.
        Raises: OnlineStoreUnavailable; a rerun completes the rest.
        """
        kept = array("q")  # hashes, since the keys of all rows may be more than memory holds
        for rows in pieces:
            newest = newest_rows(view, rows)
            values = RowLayout(view.schema).encode(newest)
            pairs = dict(zip(row_keys(self.project, view, newest), values, strict=True))
            with self.reachable():
                self._set(pairs)
            kept.extend(map(hash, pairs))
        with self.reachable():
            return len(kept), self._delete_others(view, np.sort(np.array(kept, dtype=np.int64)))

    def _set(self, pairs: Mapping[bytes, bytes]) -> None:
        remaining = iter(pairs.items())
        while batch := list(islice(remaining, KEYS_PER_CALL * CALLS_PER_TRIP)):
            pipe = self.client.pipeline() if self._clustered else self.client.pipeline(transaction=False)
            for key, value in batch:
                pipe.set(key, value)
            pipe.execute()

    def _delete_others(self, view: FeatureView, kept: np.ndarray[Any, np.dtype[np.int64]]) -> int:
        """Delete the rows of a view whose keys have none of these hashes, which are sorted; returns how many."""
        keys, deleted = self._keys_of(view), 0
        while batch := list(islice(keys, KEYS_PER_CALL * CALLS_PER_TRIP)):
            hashes = np.fromiter(map(hash, batch), np.int64, len(batch))
            same = np.searchsorted(kept, hashes, side="right") > np.searchsorted(kept, hashes, side="left")
            deleted += sum(int(self.client.delete(batch[at])) for at in np.flatnonzero(~same))
        return deleted

    def _keys_of(self, view: FeatureView) -> Iterator[bytes]:
        start = prefix(self.project, view.stored_as)
        pattern = "".join(f"\\{each}" if each in "*?[]\\" else each for each in start)
        yield from self.client.scan_iter(match=f"{pattern}*", count=1_000)

    def _put(self, pairs: Iterable[tuple[bytes, bytes]]) -> int:
        won = 0
        remaining = iter(pairs)
        with self.reachable():
            while batch := list(islice(remaining, KEYS_PER_CALL * CALLS_PER_TRIP)):
                won += self._write_batch_to_cluster(batch) if self._clustered else self._write_batch(batch)
        return won

    def _write_batch(self, pairs: Sequence[tuple[bytes, bytes]]) -> int:
        if len(pairs) <= KEYS_PER_CALL:
            return int(self._script(keys=[k for k, _ in pairs], args=[v for _, v in pairs]))
        pipe = self.client.pipeline(transaction=False)
        for at in range(0, len(pairs), KEYS_PER_CALL):
            part = pairs[at : at + KEYS_PER_CALL]
            pipe.evalsha(self._script.sha, len(part), *(k for k, _ in part), *(v for _, v in part))
        try:
            return sum(pipe.execute())
        except NoScriptError:  # asked for first only now: most times the server knows it
            self._script.sha = self.client.script_load(NEWEST_WINS)
            return self._write_batch(pairs)

    def _write_batch_to_cluster(self, pairs: Sequence[tuple[bytes, bytes]]) -> int:
        """Write with one script call a row, since a script's keys must be in one slot; one round trip a node."""
        pipe = self.client.pipeline()
        for key, value in pairs:
            pipe.execute_command(
                "EVAL", NEWEST_WINS, 1, key, value
            )  # the cluster client cannot pipeline calls by digest
        return sum(pipe.execute())

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read the packed rows of some keys in one round trip (in a cluster, one to each node).

        Raises: OnlineStoreUnavailable.
        """
        if not keys:
            return []
        values: list[bytes | None]
        try:  # inline, since `reachable` costs a microsecond
            values = (
                self.client.mget_nonatomic(*keys)
                if self._clustered
                else self._connections.call("MGET", *keys)
            )
        except _UNREACHABLE as error:
            raise self._unavailable(error) from error
        return values

    async def read_async(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read as `read` does, on the running event loop, coalesced with its other reads."""
        if not keys:
            return []
        with self.reachable():
            return await self._loop_reads().read(keys)

    def _loop_reads(self) -> CoalescedReads:
        """Coalesced reads of the running loop, with a client of its own, as connections cannot change loops."""
        loop = asyncio.get_running_loop()
        if loop not in self._async:
            client = open_redis_async(self._url, patience_s=READ_PATIENCE_S)
            ask = client.mget_nonatomic if self._clustered else partial(client.execute_command, "MGET")
            self._async[loop] = client, CoalescedReads(lambda keys: ask(*keys))
        return self._async[loop][1]

    async def aclose(self) -> None:
        """Close the connections of the running loop."""
        client, _ = self._async.pop(asyncio.get_running_loop(), (None, None))
        if client is not None:
            await client.aclose()

    def close(self) -> None:
        """Close the connections of the synchronous client."""
        if "client" in vars(self):
            self.client.close()

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Translate Redis errors to OnlineStoreUnavailable, which names the address."""
        try:
            yield
        except _UNREACHABLE as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> OnlineStoreUnavailable:
        return OnlineStoreUnavailable(f"{self._where}: {error}; start it or check TOQUE_REDIS_URL")


def newest_rows(view: FeatureView, rows: pa.Table) -> pa.Table:
    """Select the rows with the greatest (event, created) of each key; several a key where both are equal."""
    keys = [key.name for key in view.join_keys]
    frame = pl.from_arrow(rows.select([*keys, EVENT_TIMESTAMP, CREATED_TIMESTAMP]))
    if not isinstance(frame, pl.DataFrame) or rows.num_rows == 0:
        return rows
    positions = frame.with_row_index("row_")
    for time in (EVENT_TIMESTAMP, CREATED_TIMESTAMP):
        newest = pl.col(time).max().over(keys) if keys else pl.col(time).max()
        positions = positions.filter(pl.col(time) == newest)
    return rows.take(positions.get_column("row_").to_arrow())


class CoalescedReads:
    """Coalesces reads through one asynchronous client; belongs to one event loop.

    fetch: reads the values of keys, None where absent, in their order.
    """

    def __init__(self, fetch: Callable[[Sequence[bytes]], Awaitable[Values]]) -> None:
        self._fetch = fetch
        self._waiting: deque[tuple[Sequence[bytes], asyncio.Future[Values]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def read(self, keys: Sequence[bytes]) -> Values:
        """Read the values of some keys. Raises: what `fetch` raises, for all reads of the batch."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Values] = loop.create_future()
        self._waiting.append((keys, answer))
        if self._task is None:
            self._task = loop.create_task(self._drain())
        return await answer

    async def _drain(self) -> None:
        try:
            while batch := self._next_batch():
                await self._read_batch(batch)
        finally:
            self._task = None

    def _next_batch(self) -> list[tuple[Sequence[bytes], asyncio.Future[Values]]]:
        """Take the oldest reads that are still awaited, up to the limit of keys."""
        batch: list[tuple[Sequence[bytes], asyncio.Future[Values]]] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0][0]) <= KEYS_AT_ONCE):
            keys, answer = self._waiting.popleft()
            if not answer.done():
                batch.append((keys, answer))
                size += len(keys)
        return batch

    async def _read_batch(self, batch: Sequence[tuple[Sequence[bytes], asyncio.Future[Values]]]) -> None:
        try:
            values = await self._fetch([key for keys, _ in batch for key in keys])
        except Exception as error:  # noqa: BLE001 - every error goes to the readers
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        at = 0
        for keys, answer in batch:
            if not answer.done():
                answer.set_result(values[at : at + len(keys)])
            at += len(keys)


class ConnectionCache:
    """Cache of idle connections, as many as threads that read at one time; taking one from the pool costs a third of a read.

    It skips the client's own work (checking the socket, metrics, retries). Where a cached connection turns out to be broken,
    the command runs again through the client.

    client: of one server; closing it closes them too, and the next call reopens them.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._pool = client.connection_pool
        self._idle: list[Any] = []

    def call(self, *command: Any) -> Any:
        """Run a command and return the undecoded answer.

        command: must only read.
        Raises: RedisError.
        """
        connection = self._acquire()
        try:
            connection.send_command(*command)
            answer = connection.read_response(disable_decoding=True)
        except TRANSIENT:  # closed since the last call, or the server is gone or loads its data
            self._pool.release(connection)
            return self._client.execute_command(*command)
        except BaseException:  # an answer may be half read
            connection.disconnect()
            self._pool.release(connection)
            raise
        self._idle.append(connection)
        return answer

    def _acquire(self) -> Any:
        """Take a connection of this process that no other thread uses."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._pool.get_connection()
            if connection.pid == os.getpid():  # otherwise inherited through a fork
                return connection


MOST_KEYS = 10_000
_RECENT_FIELD = b"k"
_RECENT_FIRST = "0-0"
_RECENT_AT_ONCE = 1_000


class RecentKeys:
    """Stream of bounded length of the keys of a view that were pushed online lately, in the order of their arrival.

    A key is added before its row is written, so that a kill in between leaves a key whose row has nothing new.
    """

    def __init__(self, online: OnlineStore, view: FeatureView) -> None:
        self._online = online
        self._names = [key.name for key in view.join_keys]
        self._stream = f"toque-recent:{{{online.project}:{view.stored_as}}}"

    def add(self, rows: pa.Table) -> None:
        """Add the keys of rows that are about to be written. Raises: OnlineStoreUnavailable."""
        self.add_keys(tuple(row.values()) for row in rows.select(self._names).to_pylist())

    def add_keys(self, keys: Iterable[Key]) -> None:
        """Add keys in their order. Raises: OnlineStoreUnavailable."""
        with self._online.reachable():
            pipe = self._online.client.pipeline(transaction=False)
            for number, key in enumerate(dict.fromkeys(keys), start=1):
                pipe.xadd(self._stream, {_RECENT_FIELD: json.dumps(key)}, maxlen=MOST_KEYS, approximate=True)
                if number % _RECENT_AT_ONCE == 0:
                    pipe.execute()
            pipe.execute()

    def after(self, position: str = _RECENT_FIRST) -> tuple[list[Key], str]:
        """Read the keys that were added after a position, each once, and the position after them.

        Raises: OnlineStoreUnavailable.
        """
        with self._online.reachable():
            found: Sequence[tuple[bytes, dict[bytes, bytes]]] = self._online.client.xrange(
                self._stream, min=f"({position}"
            )
        keys = dict.fromkeys(tuple(json.loads(fields[_RECENT_FIELD])) for _, fields in found)
        return list(keys), found[-1][0].decode() if found else position

    def forget(self, position: str) -> None:
        """Drop the keys up to a position. Raises: OnlineStoreUnavailable."""
        milliseconds, _, number = position.partition("-")
        with self._online.reachable():
            self._online.client.xtrim(
                self._stream, minid=f"{milliseconds}-{int(number) + 1}", approximate=False
            )
