"""State folded from a journal's entries, kept up to date by one read of the next number."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from toque.registry.errors import Damaged, NewerFormat, RegistryError
from toque.registry.journal import high_water, snapshot
from toque.registry.journal.entry import NO_DIGEST, Conflict, Entry
from toque.registry.times import backoff_s

if TYPE_CHECKING:
    from toque.registry.journal.journal import Journal

S = TypeVar("S")
SNAPSHOT_EVERY = 64
PATIENCE_S = 120.0
_MAX_TAIL_BYTES = 256 << 10
_logger = logging.getLogger(__name__)


class Fold(Generic[S]):
    """State of a journal: `step` applied to all its entries in order, beginning with `initial`.

    step: pure, and must not change the state it is given.
    encode, decode: the state to JSON values and back; with both, a snapshot is kept every 64 entries, and a
    cold read is the snapshot and what came after. Without, it is every entry.
    schema: change it when `step` or `encode` changes, and old snapshots are left aside.
    carry: each entry repeats those since the last snapshot, so that a cold read is 3 requests however long
    the journal; for journals that many read and few write.
    guarded: compare with how far this machine has seen the journal, so that one which lost its end is refused when it is opened.
    Safe for threads.
    """

    def __init__(
        self,
        journal: Journal,
        initial: S,
        step: Callable[[S, Entry], S],
        *,
        encode: Callable[[S], Any] | None = None,
        decode: Callable[[Any], S] | None = None,
        schema: str = "1",
        carry: bool = False,
        guarded: bool = False,
    ) -> None:
        self.journal = journal
        self._step = step
        self._encode = encode
        self._decode = decode
        self._schema = schema
        self._carry = carry and encode is not None
        self._guarded, self._marked_at, self._first = guarded, 0, ""
        self._tail: list[Entry] = []
        self._initial = initial
        self._cold = True
        self._lock = threading.RLock()
        self._reset()

    def as_actor(self, actor: str) -> Fold[S]:
        """Return a fold that goes on from this one's state and appends in the name of another actor; reads nothing."""
        with self._lock:
            made = copy(self)
            made.journal = self.journal.as_actor(actor)
            made._lock, made._tail = threading.RLock(), [*self._tail]  # noqa: SLF001  # of this class
        return made

    @property
    def state(self) -> S:
        """State after the last refresh, without a request."""
        return self._state

    @property
    def next(self) -> int:
        """Number of the next entry, which is how many the state contains."""
        return self._next

    def refresh(self) -> S:
        """Read new entries and return the state; 1 read if there are none.

        Raises: Damaged if the chain is broken; the state then stays what it was.
        """
        with self._lock:
            if not self._cold:
                self._read_on()
                self._mark()
                return self._state
            mark = high_water.mark_of(self.journal.store, self.journal.path) if self._guarded else None
            try:
                self._warm_up()
                if not (self._carry and self._catch_up()):
                    self._read_on()
                self.journal.require_count(self._next)
                if self._guarded:
                    self._require_last()
                    high_water.check(self.journal, mark, self._next, self._head)
            except BaseException:
                self._reset()  # entries without a MAC are known to be the adopted ones only when the last is read
                raise
            self._cold = False
            self._mark()
            return self._state

    def _mark(self) -> None:
        """Remember how far the journal was seen."""
        if self._guarded and self._next != self._marked_at:
            self._marked_at = self._next
            mark = high_water.Mark(self._next, self._head, self._first)
            high_water.note(self.journal.store, self.journal.path, mark)

    def _require_last(self) -> None:
        """Check that a snapshot which nothing follows is not all that is left of its journal. Raises: Damaged."""
        if 0 < self._next == self._snapshot_at:
            last = self.journal.find(self._next - 1)
            if last is None or last.digest != self._head:
                raise Damaged(
                    f"{self.journal.path}: snapshot is of {self._next} entries, and entry {self._next - 1} is missing or another "
                    "one; put the entries back from a copy of the store"
                )

    def _read_on(self) -> None:
        while (entry := self.journal.find(self._next)) is not None:
            self._advance(entry)

    def _reset(self) -> None:
        """Return to the initial state, before anything was read."""
        self._state = self._initial
        self._next = 0
        self._head = NO_DIGEST
        self._snapshot_at = 0
        self._tail, self._tail_bytes = [], 0
        self._cold = True

    def verify(self, on_entry: Callable[[Entry], None] | None = None) -> int:
        """Fold every entry again, from the first, and compare with the snapshot; returns the number of entries.

        on_entry: called with each entry, once it is verified.
        Raises: Damaged, as `Journal.verify`, and if a reader that starts from the snapshot would have another state.
        """
        path, store = self.journal.path, self.journal.store
        data = store.find(snapshot.key(path))
        found = None if data is None else snapshot.parse(data, store.audit_keys, path)
        state = self._initial

        def fold_again(entry: Entry) -> None:
            nonlocal state
            state = self._step(state, entry)
            if found is not None and found.next == entry.number + 1:
                self._compare(found, state, entry)
            if on_entry:
                on_entry(entry)

        count = self.journal.verify(fold_again)
        if found is not None and not 0 < found.next <= count:
            raise Damaged(f"{path}: snapshot is of {found.next} entries, and the journal has {count}")
        return count

    def _compare(self, found: snapshot.Snapshot, state: S, last: Entry) -> None:
        """Compare a snapshot with the state after the same entries; one of another schema is used by nobody."""
        if found.head != last.digest:
            raise Damaged(f"{self.journal.path}: snapshot names another entry {last.number}")
        if self._encode is None or self._decode is None or found.schema != self._schema:
            return
        folded, stored = self._encode(state), self._encode(self._decode(found.state))
        if json.dumps(folded, sort_keys=True) != json.dumps(stored, sort_keys=True):
            raise Damaged(
                f"{self.journal.path}: snapshot is not the state after entry {last.number}: it was changed"
            )

    def transact(
        self, decide: Callable[[S], dict[str, Any] | None], *, patience_s: float = PATIENCE_S
    ) -> Entry | None:
        """Read the state, `decide` what to append and append it; decide again if another writer came first.

        decide: pure; returns the entry's body, or None for nothing to do; what it raises passes through.
        patience_s: how long to go on after lost races against other writers.
        Returns: the entry written, or None. 1 read and 1 write without contention.
        Raises: Conflict after `patience_s`; Unavailable when the store does not answer.
        """
        deadline = time.monotonic() + patience_s
        attempt = 0
        while True:
            with self._lock:  # state and number must belong together
                state = self.refresh()
                number, carried = self._next, tuple(self._tail)
            body = decide(state)
            if body is None:
                return None
            try:
                entry = self.journal.append(body, at=number, carried=carried)
            except Conflict as conflict:
                if time.monotonic() > deadline:
                    raise
                self._take(conflict.entry)
                time.sleep(backoff_s(attempt))
                attempt += 1
                continue
            self._take(entry)
            return entry

    def _take(self, entry: Entry) -> None:
        """Apply an entry that is known already, unless a concurrent refresh has applied it."""
        with self._lock:
            if entry.number == self._next:
                self._advance(entry)
                self._mark()
            due = self._next - self._snapshot_at >= SNAPSHOT_EVERY or self._tail_bytes > _MAX_TAIL_BYTES
            if self._encode and due:
                self._save()

    def _advance(self, entry: Entry) -> None:
        if entry.number and entry.previous != self._head:
            raise Damaged(
                f"{self.journal.path} entry {entry.number} follows digest {entry.previous[:12]}…, but entry "
                f"{entry.number - 1} has {self._head[:12]}…: one of them was changed"
            )
        try:
            self._state = self._step(self._state, entry)
        except KeyError as error:
            kind = entry.body.get("kind", entry.body.get("event"))
            raise NewerFormat(
                f"{self.journal.path} entry {entry.number}", f"{kind!r} ({error} is new)", "other kinds"
            ) from error
        self._next = entry.number + 1
        self._head = entry.digest
        if not entry.number:
            self._first = entry.digest
        if self._carry:
            self._tail.append(entry)
            self._tail_bytes += len(entry.to_bytes())

    def _save(self) -> None:
        """Store a snapshot; it only saves reads, so a failure is logged and ignored."""
        assert self._encode is not None  # noqa: S101 - the one caller checks it
        journal = self.journal
        stored = snapshot.Snapshot(self._schema, self._next, self._head, self._encode(self._state))
        try:
            journal.store.put(
                snapshot.key(journal.path), stored.to_bytes(journal.store.audit_keys, journal.path)
            )
        except RegistryError as error:
            _logger.warning("%s: snapshot at %d not kept: %s", journal.path, self._next, error)
            return
        self._snapshot_at = self._next
        self._tail, self._tail_bytes = [], 0

    def _catch_up(self) -> bool:
        """Apply the last entry and those it carries; False if they leave a gap after the current state."""
        last = self.journal.find_last(self._next)
        if last is None:
            return True
        found = self.journal.find_carrying(last)
        entries = [*found[1], found[0]] if found else []
        if not entries or entries[0].number > self._next:
            return False
        for entry in entries:
            if entry.number >= self._next:
                self._advance(entry)
        return True

    def _warm_up(self) -> None:
        """Load the snapshot before the first read of entries; one of another schema is left aside."""
        found = snapshot.load(self.journal.store, self.journal.path) if self._decode else None
        if found is not None and found.schema == self._schema and self._decode is not None:
            self._state = self._decode(found.state)
            self._next = self._snapshot_at = found.next
            self._head = found.head
            self.journal.trust(self._next - 1, self._head, authenticated=bool(found.mac))
