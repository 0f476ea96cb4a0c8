"""An append-only journal of numbered entries, each created once and carrying the digest of the one before.

Appending at a number is a compare-and-swap: of two writers one wins and the other finds the winner's entry.
State is a pure fold of the entries, so the journal is at once the state, its history and the audit log.
Entries are never deleted: a stalled writer could then create one again and believe that it won.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from registry.errors import AlreadyExists, Damaged, InvalidInput, NotFound, Unavailable
from registry.journal.conflict import Conflict
from registry.journal.entry import NO_DIGEST, Entry, normalise_body, parse_entry
from registry.names import check_key
from registry.times import Clock, utc_now

if TYPE_CHECKING:
    from registry.store import ObjectStore


class Journal:
    """Append-only, hash-chained journal at `path` in `store`.

    actor: recorded with every entry this object appends; clock: gives their times.
    """

    def __init__(self, store: ObjectStore, path: str, *, actor: str, clock: Clock = utc_now) -> None:
        if not actor or not actor.strip():
            raise InvalidInput(f"actor={actor!r}: every entry names who wrote it; pass a non-empty name")
        self.store = store
        self.path = check_key(path)
        self.actor = actor
        self.clock = clock
        self._digests: dict[int, str] = {}

    def append(self, body: Mapping[str, Any], *, at: int, carried: Sequence[Entry] = ()) -> Entry:
        """Append `body` as entry number `at`, which is one past the last; 1 write.

        A lost answer is settled by reading back and comparing the transaction id.
        carried: the entries right before it, repeated beside it for cold readers.
        Raises: Conflict if another writer's entry has the number; InvalidInput if `body` is not finite JSON or `at`
        leaves a gap; Unavailable if the store does not answer (the entry may or may not be stored).
        """
        entry = Entry(
            number=at,
            body=normalise_body(body, self.path),
            actor=self.actor,
            at=self.clock(),
            txn=uuid.uuid4().hex,
            previous=self._digest_before(at),
        ).sealed()
        try:
            self.store.create(self.key(at), entry.to_bytes(carried))
        except (AlreadyExists, Unavailable) as error:
            stored = self._find_unchained(at)
            if stored is None:
                raise Unavailable(f"{self.path}: entry {at} was not written: {error}; try again") from error
            if stored.txn != entry.txn:
                raise Conflict(at, stored, path=self.path) from error
        self.remember(entry)
        return entry

    def entry(self, number: int) -> Entry:
        """Get the entry of this number. Raises: NotFound; Damaged if its bytes do not give its digest."""
        found = self.find(number)
        if found is None:
            raise NotFound(f"{self.path} has no entry {number}")
        return found

    def find(self, number: int) -> Entry | None:
        """Find the entry `number`, or None; 1 read. Raises: Damaged if its bytes do not give its digest."""
        found = self.find_carrying(number)
        return None if found is None else found[0]

    def find_carrying(self, number: int) -> tuple[Entry, list[Entry]] | None:
        """Find the entry `number` and those it carries, or None; 1 read. Raises: Damaged as `find`."""
        data = self.store.find(self.key(number))
        if data is None:
            return None
        entry, carried = parse_entry(data, f"{self.path} entry {number}")
        if entry.number != number:
            raise Damaged(f"{self.path} entry {number} holds entry {entry.number}")
        self._check_chain(entry)
        self.remember(entry)
        return entry, carried

    def find_last(self, start: int) -> int | None:
        """Number of the last entry from `start` on, or None; 1 listing of the entries."""
        after = self.key(start - 1) if start else f"{self.path}/entries/"
        last = deque(self.store.list(f"{self.path}/entries/", after=after), maxlen=1)
        return int(last[0].rpartition("/")[2].removesuffix(".json")) if last else None

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """Iterate over entries from `start` to the last; one read each and one to find the end."""
        number = start
        while (entry := self.find(number)) is not None:
            yield entry
            number += 1

    def verify(self) -> int:
        """Walk the whole hash chain; returns the number of entries.

        Raises: Damaged, naming the first entry that is missing, changed or out of its chain.
        """
        self._digests.clear()
        count = sum(1 for _ in self.entries())
        beyond = self.find_last(count)
        if beyond is not None and self.find(count) is None:
            raise Damaged(f"{self.path} entry {count} is missing, yet {beyond} is there")
        return count

    def key(self, number: int) -> str:
        """Key under which entry `number` is stored."""
        if number < 0:
            raise InvalidInput(f"{self.path}: entry number {number} is negative")
        return f"{self.path}/entries/{number:08d}.json"

    def remember(self, entry: Entry) -> None:
        """Remember the digest of `entry`, which the next entry must name; only recent ones are kept."""
        self._digests[entry.number] = entry.digest
        self._digests.pop(entry.number - 8, None)

    def trust(self, number: int, digest: str) -> None:
        """Accept `digest` for entry `number`, as recorded by a snapshot."""
        self._digests[number] = digest

    def _find_unchained(self, number: int) -> Entry | None:
        """Read entry `number` without checking its chain: a conflict is expected here, not damage."""
        data = self.store.find(self.key(number))
        return None if data is None else parse_entry(data, f"{self.path} entry {number}")[0]

    def _digest_before(self, number: int) -> str:
        if number == 0:
            return NO_DIGEST
        known = self._digests.get(number - 1)
        if known is not None:
            return known
        before = self.find(number - 1)
        if before is None:
            raise InvalidInput(f"{self.path}: appending at {number} would leave a gap: no entry {number - 1}")
        return before.digest

    def _check_chain(self, entry: Entry) -> None:
        expected = NO_DIGEST if entry.number == 0 else self._digests.get(entry.number - 1)
        if expected is not None and entry.previous != expected:
            raise Damaged(
                f"{self.path} entry {entry.number} follows digest {entry.previous[:12]}…, but entry "
                f"{entry.number - 1} has {expected[:12]}…: one of them was changed"
            )
