"""Commits of a consumer: its events go into the source's table in a thread of their own, while it reads on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from toque.featurestore.streams.decode import Decoded, Place
from toque.featurestore.streams.table import Move, StreamTable


@dataclass(slots=True)
class _Buffer:
    """Events that are online and not yet committed."""

    events: list[pa.Table] = field(default_factory=list)
    rejected: list[pa.Table] = field(default_factory=list)
    moves: dict[int, Move] = field(default_factory=dict)
    rows: int = 0

    def add(self, decoded: Decoded, before: Mapping[int, Place | None]) -> None:
        self.events.append(decoded.events)
        self.rejected.append(decoded.rejected)
        self.rows += decoded.events.num_rows + decoded.rejected.num_rows
        for each, after in decoded.places.items():
            begun = self.moves.get(each)
            self.moves[each] = Move(before.get(each) if begun is None else begun.before, after)


class Commits:
    """Events that wait for their commit, and the one commit under way.

    buffered_rows: events that may wait; half of them are committed before their time. The object belongs to the consumer's thread.
    """

    def __init__(self, table: StreamTable, *, buffered_rows: int) -> None:
        self._table, self._buffered_rows = table, buffered_rows
        self._every_s = table.source.commit_every.total_seconds()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="stream-commit")
        self._buffer, self._sent = _Buffer(), _Buffer()
        self._under_way: Future[float] | None = None
        self._begun_at = time.monotonic()

    def add(self, decoded: Decoded, before: Mapping[int, Place | None]) -> None:
        """Hold events for the next commit. before: place in each partition before they were read."""
        self._buffer.add(decoded, before)

    def forget(self) -> None:
        """Forget what waits; a commit under way goes on."""
        self._buffer, self._sent = _Buffer(), _Buffer()

    @property
    def has_room(self) -> bool:
        """Whether more events may be read."""
        return self._buffer.rows + self._sent.rows < self._buffered_rows

    @property
    def is_under_way(self) -> bool:
        """Whether a commit has begun and has not ended yet."""
        return self._under_way is not None and not self._under_way.done()

    @property
    def any_wait(self) -> bool:
        """Whether anything waits for its commit."""
        return bool(self._buffer.moves)

    @property
    def is_due(self) -> bool:
        """Whether what waits is to be committed now."""
        waited_s = time.monotonic() - self._begun_at
        full = self._buffer.rows >= self._buffered_rows // 2
        return self.any_wait and (full or waited_s >= self._every_s)

    def begin(self) -> None:
        """Commit what waits; the commit before must be finished."""
        self._sent, self._buffer = self._buffer, _Buffer()
        self._begun_at = time.monotonic()
        # What was read before a rewrite must not pass for what is read after it, so not the table's count as the thread finds it.
        self._under_way = self._writer.submit(self._commit, self._sent, self._table.rewritten)

    def finish(self) -> float | None:
        """Wait for the commit under way; returns the seconds that it took, None if there is none.

        Raises: ConsumerFenced; Unavailable, then what was sent is lost with this consumer's places.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return None
        took_s = under_way.result()
        self._sent = _Buffer()
        return took_s

    def close(self) -> None:
        """End the thread after the commit under way."""
        self._writer.shutdown()

    def _commit(self, buffer: _Buffer, rewritten: int | None) -> float:
        begun = time.monotonic()
        events, rejected = pa.concat_tables(buffer.events), pa.concat_tables(buffer.rejected)
        self._table.commit(events, rejected, buffer.moves, rewritten=rewritten)
        took_s = time.monotonic() - begun
        self._table.compact()
        return took_s
