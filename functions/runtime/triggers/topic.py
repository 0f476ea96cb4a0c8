"""Topics of events: a journal each, and the keys of the latest events."""

from __future__ import annotations

from datetime import datetime

from toque.functions.runtime.context import Context
from toque.registry.journal import Entry, Fold
from toque.registry.journal.journal import Journal

KEYS_KEPT = 1024


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


def first_since(fold: Fold[dict[str, int]], at: datetime) -> int:
    """Find the number of the first event published at or after `at`, or the next event's, by a few reads."""
    fold.refresh()
    low, high = 0, fold.next
    while low < high:
        middle = (low + high) // 2
        if fold.journal.entry(middle).at < at:
            low = middle + 1
        else:
            high = middle
    return low
