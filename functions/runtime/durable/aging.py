"""Walk over invocations from the oldest, to delete those that ended long ago, which goes on where the walk before it stopped.

Queues are read from their first notes up to an age, each note once ever. What is passed and kept, since it has not ended or ended later,
is remembered and looked at again. So a walk costs what it deletes and what is left of such age, however many younger ones there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

from pydantic import BaseModel

from toque.functions.runtime.durable.at_once import READERS, all_at_once, in_batches
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.queue import INDEX
from toque.functions.runtime.durable.record import Record
from toque.registry.journal.journal import Journal

PROGRESS = "queues/retention.json"
_CHILD = re.compile(r"([0-9a-f]{32})/[0-9]+")  # key of what a workflow submitted, after its id


class Progress(BaseModel, frozen=True):
    """Progress of the walks so far. Whoever was stalled may store an older one: it is complete too, and its notes are read again.

    since: when the first walk began; index: entries read of the queues' index; positions: notes read of each queue; left: ids of the
    invocations that were passed and kept.
    """

    since: datetime
    index: int = 0
    positions: dict[str, int] = {}
    left: list[str] = []


class Walk:
    """Walk that deletes the invocations which ended before a time.

    deleted: how many so far; kept: called with each record that it passes and keeps. Killed anywhere, the next walk goes on there.
    """

    def __init__(self, ledger: Ledger, before: datetime, *, kept: Callable[[Record], object]) -> None:
        self._ledger, self._before, self._kept = ledger, before, kept
        data = ledger.store.find(PROGRESS)
        self._progress = (
            Progress(since=ledger.clock()) if data is None else Progress.model_validate_json(data)
        )
        self._stored = data
        self.deleted = 0

    @property
    def since(self) -> datetime:
        """When the first walk of all began."""
        return self._progress.since

    def run(self) -> None:
        """Walk to the end, which is a note that is not older than the time."""
        left: list[str] = []
        for batch in in_batches(self._progress.left):
            left += self._drop(batch)
        self._store(left=left)
        for name in self._queues():
            count = 1  # of most queues no further note is old enough
            while self._read_on(name, count):
                count = READERS

    def _queues(self) -> list[str]:
        """Read the names of the queues that have notes to read."""
        positions, index = dict(self._progress.positions), self._progress.index
        for entry in Journal(self._ledger.store, INDEX, actor=self._ledger.actor).entries(index):
            index = entry.number + 1
            if "opened" in entry.body:
                positions.setdefault(entry.body["opened"], 0)
        self._store(positions=positions, index=index)
        return list(positions)

    def _read_on(self, name: str, count: int) -> bool:
        """Read the next `count` notes of a queue and drop what they name; returns whether there may be more that are old enough."""
        journal = Journal(self._ledger.store, f"queues/{name}", actor=self._ledger.actor)
        begin, invocations, closed = self._progress.positions[name], dict[str, None](), False
        number = begin
        for data in all_at_once(
            [partial(self._ledger.store.find, journal.key(begin + each)) for each in range(count)]
        ):
            if data is None:
                break
            entry = journal.parse(number, data)[0]
            if entry.at >= self._before:
                break
            number, closed = number + 1, bool(entry.body.get("closed"))
            if "invocation" in entry.body:
                invocations[entry.body["invocation"]] = None
        left = [*dict.fromkeys([*self._progress.left, *self._drop(list(invocations))])]
        positions = self._progress.positions | {name: number}
        if closed:
            del positions[name]
        self._store(positions=positions, left=left)
        return not closed and number == begin + count

    def _drop(self, invocations: Sequence[str]) -> list[str]:
        """Delete those of some invocations that ended before the time; returns the ids of the others that are there."""
        found = all_at_once([partial(self._ledger.find, each) for each in invocations])
        records = [record for record in found if record is not None]
        gone = {each for each, record in zip(invocations, found, strict=True) if record is None}
        all_at_once([partial(self._ledger.complete_deletion, each) for each in gone])
        aged = [record for record in records if self._is_old(record)]
        needed = self._of_open_parents(aged)
        old = [record.id for record in aged if record.id not in needed]
        self._ledger.delete_ended(old)
        self.deleted += len(old)
        rest = [record for record in records if record.id not in old]
        for record in rest:
            self._kept(record)
        return [record.id for record in rest]

    def _of_open_parents(self, records: Sequence[Record]) -> set[str]:
        """Find those that a workflow submitted which has not ended: its replay names their keys again, and must not run them again."""
        parents = {record.id: match[1] for record in records if (match := _CHILD.fullmatch(record.key or ""))}
        names = list(dict.fromkeys(parents.values()))
        found = all_at_once([partial(self._ledger.find, name) for name in names])
        running = {
            name for name, record in zip(names, found, strict=True) if record is not None and not record.ended
        }
        return {child for child, parent in parents.items() if parent in running}

    def _is_old(self, record: Record) -> bool:
        return record.ended and (record.finished_at or record.submitted_at) < self._before

    def _store(self, **changes: object) -> None:
        self._progress = self._progress.model_copy(update=changes)
        data = self._progress.model_dump_json().encode()
        if data != self._stored:
            self._ledger.store.put(PROGRESS, data)
            self._stored = data
