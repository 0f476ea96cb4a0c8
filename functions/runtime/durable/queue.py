"""Queues of notes about invocations that executors should process, and listings from them; the store is never listed.

Each writing process has a queue of its own, a journal that only it appends to: a note costs one write without conflicts.
Executors find the queues in one index and read the next number of each. A queue without notes for long is closed by an
executor's append to it; a writer that still lives then meets a conflict, and opens another queue.
Listings walk the queues from their ends, all at once by time, so a page costs what it shows and, for each queue, a few reads
that grow with the logarithm of its length. Invocations that have not ended, waiting ones too, stand in the executors' checkpoint.
"""

from __future__ import annotations

import heapq
import json
import sys
import threading
import time
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from toque.functions.runtime.changes import Watch, journals_in, watch_of
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.durable.store_requests import READERS, at_once
from toque.registry.journal import Conflict, Entry, Fold
from toque.registry.journal.journal import Journal
from toque.registry.store.object_store import ObjectStore
from toque.registry.times import Clock, utc_now

INDEX = "queues/index"
CHECKPOINT = "queues/checkpoint.json"
CHECKPOINT_EVERY_S = 5.0
SILENT_AFTER = timedelta(minutes=10)
# Notes that one reading takes in, so that a round of an executor ends however long the backlog is.
NOTES_AT_ONCE = 1024
ANNOUNCED_S = 60.0
"""For how long an executor looks for an entry that a note announces: it is the next write of whoever wrote the note."""
_RECORDS_AT_ONCE = 8  # records that are read at once: on S3 each entry is a request of tens of milliseconds
NOTE_DELAY = timedelta(seconds=2)
"""Time within which the note of a submitted invocation follows its first entry; a writer that is killed leaves it to another."""
_Head = tuple[float, str, int]  # minus the time of a queue's newest unread note, its queue, its number


@dataclass(frozen=True, slots=True)
class Note:
    """Note that an invocation should be processed.

    after: where the note announces an entry that is about to be written: how many there are before it.
    """

    invocation: str
    after: int | None = None


class Unfinished(NamedTuple):
    """Invocations that have not ended, as a checkpoint says. due: when those are due that run or may run; idle: wait for a signal alone."""

    due: dict[str, datetime]
    idle: frozenset[str] = frozenset()


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
        body: dict[str, Any] = {"invocation": note.invocation}
        if note.after is not None:
            body["after"] = note.after
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

    watch: says when there may be notes; by default at each call. failures: what kept the last reading from some of the queues.
    """

    store: ObjectStore
    actor: str
    clock: Clock = utc_now
    watch: Watch = field(default_factory=lambda: Watch(every_s=0.0))
    failures: list[Exception] = field(init=False, default_factory=list)
    _index: Fold[frozenset[str]] = field(init=False)
    _queues: dict[str, _QueueCursor] = field(init=False, default_factory=dict)
    _positions: dict[str, int] = field(init=False, default_factory=dict)
    _index_at: int | None = field(init=False, default=None)  # entries of the index whose queues are followed
    _written: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._index = index(self.store, actor=self.actor, clock=self.clock)

    def resume(self) -> Unfinished:
        """Continue at the last checkpoint; returns the invocations that had not ended at that time."""
        data = self.store.find(CHECKPOINT)
        if data is None:
            return Unfinished({})
        content = json.loads(data)
        self._positions = content["positions"]
        self._index_at = content.get("index")  # an older release wrote none
        for name in self._positions:
            self._follow(name)
        due = {invocation: datetime.fromisoformat(at) for invocation, at in content["open"].items()}
        return Unfinished(due, frozenset(content.get("idle", ())))

    def checkpoint(self, opened: Mapping[str, datetime], idle: Iterable[str] = ()) -> None:
        """Store this reader's positions and the unfinished invocations; a later reader starts there.

        Another reader's checkpoint may replace this one, even one that was stalled long ago: each is complete, so an
        older one only makes a reader read notes twice. One like the last is not written again.
        """
        positions = {name: queue.next for name, queue in self._queues.items()}
        due = {invocation: at.isoformat() for invocation, at in opened.items()}
        content = {"positions": positions, "open": due, "idle": sorted(idle), "index": self._index_at or 0}
        if content != self._written:
            self.store.put(CHECKPOINT, json.dumps(content).encode())
            self._written = content

    def new_notes(self) -> list[Note]:
        """Read the notes since the last call, some `NOTES_AT_ONCE` at most; without any, one read for the index and one for each queue.

        The notes of queues that can be read are returned, whichever cannot; `failures` says why, and the next call reads those.
        Raises: as the store where the index cannot be read.
        """
        self.failures = []
        with self.watch.turn() as due:
            notes = self._read_all() if due else []
            if self.failures:
                self.watch.failed()
            return notes

    def _read_all(self) -> list[Note]:
        opened = self._index.refresh()
        self._follow_opened(opened)
        notes: list[Note] = []
        behind, begun = list(self._queues), {name: queue.next for name, queue in self._queues.items()}
        while behind and len(notes) < NOTES_AT_ONCE:
            # As many at once as there were so far: few reads where there is little, and many in a backlog.
            counts = {name: min(max(1, self._queues[name].next - begun[name]), READERS) for name in behind}
            behind = self._read_on(counts, opened, notes)
        if behind:
            self.watch.notify()  # the next call reads on
        return notes

    def _follow_opened(self, opened: frozenset[str]) -> None:
        """Follow the queues that were opened since the last reading, also those that another executor has closed meanwhile."""
        names = set(opened - self._queues.keys())
        since = self._index_at
        if since is not None and self._index.next - since > len(names):
            later = Journal(self.store, INDEX, actor=self.actor, clock=self.clock).entries(since)
            names.update(entry.body["opened"] for entry in later if "opened" in entry.body)
        for name in names - self._queues.keys():
            self._follow(name)
        self._index_at = self._index.next

    def _follow(self, name: str) -> None:
        journal = Journal(self.store, f"queues/{name}", actor=self.actor, clock=self.clock)
        self._queues[name] = _QueueCursor(journal, self._positions.get(name, 0), self.clock())

    def _read_on(self, counts: dict[str, int], opened: frozenset[str], notes: list[Note]) -> list[str]:
        """Read so many of the next entries of queues, all at once; returns the queues that may have more."""
        places = [
            (name, number)
            for name, count in counts.items()
            for number in range(self._queues[name].next, self._queues[name].next + count)
        ]
        keys = [self._queues[name].journal.key(number) for name, number in places]
        answers: dict[str, list[bytes | Exception | None]] = {}
        for (name, _), answer in zip(
            places, at_once([partial(self.store.find, key) for key in keys]), strict=True
        ):
            answers.setdefault(name, []).append(answer)
        more: list[str] = []
        for name, entries in answers.items():
            try:
                if self._take(name, entries, notes):
                    more.append(name)
                elif name not in opened:  # another executor closed it; its last notes are read now
                    del self._queues[name]
            except Exception as error:  # noqa: BLE001  # kept for the caller: the notes of other queues must not wait for it
                self.failures.append(error)
        return more

    def _take(self, name: str, answers: list[bytes | Exception | None], notes: list[Note]) -> bool:
        """Take in the next entries of a queue; returns whether there may be more. Its place moves with each note that is taken."""
        queue = self._queues[name]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                if self.clock() - queue.read_at > SILENT_AFTER:
                    with suppress(Conflict):  # its writer has just appended: read on next time
                        queue.journal.append({"closed": True}, at=queue.next)
                return False
            body = queue.journal.parse(queue.next, answer)[0].body
            if body.get("closed"):
                self._index.transact(lambda opened: {"closed": name} if name in opened else None)
                queue.next += 1
                return False
            notes.append(Note(body["invocation"], body.get("after")))
            queue.next, queue.read_at = queue.next + 1, self.clock()
        return True


@dataclass
class Intake(QueueReader):
    """Reader for an executor: it begins when it is first asked, and stores a checkpoint every few seconds at most."""

    redis_url: str | None = None
    _begun: bool = False
    _checkpointed_at: float = 0.0

    def resume(self) -> Unfinished:
        """Begin at the last checkpoint; returns what had not ended then, and nothing once it has begun."""
        if self._begun:
            return Unfinished({})
        self.watch = watch_of(self.redis_url, journals_in(self.store, "queues/*"), every_s=0.0)
        unfinished = super().resume()
        self._begun = True
        return unfinished

    def checkpoint(self, opened: Mapping[str, datetime], idle: Iterable[str] = ()) -> None:
        """Store a checkpoint, unless the last one is of the last seconds."""
        if time.monotonic() - self._checkpointed_at > CHECKPOINT_EVERY_S:
            super().checkpoint(opened, idle)
            self._checkpointed_at = time.monotonic()


def index(store: ObjectStore, *, actor: str, clock: Clock = utc_now) -> Fold[frozenset[str]]:
    """Open the index of all open queues."""
    journal = Journal(store, INDEX, actor=actor, clock=clock)
    return Fold(journal, frozenset(), _fold_entry, encode=sorted, decode=frozenset)


def _fold_entry(opened: frozenset[str], entry: Entry) -> frozenset[str]:
    if "opened" in entry.body:
        return opened | {entry.body["opened"]}
    return opened - {entry.body["closed"]}


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
    # One pool for the whole listing: with threads anew for each batch, 4,000 records of a folder take .93 s instead of .36.
    with ThreadPoolExecutor(_RECORDS_AT_ONCE, thread_name_prefix="toque-listing") as pool:
        while limit and (batch := list(islice(rest, min(_RECORDS_AT_ONCE, limit)))):
            for record in pool.map(lambda item: find(*item), batch):
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
    return low + bisect_left(range(low + 1, low + stride), True, key=lambda each: journal.find(each) is None)


def _last_until(journal: Journal, last: int, until: datetime) -> int:
    """Number of the last entry that was written up to a time, -1 if there is none."""
    return bisect_right(range(last + 1), until, key=lambda each: journal.entry(each).at) - 1
