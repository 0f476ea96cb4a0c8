"""The online store: the newest row of each view and key in Redis, under any order of concurrent writers.

A write is a script that compares (event, created, content) with the stored row, atomically. A read is one MGET for all
views and rows of a request. The layout of keys and values is in `docs/online-store.md`.
"""

import asyncio
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import polars as pl
import pyarrow as pa
from redis.exceptions import NoScriptError, RedisError

from toque.clusters.redis_clients import RedisAddress, open_redis, open_redis_async
from toque.featurestore.definitions.encoding import RowLayout, precedence
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import OnlineStoreUnavailable
from toque.featurestore.online.coalesced_reads import CoalescedReads
from toque.featurestore.online.connections import ConnectionCache
from toque.featurestore.online.keys import prefix, row_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

# The script's argument lists stay far below Lua's limit, and a call below two milliseconds.
KEYS_PER_CALL = 500
CALLS_PER_TRIP = 16
FEW = 500  # up to so many rows a dictionary finds the newest faster than a query
READ_PATIENCE_S = 2.0  # while serving: then the request is answered without the features
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

    def _delete_others(self, view: FeatureView, kept: "np.ndarray[Any, np.dtype[np.int64]]") -> int:
        """Delete the rows of a view whose keys have none of these hashes, which are sorted; returns how many."""
        keys, deleted = self._keys_of(view), 0
        while batch := list(islice(keys, KEYS_PER_CALL * CALLS_PER_TRIP)):
            hashes = np.fromiter(map(hash, batch), np.int64, len(batch))
            same = np.searchsorted(kept, hashes, side="right") > np.searchsorted(kept, hashes, side="left")
            deleted += sum(int(self.client.delete(batch[at])) for at in np.flatnonzero(~same))
        return deleted

    def _keys_of(self, view: FeatureView) -> "Iterator[bytes]":
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
    def reachable(self) -> "Iterator[None]":
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
