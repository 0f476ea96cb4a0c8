"""Topics of events: a journal each, and the keys of the latest events."""

from __future__ import annotations

from datetime import datetime, timedelta

from toque.functions.runtime.context import Context
from toque.registry.journal import Entry, Fold
from toque.registry.journal.journal import Journal

KEYS_KEPT = 1024
STORE_RESOLUTION = timedelta(seconds=1)


def topic_of(used: Context, topic: str) -> Fold[dict[str, int]]:
    """Open the topic called `topic`; its state maps the latest keys to event numbers."""
    journal = Journal(used.store, f"events/{topic}", actor=used.actor)
    return Fold(journal, {}, _fold_entry, encode=dict, decode=dict)


def _fold_entry(keys: dict[str, int], entry: Entry) -> dict[str, int]:
    key = entry.body["key"]
    if key is None:
        return keys
    kept = list(keys.items())[-(KEYS_KEPT - 1) :]
    return dict(kept) | {key: entry.number}


def first_since(fold: Fold[dict[str, int]], at: datetime, *, by_clock: datetime | None = None) -> int:
    """Find the number of the first event stored at or after `at`, both by the store's clock, or the next event's, by a few reads.

    by_clock: `at` by the clock of its machine, which orders events of the same time (S3 gives whole seconds) where their
    publisher's clock agrees with the store's.
    """
    fold.refresh()
    journal, low, high = fold.journal, 0, fold.next

    def stored_at(number: int) -> datetime | None:
        return journal.store.find_modified_at(journal.key(number))

    while low < high:
        middle = (low + high) // 2
        if (stored_at(middle) or at) < at:
            low = middle + 1
        else:
            high = middle
    while by_clock is not None and low < fold.next and stored_at(low) == at:
        published_at = journal.entry(low).at
        if published_at >= by_clock or abs(published_at - at) > STORE_RESOLUTION:
            break
        low += 1
    return low
