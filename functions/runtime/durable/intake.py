"""Intake of an executor: the notes of new invocations from the queues, and checkpoints of what is open."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from toque.functions.runtime.changes import journals_in, watch_of
from toque.functions.runtime.context import Context
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.queue import ANNOUNCED_S, Note, QueueReader, Unfinished
from toque.functions.runtime.durable.record import Record

CHECKPOINT_EVERY_S = 5.0


@dataclass
class Announced:
    """Entry that a note announces and that may still be on its way: its writer dies before it, or writes it at once.

    after: how many entries there are before it, None where that is not known; until: by `time.monotonic`, when it is given up.
    """

    after: int | None
    until: float = field(default_factory=lambda: time.monotonic() + ANNOUNCED_S)
    _look_s: float = 0.25

    @classmethod
    def perhaps(cls) -> Announced:
        """Make one for an invocation of a checkpoint, which does not say what its last note announced; looked for rarely, as it may be of many."""
        return cls(None, _look_s=ANNOUNCED_S / 6)

    def may_come(self, record: Record) -> bool:
        """Whether the entry is not there, and somebody has to look for it: nobody where the run that begins or goes on will see it."""
        if time.monotonic() > self.until:
            return False
        if self.after is None:
            return record.ended or record.waits_for is not None
        return record.length <= self.after

    def next_look(self, now: datetime) -> datetime:
        """Time of the next look for the entry; the looks get rarer."""
        look_s, self._look_s = self._look_s, min(2 * self._look_s, ANNOUNCED_S)
        return now + timedelta(seconds=look_s)


@dataclass
class Intake:
    """Reader of the queues in an executor's store, opened when it is first asked."""

    context: Context
    ledger: Ledger
    _reader: QueueReader | None = None
    _checkpointed_at: float = 0.0

    def resume(self) -> Unfinished:
        """Begin at the last checkpoint; returns what had not ended then, and nothing once it has begun."""
        if self._reader is not None:
            return Unfinished({})
        store = self.ledger.store
        watch = watch_of(self.context.redis_url, journals_in(store, "queues/*"), every_s=0.0)
        reader = QueueReader(store, actor=self.ledger.actor, clock=self.ledger.clock, watch=watch)
        unfinished = reader.resume()
        self._reader = reader
        return unfinished

    def new_notes(self) -> list[Note]:
        """Read the notes since the last call; see `QueueReader`."""
        return [] if self._reader is None else self._reader.new_notes()

    @property
    def failures(self) -> list[Exception]:
        """What kept the last reading from some of the queues."""
        return [] if self._reader is None else self._reader.failures

    def checkpoint(self, opened: Mapping[str, datetime], idle: Iterable[str]) -> None:
        """Store what is open and when it is due, and what waits for a signal, every few seconds."""
        if self._reader and time.monotonic() - self._checkpointed_at > CHECKPOINT_EVERY_S:
            self._reader.checkpoint(opened, idle)
            self._checkpointed_at = time.monotonic()
