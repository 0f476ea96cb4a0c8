"""Redis streams between the writers and the tables: one entry holds a chunk of a writer's frames.

Each writer has a stream `toque:{workspace/writer}:kind`, whose entry ids are `last record number-0`, and a hash beside
it, `…:state`, with the last record number in the stream (`shipped`) and in the table (`drained`), the writer's node, and
what it reported at its last sign of life. The braces are literal: both keys lie in one slot of a Redis Cluster, and the
writers are spread over all slots. The set `toque:{workspace}:kind:writers` names them.

A chunk is accepted only if it continues what Redis has, so a re-send is harmless, and after Redis lost its newest second the
writer learns it and sends that second again. `toque:{workspace}:kind:rotation` counts requests to drop what the files
hold; `rotated` in a writer's state is the last one that it has met.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError

from toque.clusters.redis_clients import is_cluster
from toque.functions.prediction_log.errors import PredictionLogError
from toque.functions.prediction_log.frames import Frame, read_frames
from toque.registry.access import DEFAULT_WORKSPACE
from toque.registry.errors import NewerFormat

__all__ = ["Accepted", "Stream", "WriterState", "entries_of"]

_READ_ENTRIES, _READ_BYTES = 16, 1 << 20
_ALIVE = """
local now = redis.call('TIME')
redis.call('HSET', KEYS[2], 'node', ARGV[1], 'reserved', ARGV[2], 'alive_ms', now[1] * 1000 + math.floor(now[2] / 1000))
local last = redis.call('HGET', KEYS[2], 'shipped') or redis.call('HGET', KEYS[2], 'drained') or '0'
"""
_APPEND = f"""{_ALIVE}
if last ~= ARGV[3] then return {{0, last}} end
redis.call('XADD', KEYS[1], ARGV[4] .. '-0', 'frames', ARGV[5])
redis.call('HSET', KEYS[2], 'shipped', ARGV[4])
return {{1, ARGV[4]}}
"""
_SEEN = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local since = redis.call('HGET', KEYS[1], 'since')
if not since or now - redis.call('HGET', KEYS[1], 'seen') > tonumber(ARGV[1]) then since = now end
redis.call('HSET', KEYS[1], 'since', since, 'seen', now)
return {now, tonumber(since)}
"""
_DRAINED = """
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local there = tonumber(redis.call('HGET', KEYS[2], 'drained') or '0')
if tonumber(ARGV[1]) > there then redis.call('HSET', KEYS[2], 'drained', ARGV[1]) end
redis.call('XTRIM', KEYS[1], 'MINID', ARGV[2] .. '-0')
return 1
"""


class Accepted(NamedTuple):
    """Answer of Redis to a chunk: whether it was added, the last record that Redis has, and how many replicas have it."""

    added: bool
    last: int
    replicas: int = 0


class WriterState(NamedTuple):
    """What Redis knows of a writer.

    shipped, drained: its last record in the stream and in the table. reserved: the last record that it may have answered
    by its next sign of life. alive_ms: its last sign of life, by Redis's clock; 0: none. lost_ms: when it was written off;
    0: it was not. damaged: records that could not be read back from a dead writer's files; damaged_told: of them, reported.
    """

    writer: str
    node: str
    shipped: int
    drained: int
    reserved: int
    rotated: int
    alive_ms: int
    lost_ms: int
    damaged: int = 0
    damaged_told: int = 0


_NUMBERS = ("shipped", "drained", "reserved", "rotated", "alive_ms", "lost_ms", "damaged", "damaged_told")


class Stream:
    """Streams of one kind of record, "predictions" or "labels".

    client: a client that returns bytes. workspace: whose records they are.
    """

    def __init__(self, client: Any, kind: str, *, workspace: str = DEFAULT_WORKSPACE) -> None:
        self.kind, self.workspace, self.client = kind, workspace, client
        base = f"toque:{{{workspace}}}:{kind}"
        self._writers, self._rotation, self._watch = f"{base}:writers", f"{base}:rotation", f"{base}:watch"
        self._append = client.register_script(_APPEND)
        self._alive = client.register_script(f"{_ALIVE}\nreturn last")
        self._see = client.register_script(_SEEN)
        self._mark = client.register_script(_DRAINED)

    def key(self, writer: str) -> str:
        """Return the key of a writer's stream."""
        return f"toque:{{{self.workspace}/{writer}}}:{self.kind}"

    def server_of(self, key: str) -> Any:
        """Return a client of the server that holds a key: of a Cluster, one node."""
        if not is_cluster(self.client):
            return self.client
        return self.client.get_redis_connection(self.client.get_node_from_key(key))

    def _keys(self, writer: str) -> list[str]:
        key = self.key(writer)
        return [key, f"{key}:state"]

    def append(
        self,
        writer: str,
        frames: bytes,
        *,
        after: int,
        last: int,
        node: str = "",
        reserved: int = 0,
        replica_wait_s: float = 0.0,
    ) -> Accepted:
        """Add a chunk that ends at record `last`, provided that Redis has exactly up to `after`.

        The writer must have been announced by `report_alive`. node, reserved: as there. replica_wait_s: how long to wait
        for a replica of Redis to have the chunk; 0: not at all.
        """
        keys = self._keys(writer)
        args: list[str | int | bytes] = [node, max(last, reserved), after, last, frames]
        if not replica_wait_s:
            added, there = self._append(keys=keys, args=args)
            return Accepted(bool(added), int(there))
        (added, there), replicas = self._append_and_wait(keys, args, replica_wait_s)
        return Accepted(bool(added), int(there), int(replicas))

    def _append_and_wait(self, keys: list[str], args: list[str | int | bytes], wait_s: float) -> Any:
        """Append, and wait for a replica to have it, on one connection: WAIT is about what it has written."""
        server = self.server_of(keys[0])
        pipe = server.pipeline(transaction=False)
        pipe.evalsha(self._append.sha, len(keys), *keys, *args)
        pipe.wait(1, int(wait_s * 1e3))
        try:
            return pipe.execute()
        except NoScriptError:
            server.script_load(_APPEND)
            return self._append_and_wait(keys, args, wait_s)

    def report_alive(self, writer: str, *, node: str, reserved: int) -> int:
        """Announce a writer, or that it still lives; returns the last of its records that Redis has.

        reserved: the last record that it may have answered by its next sign of life.
        """
        self.client.sadd(self._writers, writer)
        answer: Any = self._alive(keys=self._keys(writer), args=[node, reserved])
        return int(answer)

    def shipped(self, writer: str) -> int:
        """Return the last record number of a writer that was added to the stream."""
        state = self.state(writer)
        return state.shipped or state.drained

    def drained(self, writer: str) -> int:
        """Return the last record number of a writer that is in its table."""
        return self.state(writer).drained

    def state(self, writer: str) -> WriterState:
        """Return what is known of a writer; zeros if nothing is."""
        return self._states([writer])[0]

    def states(self) -> list[WriterState]:
        """List what is known of every writer, dead or alive."""
        names: Any = self.client.smembers(self._writers)
        return self._states(sorted(name.decode() for name in names))

    def _states(self, writers: list[str]) -> list[WriterState]:
        pipe = self.client.pipeline(transaction=False)
        for writer in writers:
            pipe.hmget(self._keys(writer)[1], "node", *_NUMBERS)
        return [
            WriterState(writer, (node or b"").decode(), *(int(number or 0) for number in numbers))
            for writer, (node, *numbers) in zip(writers, pipe.execute(), strict=True)
        ]

    def writers(self) -> list[str]:
        """List the writers with records in Redis that are not drained yet."""
        return [state.writer for state in self.states() if state.shipped > state.drained]

    def read(self, writer: str, *, max_bytes: int = 16 << 20) -> Iterator[Frame]:
        """Read the oldest records of a writer, in order, about `max_bytes` of them.

        Raises: PredictionLogError if an entry is damaged; NewerFormat if a newer release wrote it.
        """
        return entries_of(self.client, self.key(writer), max_bytes)

    def mark_drained(self, writer: str, last: int) -> None:
        """Mark a writer's records up to `last` as drained, and drop them from the stream."""
        self._mark(keys=self._keys(writer), args=[last, last + 1])

    def request_rotation(self) -> int:
        """Ask every writer to drop the records it has by now, once they are drained; returns the request's number."""
        number: Any = self.client.incr(self._rotation)
        return int(number)

    def rotation(self) -> int:
        """Return the number of the newest request, 0 before the first."""
        found: Any = self.client.get(self._rotation)
        return int(found or 0)

    def mark_rotated(self, writer: str, number: int) -> None:
        """Record that a writer's files hold no record from before a request."""
        self.client.hset(self._keys(writer)[1], "rotated", str(number))

    def not_rotated(self, number: int) -> list[str]:
        """List the writers, dead or alive, whose files may still hold records from before a request."""
        return [state.writer for state in self.states() if state.shipped and state.rotated < number]

    def forget(self, writer: str) -> None:
        """Remove the keys of a dead writer whose records are all in the table."""
        self.client.delete(*self._keys(writer))
        self.client.srem(self._writers, writer)

    def watched_ms(self, *, patience_s: float) -> tuple[int, int]:
        """Note that this kind is being watched; returns Redis's time, and for how long it was watched until now.

        A gap of `patience_s` between two calls, as when Redis was away, begins the watch anew.
        """
        now, since = self._see(keys=[self._watch], args=[int(patience_s * 1e3)])
        return int(now), int(now) - int(since)

    def mark_damaged(self, writer: str, records: int, *, told: int) -> None:
        """Record how many records of a dead writer are damaged, and how many of them were reported."""
        self.client.hset(self._keys(writer)[1], mapping={"damaged": str(records), "damaged_told": str(told)})

    def mark_lost(self, writer: str, at_ms: int) -> None:
        """Record when a writer was written off; 0: it is back."""
        self.client.hset(self._keys(writer)[1], "lost_ms", str(at_ms))


def entries_of(client: Any, key: str, max_bytes: int) -> Iterator[Frame]:
    """Read the oldest records of a stream, in order, about `max_bytes` of them.

    Raises: PredictionLogError if an entry is damaged; NewerFormat if a newer release wrote it.
    """
    after, size, count = b"-", 0, _READ_ENTRIES
    while size < max_bytes:
        entries: Any = client.xrange(key, min=after, count=count)
        read = 0
        for entry, fields in entries:
            if b"frames" not in fields:
                raise NewerFormat(f"{key}: an entry", sorted(fields), "frames")
            yield from _checked(fields[b"frames"], key)
            after, read = b"(" + entry, read + len(fields[b"frames"])
        if len(entries) < count:
            return
        size += read
        room = min(_READ_BYTES, max_bytes - size)
        count = max(_READ_ENTRIES, min(4 * count, room * count // max(1, read)))


def _checked(frames: bytes, key: str) -> Iterator[Frame]:
    end = 0
    for frame in read_frames(frames):
        end = frame.end
        yield frame
    if end != len(frames):
        raise PredictionLogError(
            f"{key}: an entry is damaged at byte {end} of {len(frames)}; look at the disk"
        )
