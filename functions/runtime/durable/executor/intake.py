"""Intake of an executor: the notes of new invocations from the queues, and checkpoints of what is open."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from functions.runtime.changes.announcer import journals_in
from functions.runtime.changes.feed import watch_of
from functions.runtime.context import Context
from functions.runtime.durable.ledger import FollowedRecord, Ledger
from functions.runtime.durable.queue import Note, QueueReader
from functions.runtime.durable.record import initial_record
from registry.journal import Entry
from registry.times import from_text

CHECKPOINT_EVERY_S = 5.0


@dataclass
class Intake:
    """Reader of the queues in an executor's store, opened when it is first asked."""

    context: Context
    ledger: Ledger
    _reader: QueueReader | None = None
    _checkpointed_at: float = 0.0

    def new_notes(self, opened: dict[str, datetime]) -> list[Note]:
        """Read the notes since the last call; the first adds to `opened` what the last checkpoint says was open."""
        if self._reader is None:
            store = self.ledger.store
            watch = watch_of(self.context.redis_url, journals_in(store, "queues/*"), every_s=0.0)
            self._reader = QueueReader(store, actor=self.ledger.actor, clock=self.ledger.clock, watch=watch)
            for invocation, due in self._reader.resume().items():
                opened.setdefault(invocation, due)
        return list(self._reader.new_notes())

    def checkpoint(self, opened: dict[str, datetime]) -> None:
        """Store what is open and when it is due, every few seconds."""
        if self._reader and time.monotonic() - self._checkpointed_at > CHECKPOINT_EVERY_S:
            self._reader.checkpoint(opened)
            self._checkpointed_at = time.monotonic()

    def follow(self, note: Note) -> FollowedRecord:
        """Follow the record of a noted invocation; a note that has the first entry spares the reads."""
        if note.entry is None:
            return self.ledger.follow(note.invocation)
        entry = Entry(**(note.entry | {"at": from_text(note.entry["at"])}))
        journal = self.ledger.journal(note.invocation)
        journal.remember(entry)
        return FollowedRecord(journal, initial_record(entry, note.invocation), entry.digest)
