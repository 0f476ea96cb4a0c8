"""Index of dead invocations in one journal, so that listing them does not read every invocation."""

from __future__ import annotations

from toque.registry.journal import Entry, Fold
from toque.registry.journal.journal import Journal
from toque.registry.store.object_store import ObjectStore
from toque.registry.times import Clock, utc_now

PATH = "dead_letters"


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
