"""An append-only journal of numbered entries, each created once and carrying the digest of the one before.

Appending at a number is a compare-and-swap: of two writers one wins and the other finds the winner's entry.
State is a pure fold of the entries, so the journal is at once the state, its history and the audit log.
Entries are never deleted: a stalled writer could then create one again and believe that it won.
Where the store has audit keys, each entry carries a MAC, and one that its holder did not write is refused.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from toque.registry.audit_keys import FILE_VARIABLE, KEY_VARIABLE
from toque.registry.errors import AlreadyExists, Damaged, InvalidInput, NotFound, Refused, Unavailable
from toque.registry.journal import heads
from toque.registry.journal.entry import NO_DIGEST, Conflict, Entry, normalise_body, parse_entry
from toque.registry.names import check_key
from toque.registry.times import Clock, utc_now

if TYPE_CHECKING:
    from toque.registry.store import ObjectStore


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
        self._authenticated = False  # whether the last entry known has a MAC
        self._adopted_count = 0  # entries that must be there, because they were when the store got its keys

    def as_actor(self, actor: str) -> Journal:
        """Return this journal, with what it knows of its last entries, appending in the name of another actor."""
        made = Journal(self.store, self.path, actor=actor, clock=self.clock)
        made._adopted_count = self._adopted_count  # of this class, as below
        for number, digest in self._digests.items():
            made.trust(number, digest, authenticated=self._authenticated)
        return made

    def append(self, body: Mapping[str, Any], *, at: int, carried: Sequence[Entry] = ()) -> Entry:
        """Append `body` as entry number `at`, which is one past the last; 1 write.

        A lost answer is settled by reading back and comparing the transaction id.
        carried: the entries right before it, repeated beside it for cold readers.
        Raises: Conflict if another writer's entry has the number; InvalidInput if `body` is not finite JSON or `at`
        leaves a gap; Refused without an audit key where the journal's entries have MACs; Unavailable if the store does
        not answer (the entry may or may not be stored).
        """
        entry = self._made(body, at)
        try:
            self.store.create(self.key(at), entry.to_bytes(carried))
        except (AlreadyExists, Unavailable) as error:
            stored = self._find_unchained(at)
            if stored is None:
                raise Unavailable(f"{self.path}: entry {at} was not written: {error}; try again") from error
            if stored.txn != entry.txn:
                raise Conflict(at, stored, path=self.path) from error
        self.store.announce(self.path)
        self.remember(entry)
        return entry

    def entry(self, number: int) -> Entry:
        """Get the entry of this number. Raises: NotFound; Damaged if its bytes do not give its digest."""
        found = self.find(number)
        if found is None:
            raise NotFound(f"{self.path} has no entry {number}")
        return found

    def find(self, number: int) -> Entry | None:
        """Find the entry `number`, or None; 1 read.

        Raises: Damaged if its bytes do not give its digest or, with audit keys, it does not carry their MAC.
        """
        found = self.find_carrying(number)
        return None if found is None else found[0]

    def find_carrying(self, number: int) -> tuple[Entry, list[Entry]] | None:
        """Find the entry `number` and those it carries, or None; 1 read. Raises: Damaged as `find`.

        The MAC of the entry vouches for those it carries, whose digests its own contains.
        """
        data = self.store.find(self.key(number))
        return None if data is None else self.parse(number, data)

    def parse(self, number: int, data: bytes) -> tuple[Entry, list[Entry]]:
        """Parse the bytes that were read of entry `number`, and check them; returns it and those it carries. Raises: Damaged as `find`."""
        entry, carried = parse_entry(data, f"{self.path} entry {number}")
        if entry.number != number:
            raise Damaged(f"{self.path} entry {number} holds entry {entry.number}")
        self._check_chain(entry)
        self._authenticate(entry)
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

    def newest_first(self) -> Iterator[Entry]:
        """Iterate over entries from the last to the first; one listing, and one read for each entry and those it carries.

        Raises: Damaged as `find_carrying`, or if an entry is missing or not the one that its successor names.
        """
        last, named = self.find_last(0), ""
        number = -1 if last is None else last
        while number >= 0:
            found = self.find_carrying(number)
            if found is None or (named and found[0].digest != named):
                raise Damaged(
                    f"{self.path} entry {number} is missing, or not the one that entry {number + 1} follows"
                )
            entry, carried = found
            yield entry
            yield from reversed(carried)
            oldest = carried[0] if carried else entry
            number, named = oldest.number - 1, oldest.previous

    def verify(self, on_entry: Callable[[Entry], None] | None = None) -> int:
        """Walk the whole hash chain; returns the number of entries.

        on_entry: called with each entry, once it is verified.
        Raises: Damaged, naming the first entry that is missing, changed or out of its chain, or that does not carry a
        MAC of the store's audit keys.
        """
        self._digests.clear()
        count = 0
        for entry in self.entries():
            count = entry.number + 1
            if on_entry:
                on_entry(entry)
        beyond = self.find_last(count)
        if beyond is not None and self.find(count) is None:
            raise Damaged(f"{self.path} entry {count} is missing, yet {beyond} is there")
        self.require_count(count)
        return count

    def require_count(self, count: int) -> None:
        """Check that the journal has not lost entries that it had when the store got its keys. Raises: Damaged."""
        if count < self._adopted_count:
            raise Damaged(
                f"{self.path} ends after {count} entries, but had {self._adopted_count} when the store got its keys"
            )

    def key(self, number: int) -> str:
        """Key under which entry `number` is stored."""
        if number < 0:
            raise InvalidInput(f"{self.path}: entry number {number} is negative")
        return f"{self.path}/entries/{number:08d}.json"

    def remember(self, entry: Entry) -> None:
        """Remember the digest of `entry`, which the next entry must name; only recent ones are kept."""
        self._authenticated = bool(entry.mac)
        self._digests[entry.number] = entry.digest
        self._digests.pop(entry.number - 8, None)

    def trust(self, number: int, digest: str, *, authenticated: bool = False) -> None:
        """Accept `digest` for entry `number`, as recorded by a snapshot or read by another process.

        authenticated: whether that is known to have a MAC.
        """
        self._authenticated = authenticated
        self._digests[number] = digest

    def _made(self, body: Mapping[str, Any], at: int) -> Entry:
        """Make the entry that `append` stores."""
        made = Entry(
            number=at,
            body=normalise_body(body, self.path),
            actor=self.actor,
            at=self.clock(),
            txn=uuid.uuid4().hex,
            previous=self._digest_before(at),
        ).with_digest()
        self._require_keys()
        return replace(made, mac=heads.entry_mac(self.store.audit_keys, self.path, made))

    def _require_keys(self) -> None:
        """Check that this process may append, with its keys or without any: others would take an entry without a MAC for damage. Raises: Refused."""
        if self.store.audit_keys:
            return
        if self._authenticated or heads.is_adopted(self.store):
            raise Refused(
                f"{self.path}: entries here carry the MAC of an audit key and this process has none; set "
                f"{FILE_VARIABLE} or {KEY_VARIABLE}, or pass open_store(url, audit_keys=…)"
            )

    def _find_unchained(self, number: int) -> Entry | None:
        """Read entry `number` without checking its chain: a conflict is expected here, not damage."""
        data = self.store.find(self.key(number))
        if data is None:
            return None
        entry = parse_entry(data, f"{self.path} entry {number}")[0]
        self._authenticate(entry)
        return entry

    def _authenticate(self, entry: Entry) -> None:
        head = heads.authenticate(self.store, self.path, entry)
        if head is not None:
            self._adopted_count = max(self._adopted_count, head.count)

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
