"""Queues of notes about invocations that executors should process, read without ever listing the store.

Each writing process has a queue of its own, a journal that only it appends to: a note costs one write without
conflicts. Executors find the queues in one index and read the next number of each. A queue without notes for
long is closed by an executor's append to it; a writer that still lives then meets a conflict, and opens
another queue.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from functions.runtime.changes.feed import Watch
from registry.journal import Conflict, Entry, Fold
from registry.journal.journal import Journal
from registry.store.object_store import ObjectStore
from registry.times import Clock, utc_now

INDEX = "queues/index"
CHECKPOINT = "queues/checkpoint.json"
SILENT_AFTER = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Note:
    """Note that an invocation should be processed.

    entry: its first entry, in notes of older versions; no longer written, since a queue's entries cannot be erased.
    """

    invocation: str
    entry: dict[str, Any] | None = None


class QueueWriter:
    """Writer of this process's queue in `store`, which threads may share."""

    def __init__(self, store: ObjectStore, *, actor: str, clock: Clock = utc_now) -> None:
        self._store = store
        self._actor = actor
        self._clock = clock
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._next = 0

    def add(self, note: Note) -> None:
        """Append a note: one write, and one more for the first note."""
        body = {"invocation": note.invocation}
        with self._lock:
            while True:
                journal = self._journal or self._open()
                try:
                    journal.append(body, at=self._next)
                except Conflict:  # an executor closed the queue after a long silence
                    self._journal = None
                    continue
                self._next += 1
                return

    def _open(self) -> Journal:
        name = uuid.uuid4().hex
        index(self._store, actor=self._actor, clock=self._clock).transact(lambda _: {"opened": name})
        self._journal = Journal(self._store, f"queues/{name}", actor=self._actor, clock=self._clock)
        self._next = 0
        return self._journal


@dataclass
class _QueueCursor:
    journal: Journal
    next: int
    read_at: datetime


@dataclass
class QueueReader:
    """Reader of every open queue in `store`, from a checkpoint on.

    watch: says when there may be notes; by default at each call.
    """

    store: ObjectStore
    actor: str
    clock: Clock = utc_now
    watch: Watch = field(default_factory=lambda: Watch(every_s=0.0))
    _index: Fold[frozenset[str]] = field(init=False)
    _queues: dict[str, _QueueCursor] = field(init=False, default_factory=dict)
    _positions: dict[str, int] = field(init=False, default_factory=dict)
    _index_at: int = field(init=False, default=0)
    _written: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._index = index(self.store, actor=self.actor, clock=self.clock)

    def resume(self) -> dict[str, datetime]:
        """Continue at the last checkpoint; returns the invocations open at that time, and when each is due."""
        data = self.store.find(CHECKPOINT)
        if data is None:
            return {}
        content = json.loads(data)
        self._positions = content["positions"]
        self._reopen(content.get("index"))
        return {each: datetime.fromisoformat(due) for each, due in content["open"].items()}

    def checkpoint(self, opened: dict[str, datetime]) -> None:
        """Store this reader's positions and the open invocations; a later reader starts there.

        Another reader's checkpoint may replace this one, even one that was stalled long ago: each is complete, so an
        older one only makes a reader read notes twice. One like the last is not written again.
        """
        positions = {name: queue.next for name, queue in self._queues.items()}
        due = {each: at.isoformat() for each, at in opened.items()}
        content = {"positions": positions, "open": due, "index": self._index_at}
        if content != self._written:
            self.store.put(CHECKPOINT, json.dumps(content).encode())
            self._written = content

    def new_notes(self) -> Iterator[Note]:
        """Yield the notes since the last call; without any, one read for the index and one for each queue."""
        with self.watch.turn() as due:
            if due:
                yield from self._read_all()

    def _read_all(self) -> Iterator[Note]:
        opened = self._index.refresh()
        self._index_at = self._index.next
        for name in opened - self._queues.keys():
            self._follow(name)
        for name, queue in list(self._queues.items()):
            yield from self._read(name, queue)
            if name not in opened:  # another executor closed it; its last notes are read now
                del self._queues[name]

    def _follow(self, name: str) -> None:
        journal = Journal(self.store, f"queues/{name}", actor=self.actor, clock=self.clock)
        self._queues[name] = _QueueCursor(journal, self._positions.get(name, 0), self.clock())

    def _reopen(self, index_at: int | None) -> None:
        """Follow the queues that were closed since a checkpoint, too: their last notes may be in no newer one.

        index_at: number of the index's first entry that the checkpoint did not know; an older release wrote none.
        """
        journal = Journal(self.store, INDEX, actor=self.actor, clock=self.clock)
        later = [] if index_at is None else [entry.body for entry in journal.entries(index_at)]
        for name in (*self._positions, *(body["opened"] for body in later if "opened" in body)):
            self._follow(name)

    def _read(self, name: str, queue: _QueueCursor) -> Iterator[Note]:
        for entry in queue.journal.entries(queue.next):
            queue.next, queue.read_at = entry.number + 1, self.clock()
            if entry.body.get("closed"):
                self._remove(name)
                return
            yield Note(entry.body["invocation"], entry.body.get("entry"))
        if self.clock() - queue.read_at > SILENT_AFTER:
            self._close(queue)

    def _close(self, queue: _QueueCursor) -> None:
        try:
            queue.journal.append({"closed": True}, at=queue.next)
        except Conflict:
            return  # its writer has just appended: read on next time

    def _remove(self, name: str) -> None:
        self._index.transact(lambda opened: {"closed": name} if name in opened else None)


def index(store: ObjectStore, *, actor: str, clock: Clock = utc_now) -> Fold[frozenset[str]]:
    """Open the index of all open queues."""
    journal = Journal(store, INDEX, actor=actor, clock=clock)
    return Fold(journal, frozenset(), _fold_entry, encode=sorted, decode=frozenset)


def _fold_entry(opened: frozenset[str], entry: Entry) -> frozenset[str]:
    if "opened" in entry.body:
        return opened | {entry.body["opened"]}
    return opened - {entry.body["closed"]}
