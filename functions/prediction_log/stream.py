"""Redis stream between the writers and the tables: one entry holds a chunk of a writer's frames.

Per kind of record (`predictions`, `labels`): a stream `toque:{kind}:{writer}` per writer whose entry ids are
`{last record number}-0`, and two hashes by writer, `toque:{kind}:shipped` and `toque:{kind}:drained`, holding
the last record number that is in the stream and in the table; `toque:@{workspace}:{kind}:…` in a workspace other
than the default one. A chunk is accepted only if it continues what
Redis has, so a re-send is harmless, and after Redis lost its newest second the writer learns it and sends
that second again. `toque:{kind}:rotation` counts requests to drop what the files hold, and the hash
`toque:{kind}:rotated` holds the last request that each writer has met.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from redis import Redis

from functions.prediction_log.errors import PredictionLogError
from functions.prediction_log.frames import Frame, read_frames
from registry.access import DEFAULT_WORKSPACE

__all__ = ["Shipped", "Stream"]

_APPEND = """
local last = redis.call('HGET', KEYS[2], ARGV[1]) or redis.call('HGET', KEYS[3], ARGV[1]) or '0'
if last ~= ARGV[2] then return {'behind', last} end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[5]) then return {'full', last} end
redis.call('XADD', KEYS[1], ARGV[3] .. '-0', 'frames', ARGV[4])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
return {'ok', ARGV[3]}
"""
_DRAINED = """
local there = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0')
if tonumber(ARGV[2]) > there then redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end
redis.call('XTRIM', KEYS[1], 'MINID', ARGV[3] .. '-0')
return redis.status_reply('OK')
"""


class Shipped(NamedTuple):
    """Answer of Redis to a chunk: `accepted` or `full`, and the last record `last` that it has."""

    accepted: bool
    full: bool
    last: int


class Stream:
    """Streams of one kind of record.

    client: a client that returns bytes. workspace: whose records they are. max_entries: the bound on each writer's
        stream; its writer waits there (its file holds the rest).
    """

    def __init__(
        self, client: Redis, kind: str, *, workspace: str = DEFAULT_WORKSPACE, max_entries: int = 1_024
    ) -> None:
        self.kind = kind
        self._prefix = f"toque:{kind}" if workspace == DEFAULT_WORKSPACE else f"toque:@{workspace}:{kind}"
        self._client = client
        self._max_entries = max_entries
        self._shipped, self._drained = f"{self._prefix}:shipped", f"{self._prefix}:drained"
        self._rotation, self._rotated = f"{self._prefix}:rotation", f"{self._prefix}:rotated"
        self._append = client.register_script(_APPEND)
        self._mark = client.register_script(_DRAINED)

    def _key(self, writer: str) -> str:
        return f"{self._prefix}:{writer}"

    def append(self, writer: str, frames: bytes, *, after: int, last: int) -> Shipped:
        """Add a chunk that ends at record `last`, provided that Redis has exactly up to `after`."""
        answer: Any = self._append(
            keys=[self._key(writer), self._shipped, self._drained],
            args=[writer, after, last, frames, self._max_entries],
        )
        return Shipped(answer[0] == b"ok", answer[0] == b"full", int(answer[1]))

    def shipped(self, writer: str) -> int:
        """Return the last record number of a writer that was added to the stream."""
        value: Any = self._client.hget(self._shipped, writer)
        return int(value) if value else self.drained(writer)

    def drained(self, writer: str) -> int:
        """Return the last record number of a writer that is in its table."""
        value: Any = self._client.hget(self._drained, writer)
        return int(value) if value else 0

    def writers(self) -> list[str]:
        """List the writers with records in Redis that are not drained yet."""
        pipe = self._client.pipeline(transaction=False)
        pipe.hgetall(self._shipped)
        pipe.hgetall(self._drained)
        shipped, drained = pipe.execute()
        return sorted(w.decode() for w, last in shipped.items() if int(last) > int(drained.get(w, b"0")))

    def read(self, writer: str, *, max_bytes: int = 16 << 20) -> Iterator[Frame]:
        """Read the oldest records of a writer, in order, about `max_bytes` of them.

        Raises: PredictionLogError if an entry is damaged.
        """
        after, size = b"-", 0
        while size < max_bytes:
            entries: Any = self._client.xrange(self._key(writer), min=after, count=16)
            for entry, fields in entries:
                yield from _checked(fields[b"frames"], self._key(writer))
                after, size = b"(" + entry, size + len(fields[b"frames"])
            if not entries:
                return

    def mark_drained(self, writer: str, last: int) -> None:
        """Mark a writer's records up to `last` as drained, and drop them from the stream."""
        self._mark(keys=[self._key(writer), self._drained], args=[writer, last, last + 1])

    def request_rotation(self) -> int:
        """Ask every writer to drop the records it has by now, once they are drained; returns the request's number."""
        number: Any = self._client.incr(self._rotation)
        return int(number)

    def rotation(self) -> int:
        """Return the number of the newest request, 0 before the first."""
        return int(self._client.get(self._rotation) or 0)

    def mark_rotated(self, writer: str, number: int) -> None:
        """Record that a writer's files hold no record from before a request."""
        self._client.hset(self._rotated, writer, str(number))

    def not_rotated(self, number: int) -> list[str]:
        """List the writers, dead or alive, whose files may still hold records from before a request."""
        pipe = self._client.pipeline(transaction=False)
        pipe.hkeys(self._shipped)
        pipe.hgetall(self._rotated)
        known, rotated = pipe.execute()
        return sorted(writer.decode() for writer in known if int(rotated.get(writer, b"0")) < number)

    def forget(self, writer: str) -> None:
        """Remove the keys of a dead writer whose records are all in the table."""
        pipe = self._client.pipeline(transaction=True)
        pipe.delete(self._key(writer))
        for record in (self._shipped, self._drained, self._rotated):
            pipe.hdel(record, writer)
        pipe.execute()


def _checked(frames: bytes, key: str) -> Iterator[Frame]:
    end = 0
    for frame in read_frames(frames):
        end = frame.end
        yield frame
    if end != len(frames):
        raise PredictionLogError(
            f"{key}: an entry is damaged at byte {end} of {len(frames)}; look at the disk"
        )
