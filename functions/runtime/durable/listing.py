"""Listings of invocations that read what they show and little more, however many a store has.

Queues are walked from their ends, all at once by time, so a page costs what it shows and, for each queue, a few reads that
grow with the logarithm of its length. Invocations that have not ended stand in the executors' checkpoint, those that wait too.
"""

from __future__ import annotations

import heapq
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from toque.functions.runtime.durable.queue import CHECKPOINT, INDEX, index
from toque.functions.runtime.durable.record import Record
from toque.registry.journal import Entry
from toque.registry.journal.journal import Journal
from toque.registry.store.object_store import ObjectStore

READERS = 8  # records that are read at once: on S3 each entry is a request of tens of milliseconds
NOTE_DELAY = timedelta(seconds=2)
"""Time within which the note of a submitted invocation follows its first entry; a writer that is killed leaves it to another."""

_Head = tuple[float, str, int]  # minus the time of a queue's newest unread note, its queue, its number


def list_unfinished(store: ObjectStore, *, actor: str) -> list[str]:
    """List the invocations that may not have ended: those of the last checkpoint, and those noted since."""
    data = store.find(CHECKPOINT)
    content: dict[str, Any] = {"positions": {}, "open": {}} if data is None else json.loads(data)
    later = Journal(store, INDEX, actor=actor).entries(content.get("index", 0))
    opened = index(store, actor=actor).refresh()
    queues = {
        *content["positions"],
        *opened,
        *(each.body["opened"] for each in later if "opened" in each.body),
    }
    found = dict.fromkeys([*content["open"], *content.get("idle", ())])
    for name in sorted(queues):
        entries = Journal(store, f"queues/{name}", actor=actor).entries(content["positions"].get(name, 0))
        found |= dict.fromkeys(each.body["invocation"] for each in entries if "invocation" in each.body)
    return list(found)


def newest_first(
    store: ObjectStore,
    first_entry: Callable[[str], Entry | None],
    *,
    actor: str,
    before: tuple[datetime, str] | None = None,
) -> Iterator[tuple[str, Entry]]:
    """Iterate over invocations and their first entries by the time of their submission, the newest first; one read for each, and one for its note.

    first_entry: finds the first entry of an invocation. before: time and id of the invocation that the listing follows.
    An invocation was submitted before each of its notes, so one is given as soon as the notes that are left are older.
    """
    walk = _Walk(store, actor, None if before is None else before[0] + NOTE_DELAY)
    waiting: list[tuple[float, str]] = []
    entries: dict[str, Entry] = {}
    seen: set[str] = set()
    for at, invocation in walk.notes():
        while waiting and -waiting[0][0] > at:
            yield _pop(waiting, entries)
        first = None if invocation in seen else first_entry(invocation)
        seen.add(invocation)
        if first is not None and (before is None or (before[0], before[1]) > (first.at, invocation)):
            heapq.heappush(waiting, (-first.at.timestamp(), _Backwards(invocation)))
            entries[invocation] = first
    while waiting:
        yield _pop(waiting, entries)


def matching(
    listed: Iterable[tuple[str, Entry | None]],
    find: Callable[[str, Entry | None], Record | None],
    matches: Callable[[Record], bool],
    *,
    limit: int = sys.maxsize,
) -> Iterator[Record]:
    """Read the records of listed invocations, several at once, until `limit` of them match; never more ahead than may be needed.

    listed: ids, and first entries that were read; find: reads one, None if it was deleted.
    """
    rest = iter(listed)
    with ThreadPoolExecutor(READERS, thread_name_prefix="toque-listing") as pool:
        while limit and (batch := list(islice(rest, min(READERS, limit)))):
            for record in pool.map(lambda each: find(*each), batch):
                if record is not None and matches(record):
                    limit -= 1
                    yield record


def _pop(waiting: list[tuple[float, str]], entries: dict[str, Entry]) -> tuple[str, Entry]:
    invocation = str(heapq.heappop(waiting)[1])
    return invocation, entries.pop(invocation)


class _Backwards(str):
    """Id that sorts after smaller ones, as times do here: of the same moment, the greater id goes first."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)


class _Walk:
    """Walk over the notes of all queues from the newest to the oldest.

    until: notes after that are left out.
    """

    def __init__(self, store: ObjectStore, actor: str, until: datetime | None) -> None:
        self._store, self._actor, self._until = store, actor, until
        data = store.find(CHECKPOINT)
        self._known: dict[str, int] = {} if data is None else json.loads(data)["positions"]
        self._index = index(store, actor=actor)
        self._opened: set[str] = set()
        self._heads: list[_Head] = []
        self._journals: dict[str, Journal] = {}
        self._entries: dict[str, Entry] = {}

    def notes(self) -> Iterator[tuple[float, str]]:
        """Iterate over time and invocation of each note."""
        for name in self._index.refresh():
            self._follow(name)
        number = self._index.next - 1
        later = self._index.journal.find(number) if number >= 0 else None
        while self._heads or later is not None:
            # A queue that was closed before the newest unread note has nothing newer, and is opened later.
            while later is not None and (not self._heads or later.at.timestamp() >= -self._heads[0][0]):
                self._follow(later.body.get("opened") or later.body["closed"])
                number -= 1
                later = self._index.journal.find(number) if number >= 0 else None
            if self._heads:
                _, name, at = heapq.heappop(self._heads)
                entry = self._entries[name]
                self._push(name, at - 1)
                if "invocation" in entry.body:
                    yield entry.at.timestamp(), entry.body["invocation"]

    def _follow(self, name: str) -> None:
        if name in self._opened:
            return
        self._opened.add(name)
        journal = self._journals[name] = Journal(self._store, f"queues/{name}", actor=self._actor)
        last = _last(journal, self._known.get(name, 0))
        self._push(name, last if self._until is None else _last_until(journal, last, self._until))

    def _push(self, name: str, number: int) -> None:
        entry = self._journals[name].find(number) if number >= 0 else None
        if entry is not None:
            self._entries[name] = entry
            heapq.heappush(self._heads, (-entry.at.timestamp(), name, number))


def _last(journal: Journal, known: int) -> int:
    """Number of the last entry, -1 if there is none; found in steps that double. known: number of entries at least."""
    low, stride = known - 1, 1
    while journal.find(low + stride) is not None:
        low, stride = low + stride, stride * 2
    high = low + stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if journal.find(middle) is None else (middle, high)
    return low


def _last_until(journal: Journal, last: int, until: datetime) -> int:
    """Number of the last entry that was written up to a time, -1 if there is none."""
    low, high = -1, last + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if journal.entry(middle).at <= until else (low, middle)
    return low
