"""Streams as release 0.1 laid them out in Redis, drained until none of its writers is left.

Per kind of record: a stream `toque:kind:writer` per writer, and hashes by writer, `toque:kind:shipped`, `…:drained` and
`…:rotated`; `toque:@workspace:kind:…` in a workspace other than the default one. Nothing writes them any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from toque.functions.prediction_log.frames import Frame
from toque.functions.prediction_log.writing.stream import Stream, entries_of
from toque.registry.access import DEFAULT_WORKSPACE

__all__ = ["OldStream", "streams_of"]

_DRAINED = """
local there = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0')
if tonumber(ARGV[2]) > there then redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end
redis.call('XTRIM', KEYS[1], 'MINID', ARGV[3] .. '-0')
return 1
"""


class OldStream:
    """Streams of one kind of record, as writers of release 0.1 fill them; the methods are those of `Stream`."""

    def __init__(self, client: Any, kind: str, *, workspace: str = DEFAULT_WORKSPACE) -> None:
        self.kind, self.client = kind, client
        self._prefix = f"toque:{kind}" if workspace == DEFAULT_WORKSPACE else f"toque:@{workspace}:{kind}"
        self._mark = client.register_script(_DRAINED)

    def exists(self) -> bool:
        """Whether a writer of that release has sent anything here."""
        return bool(self.client.exists(f"{self._prefix}:shipped"))

    def writers(self) -> list[str]:
        """List the writers with records in Redis that are not drained yet."""
        shipped, drained = self._all("shipped"), self._all("drained")
        return sorted(writer for writer, last in shipped.items() if last > drained.get(writer, 0))

    def read(self, writer: str, *, max_bytes: int = 16 << 20) -> Iterator[Frame]:
        """Read the oldest records of a writer, in order, about `max_bytes` of them."""
        return entries_of(self.client, f"{self._prefix}:{writer}", max_bytes)

    def mark_drained(self, writer: str, last: int) -> None:
        """Mark a writer's records up to `last` as drained, and drop them from the stream."""
        keys = [f"{self._prefix}:{writer}", f"{self._prefix}:drained"]
        self._mark(keys=keys, args=[writer, last, last + 1])

    def request_rotation(self) -> int:
        """Ask every writer to drop the records it has by now, once they are drained; returns the request's number."""
        number: Any = self.client.incr(f"{self._prefix}:rotation")
        return int(number)

    def not_rotated(self, number: int) -> list[str]:
        """List the writers, dead or alive, whose files may still hold records from before a request."""
        rotated = self._all("rotated")
        return sorted(writer for writer in self._all("shipped") if rotated.get(writer, 0) < number)

    def forget(self, writer: str) -> None:
        """Remove the keys of a dead writer whose records are all in the table."""
        self.client.delete(f"{self._prefix}:{writer}")
        for record in ("shipped", "drained", "rotated"):
            self.client.hdel(f"{self._prefix}:{record}", writer)

    def _all(self, record: str) -> dict[str, int]:
        found: Any = self.client.hgetall(f"{self._prefix}:{record}")
        return {writer.decode(): int(last) for writer, last in found.items()}


def streams_of(client: Any, kind: str, *, workspace: str) -> list[Stream | OldStream]:
    """List where the records of a kind are: in the streams of this release, and in old ones that are still there."""
    old = OldStream(client, kind, workspace=workspace)
    stream = Stream(client, kind, workspace=workspace)
    return [stream, old] if old.exists() else [stream]
