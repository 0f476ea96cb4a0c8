"""The online store: one packed row a (view, key) in Redis, the newest in, whoever writes and in whatever order.

A write is a script that compares (event, created, content) with what is there, atomically. A read is one MGET for all
views and rows of a request. The layout of keys and values is in `docs/online-store.md`.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import polars as pl
import pyarrow as pa
import redis
import redis.asyncio
from redis.exceptions import RedisError

from featurestore.definitions import (
    FeatureView,
)
from featurestore.encoding import RowLayout, precedence
from featurestore.errors import OnlineStoreUnavailable
from featurestore.fields import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
)
from featurestore.onlinekeys import row_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS_PER_CALL = (
    500  # the script's argument lists stay far below Lua's limit, and a call below two milliseconds
)
CALLS_PER_TRIP = 8

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
    """Packed rows of a project in Redis.

    redis_url: `redis://[:password@]host:port/db`.
    """

    def __init__(self, redis_url: str, project: str) -> None:
        self.project = project
        self._url = redis_url
        parts = urlsplit(redis_url)
        self._where = f"Redis at {parts.hostname}:{parts.port or 6379}"
        self.client = redis.Redis.from_url(redis_url)
        self._script = self.client.register_script(NEWEST_WINS)
        self._async: WeakKeyDictionary[Any, redis.asyncio.Redis] = WeakKeyDictionary()

    def write(self, view: FeatureView, rows: pa.Table) -> int:
        """Bring rows in; of rows of one key the newest stays.

        rows: in the view's offline schema.
        Returns: how many rows replaced what was there.
        Raises: OnlineStoreUnavailable; what was written by then stays, and a rerun completes it.
        """
        newest = newest_rows(view, rows)
        values = RowLayout(view.schema).encode(newest)
        pairs: dict[bytes, bytes] = {}
        for key, value in zip(row_keys(self.project, view, newest), values, strict=True):
            if key not in pairs or precedence(value) > precedence(pairs[key]):
                pairs[key] = value
        return self._put(pairs.items())

    def _put(self, pairs: Iterable[tuple[bytes, bytes]]) -> int:
        won = 0
        remaining = iter(pairs)
        with self.reachable():
            while trip := list(islice(remaining, KEYS_PER_CALL * CALLS_PER_TRIP)):
                pipe = self.client.pipeline(transaction=False)
                for at in range(0, len(trip), KEYS_PER_CALL):
                    part = trip[at : at + KEYS_PER_CALL]
                    self._script(keys=[k for k, _ in part], args=[v for _, v in part], client=pipe)
                won += sum(pipe.execute())
        return won

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The packed rows of some keys, in one round trip.

        Raises: OnlineStoreUnavailable.
        """
        if not keys:
            return []
        with self.reachable():
            values: list[bytes | None] = self.client.execute_command("MGET", *keys)  # type: ignore[no-untyped-call]  # redis-py leaves it so
        return values

    async def read_async(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As `read`, on the running event loop."""
        if not keys:
            return []
        with self.reachable():
            values: list[bytes | None] = await self._loop_client().execute_command("MGET", *keys)  # type: ignore[no-untyped-call]  # likewise
        return values

    def _loop_client(self) -> "redis.asyncio.Redis":
        """A client of its own for each event loop: connections cannot change loops."""
        loop = asyncio.get_running_loop()
        client = self._async.get(loop)
        if client is None:
            client = redis.asyncio.Redis.from_url(self._url)
            self._async[loop] = client
        return client

    async def aclose(self) -> None:
        """Close the running loop's connections."""
        client = self._async.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def close(self) -> None:
        """Close the synchronous connections."""
        self.client.close()

    @contextmanager
    def reachable(self) -> "Iterator[None]":
        """Turn Redis's errors into ours, which say where it should have been."""
        try:
            yield
        except (RedisError, OSError) as error:
            raise OnlineStoreUnavailable(
                f"{self._where}: {error}; start it or check TOQUE_REDIS_URL"
            ) from error


def newest_rows(view: FeatureView, rows: pa.Table) -> pa.Table:
    """The rows with the greatest (event, created) of each key; several a key where both are equal."""
    keys = [key.name for key in view.join_keys]
    frame = pl.from_arrow(rows.select([*keys, EVENT_TIMESTAMP, CREATED_TIMESTAMP]))
    if not isinstance(frame, pl.DataFrame) or rows.num_rows == 0:
        return rows
    positions = frame.with_row_index("row_")
    for time in (EVENT_TIMESTAMP, CREATED_TIMESTAMP):
        newest = pl.col(time).max().over(keys) if keys else pl.col(time).max()
        positions = positions.filter(pl.col(time) == newest)
    return rows.take(positions.get_column("row_").to_arrow())
