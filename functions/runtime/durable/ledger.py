"""Ledger of durable invocations: accept, read, cancel, redrive, signal and list them.

An invocation is a journal of its own, `invocations/{id}`; accepting it is creating its first entry. Its id is
a digest of function and idempotency key, so the store itself answers whether it was accepted before.
"""

from __future__ import annotations

import hashlib
import sys
import time
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any

from toque.functions.runtime.durable.heartbeat import last_beat, usage_of, with_usage
from toque.functions.runtime.durable.queue import (
    ANNOUNCED_S,
    Note,
    QueueWriter,
    list_unfinished,
    matching,
    newest_first,
)
from toque.functions.runtime.durable.record import ENDED, Record, Status, fold_entry, initial_record
from toque.functions.runtime.durable.store_requests import all_at_once
from toque.functions.runtime.durable.values import get_value, put_value
from toque.functions.runtime.errors import KeyConflict, NotDead, UnknownInvocation
from toque.functions.runtime.receipt import Total, summed
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.registry.journal import Conflict, Entry, Fold
from toque.registry.journal.deletions import Deletions
from toque.registry.journal.entry import normalise_body
from toque.registry.journal.journal import Journal
from toque.registry.store.object_store import ObjectStore
from toque.registry.times import Clock, utc_now

PATH = "dead_letters"  # one journal, so that listing the dead does not read every invocation
LEASE_S = 15.0


@dataclass(frozen=True, slots=True)
class Origin:
    """Cause of an invocation: its parent, and the functions whose events led to it, oldest first.

    trace: position in a trace in which it was submitted, as a `traceparent`; None: nothing was traced.
    """

    parent: str | None = None
    chain: tuple[str, ...] = ()
    trace: str | None = None


@dataclass
class Ledger:
    """Ledger of all durable invocations in `store`; threads may share one.

    actor: who acts, recorded; clock: wall time, for leases and backoff; lease_s: how long a worker keeps its
    claim without a heartbeat.
    """

    store: ObjectStore
    actor: str
    clock: Clock = utc_now
    lease_s: float = LEASE_S
    dead_letters: DeadLetters = field(init=False)
    _queue: QueueWriter = field(init=False)
    _deletions: Deletions = field(init=False)

    def __post_init__(self) -> None:
        self._queue = QueueWriter(self.store, actor=self.actor, clock=self.clock)
        self.dead_letters = DeadLetters(self.store, actor=self.actor, clock=self.clock)
        self._deletions = Deletions(self.store, actor=self.actor, clock=self.clock)

    def submit(
        self,
        function: DeclaredFunction,
        arguments: Mapping[str, Any],
        *,
        key: str | None = None,
        origin: Origin = Origin(),  # frozen
    ) -> str:
        """Accept an invocation and return its id: two writes.

        arguments: validated. key: the same key and arguments give the same invocation, however often.
        Raises: KeyConflict if the key was used with other arguments.
        """
        invocation = invocation_id(function.name, key)
        stored = put_value(self.store, function.signature.dump(function.signature.with_defaults(arguments)))
        body = {
            "kind": "submitted",
            "function": function.name,
            "reference": function.reference,
            "arguments": stored,
            "key": key,
            "digest": function.digest,
            "parent": origin.parent,
            "chain": list(origin.chain),
        } | ({"trace": origin.trace} if origin.trace else {})
        try:
            self.journal(invocation).append(body, at=0)
        except Conflict as conflict:
            self._check_duplicate(invocation, body, conflict.entry)
            return invocation
        self._queue.add(Note(invocation))
        return invocation

    def read(self, invocation: str) -> Record:
        """Read the record of an invocation: one read for each entry. Raises: UnknownInvocation."""
        return self.follow(invocation).record

    def find_status(self, invocation: str) -> Status | None:
        """Find the status of an invocation; None if there is no such id."""
        record = self.find(invocation)
        return None if record is None else record.status

    def follow(self, invocation: str, first: Entry | None = None) -> FollowedRecord:
        """Read the record together with its journal, ready to append to; `first`: its first entry, if that was read.

        Raises: UnknownInvocation.
        """
        journal, first = self.journal(invocation), first or self.first_entry(invocation)
        followed = FollowedRecord(journal, initial_record(first, invocation), first.digest)
        followed.refresh()
        return followed

    def first_entry(self, invocation: str) -> Entry:
        """Read the first entry of an invocation. Raises: UnknownInvocation."""
        first = self.journal(invocation).find(0)
        if first is None:
            raise UnknownInvocation(
                f"no invocation {invocation!r} in {self.store.url}; check the id and the store"
            )
        return first

    def arguments(self, record: Record) -> dict[str, Any]:
        """Read the arguments of an invocation as a JSON object."""
        return dict(get_value(self.store, record.arguments))

    def cancel(self, invocation: str) -> Record:
        """Cancel an invocation that has not ended, killing its worker; returns the record after that."""
        followed = self.follow(invocation)
        beat = last_beat(self.store, invocation) if followed.record.status == "running" else None

        def decide(record: Record) -> dict[str, Any] | None:
            if record.ended:
                return None
            return with_usage({"kind": "cancelled"}, usage_of(beat, record.worker))

        self._command(followed, decide)
        return followed.record

    def redrive(self, invocation: str) -> Record:
        """Queue a dead or cancelled invocation again, its finished steps kept; one that was just redriven stays queued.

        Raises: NotDead if it is neither.
        """
        followed = self.follow(invocation)
        status = followed.record.status
        if status not in {"dead", "cancelled"} and not (status == "queued" and self._is_redriven(followed)):
            raise NotDead(f"{invocation} is {status}; only dead or cancelled ones are redriven")
        self._command(followed, lambda record: {"kind": "redriven"} if record.ended else None)
        self.dead_letters.remove(invocation, reason="redriven")
        return followed.record

    def _is_redriven(self, followed: FollowedRecord) -> bool:
        return bool(followed.journal.entry(followed.record.length - 1).body["kind"] == "redriven")

    def _command(self, followed: FollowedRecord, decide: Callable[[Record], dict[str, Any] | None]) -> None:
        """Append the entry of a command, announced to executors by a note before, so that neither is without the other.

        A note without its entry, whose writer died, changes nothing. A command that is repeated gives a note again.
        """
        begun, noted = time.monotonic(), -1

        def announcing(record: Record) -> dict[str, Any] | None:
            nonlocal noted
            body = decide(record)
            if body is not None and record.length != noted:  # another writer's entry is not the announced one
                self._queue.add(Note(record.id, after=record.length))
                noted = record.length
            return body

        appended = followed.append(announcing)
        if not appended or time.monotonic() - begun > ANNOUNCED_S / 2:  # executors may have ceased to look
            self._queue.add(Note(followed.record.id))

    def purge(self, invocation: str) -> Record:
        """Remove an invocation from the dead letters; its record stays.

        Raises: UnknownInvocation; NotDead if it is not among the dead letters.
        """
        record = self.read(invocation)
        if not self.dead_letters.remove(invocation, reason="purged"):
            raise NotDead(
                f"{invocation} is {record.status} and not among the dead letters; only dead letters are purged"
            )
        return record

    def delete(self, invocation: str) -> bool:
        """Delete an ended invocation with its arguments, result and logs; a later call with its key runs again.

        Large values are objects of their own and stay, since others may name them. One that a killed process deleted in
        part is deleted in full. Returns: False, with nothing deleted, if it has not ended.
        """
        with suppress(UnknownInvocation):
            if not self.read(invocation).ended:
                return False
        self.delete_ended([invocation])
        return True

    def delete_ended(self, invocations: Sequence[str]) -> None:
        """Delete invocations that have ended, as `delete`: together they take one look at the dead letters and one entry of the deletions."""
        for invocation in set(invocations).intersection(self.dead_letters.all() if invocations else ()):
            self.dead_letters.remove(invocation, reason="purged")
        self._deletions.record([self.journal(each).path for each in invocations])
        all_at_once([partial(self._delete_objects, each) for each in invocations])

    def _delete_objects(self, invocation: str) -> None:
        """Delete what is stored of an invocation; what its key may bring anew meanwhile stays."""
        keys, first = list(self.store.list(f"invocations/{invocation}/")), self.journal(invocation).key(0)
        self.store.delete(first)  # before the rest: without it there is no record that looks unfinished
        for key in keys:
            if key != first:
                self.store.delete(key)

    def complete_deletion(self, invocation: str) -> None:
        """Delete what a killed process left of an invocation whose first entry it had deleted; one request where it left nothing."""
        keys = list(self.store.list(f"invocations/{invocation}/"))
        if self.journal(invocation).key(0) not in keys:
            for key in keys:
                self.store.delete(key)

    def signal(self, invocation: str, name: str, value: Any = None) -> Record:
        """Send a workflow the signal `name` with a JSON value; one that comes before the wait is kept, and the same one counts once."""
        followed = self.follow(invocation)
        body = normalise_body({"kind": "signalled", "signal": name, "value": value}, f"signal {name}")

        def decide(record: Record) -> dict[str, Any] | None:
            sent = name in record.signals and record.signals[name] == body["value"]
            return None if record.ended or sent else body

        self._command(followed, decide)
        return followed.record

    def notify(self, invocation: str) -> None:
        """Queue a note that makes executors process an invocation."""
        self._queue.add(Note(invocation))

    def invocations(
        self,
        *,
        status: Status | None = None,
        function: str | None = None,
        after: str | None = None,
        scan: int | None = None,
        limit: int = 100,
    ) -> Iterator[Record]:
        """List at most `limit` invocations, newest first, of a status and a function if they are given.

        after: id of the last one that was listed before; scan: how many are looked at, at most. Of the dead, the newest is the one that died last. The dead and those
        that have not ended have an index; a listing of others reads from the newest until it has enough.
        Raises: UnknownInvocation if there is no `after`.
        """
        wanted = (
            (each, first)
            for each, first in islice(self._listed(status, after), scan)
            if first is None or function in {None, first.body["function"]}
        )

        def matches(record: Record) -> bool:
            return status in {None, record.status} and function in {None, record.function}

        return matching(wanted, self.find, matches, limit=limit)

    def unfinished(self) -> Iterator[Record]:
        """Iterate over the invocations that have not ended, newest first; those that have are not read."""
        return matching(self._listed("queued", None), self.find, lambda each: each.status not in ENDED)

    def _listed(self, status: Status | None, after: str | None) -> Iterable[tuple[str, Entry | None]]:
        """List invocations that may have a status, newest first, from the one after `after` on, with first entries that were read."""
        if status == "dead":
            dead = self.dead_letters.all()[::-1]
            rest = dead if after is None else dead[dead.index(after) + 1 :] if after in dead else ()
            return ((each, None) for each in rest)
        before = None if after is None else (self.first_entry(after).at, after)
        if status is None or status in ENDED:
            return newest_first(self.store, self._find_first, actor=self.actor, before=before)
        unfinished = list_unfinished(self.store, actor=self.actor)
        dated = [
            (first.at, each, first) for each in unfinished if (first := self._find_first(each)) is not None
        ]
        latest = sorted(dated, key=lambda each: each[:2], reverse=True)
        return ((each, first) for at, each, first in latest if before is None or (at, each) < before)

    def _find_first(self, invocation: str) -> Entry | None:
        """Find the first entry of an invocation that a queue names; None if it was deleted."""
        return self.journal(invocation).find(0)

    def submitted(self, before: datetime) -> Iterator[tuple[str, Entry]]:
        """Iterate over the invocations that were submitted before a time, and their first entries, newest first."""
        return newest_first(self.store, self._find_first, actor=self.actor, before=(before, ""))

    def find_all(self, invocations: Iterable[str]) -> Iterator[Record]:
        """Read the records of invocations in their order; those that were deleted are left out."""
        return (record for each in invocations if (record := self.find(each)) is not None)

    def costs(self) -> list[Total]:
        """Sum the receipts of all ended invocations by function, day and caller; reads every invocation."""
        ended = self.invocations(limit=sys.maxsize)
        return summed(Total.of(record.receipt) for record in ended if record.receipt)

    def find(self, invocation: str, first: Entry | None = None) -> Record | None:
        """Find the record of an invocation; None if it was deleted. first: as for `follow`."""
        try:
            return self.follow(invocation, first).record
        except UnknownInvocation:
            return None

    def journal(self, invocation: str) -> Journal:
        """Open the journal of an invocation."""
        return Journal(self.store, f"invocations/{invocation}", actor=self.actor, clock=self.clock)

    def _check_duplicate(self, invocation: str, body: dict[str, Any], first: Entry) -> None:
        if first.body["arguments"] != body["arguments"]:
            raise KeyConflict(
                f"{body['function']}: key {body['key']!r} was used with other arguments at {first.at.isoformat()}; "
                "use a new key for a new invocation"
            )
        if self.read(invocation).started_at is None:  # its writer may have died between its two writes
            self._queue.add(Note(invocation))


class FollowedRecord:
    """Record that follows its journal and is extended by compare-and-append. head: digest of its last entry."""

    def __init__(self, journal: Journal, record: Record, head: str) -> None:
        self.journal = journal
        self.record = record
        self.head = head
        journal.trust(record.length - 1, head)

    def refresh(self) -> Record:
        """Read the entries added since the last read; after a success there are none."""
        while self.record.status != "succeeded":
            entry = self.journal.find(self.record.length)
            if entry is None:
                break
            self._fold(entry)
        return self.record

    def append(self, decide: Any) -> bool:
        """Append the entry that `decide(record)` returns, deciding again if another writer was first.

        decide: pure; returns the entry's body, or None to append nothing. Returns: whether it appended.
        """
        while True:
            body = decide(self.record)
            if body is None:
                return False
            try:
                entry = self.journal.append(body, at=self.record.length)
            except Conflict:
                self.refresh()
                continue
            self._fold(entry)
            return True

    def _fold(self, entry: Entry) -> None:
        self.record, self.head = fold_entry(self.record, entry), entry.digest


class DeadLetters:
    """Index of the dead invocations in `store`, oldest first."""

    def __init__(self, store: ObjectStore, *, actor: str, clock: Clock = utc_now) -> None:
        journal = Journal(store, PATH, actor=actor, clock=clock)
        self._fold: Fold[tuple[str, ...]] = Fold(journal, (), _fold_entry, encode=list, decode=tuple)

    def all(self) -> tuple[str, ...]:
        """Return the ids of all dead invocations."""
        return self._fold.refresh()

    def add(self, invocation: str) -> None:
        """Add a dead invocation, unless the index has it."""
        self._fold.transact(lambda dead: None if invocation in dead else {"dead": invocation})

    def remove(self, invocation: str, *, reason: str) -> bool:
        """Remove an invocation, for the reason "redriven" or "purged". Returns: whether the index had it."""
        body = {"removed": invocation, "reason": reason}
        return self._fold.transact(lambda dead: body if invocation in dead else None) is not None


def _fold_entry(dead: tuple[str, ...], entry: Entry) -> tuple[str, ...]:
    if "dead" in entry.body:
        return (*dead, entry.body["dead"])
    return tuple(each for each in dead if each != entry.body["removed"])


def record_handover(followed: FollowedRecord, workers: Container[str], *, ledger: Ledger) -> None:
    """Record that a run was ended by its executor, so that another starts it again at once; it counts as no loss.

    workers: those of the executor; a run that another worker has, or that has ended, is left alone.
    """
    beat = last_beat(ledger.store, followed.record.id)

    def decide(record: Record) -> dict[str, Any] | None:
        if record.status != "running" or record.worker is None or record.worker not in workers:
            return None
        return with_usage({"kind": "preempted"}, usage_of(beat, record.worker))

    followed.append(decide)


def invocation_id(function: str, key: str | None) -> str:
    """Compute the id of the invocation of `function` with `key`; a random one without a key."""
    if key is None:
        return uuid.uuid4().hex
    return hashlib.sha256(f"{function}\n{key}".encode()).hexdigest()[:32]


def due_after(now: datetime, seconds: float) -> str:
    """Add seconds to `now`, in the form of an entry's due time."""
    return (now + timedelta(seconds=seconds)).isoformat()
