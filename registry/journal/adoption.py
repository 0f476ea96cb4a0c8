"""The record of what a store held when it got its audit keys: entries without a MAC are accepted up to there alone.

It names each journal with its number of entries and the digest of the last, under a MAC, so that nothing can be added to
that part or changed in it. Without the record, or beyond it, an entry without a MAC of the keys is damage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from toque.registry.errors import Damaged
from toque.registry.journal import snapshot
from toque.registry.journal.heads import Head, Heads, last_entries, parse_heads

if TYPE_CHECKING:
    from toque.registry.audit_keys import AuditKeys
    from toque.registry.journal.entry import Entry
    from toque.registry.store import ObjectStore
    from toque.registry.times import Clock

PATH = "audit/adopted.json"
_KIND = "adopted"
_ENTRY = "entry"
_read: WeakKeyDictionary[ObjectStore, Heads | None] = WeakKeyDictionary()


def entry_mac(keys: AuditKeys, path: str, entry: Entry) -> str:
    """Authenticate an entry of the journal at `path`; "" without keys."""
    return keys.mac(_ENTRY, path, entry.number, entry.digest) if keys else ""


def authenticate(store: ObjectStore, path: str, entry: Entry) -> Head | None:
    """Verify an entry's MAC; returns the adopted head if it has none and belongs to that part, else None.

    Raises: Damaged for any other entry, unless the store has no keys here.
    """
    keys = store.audit_keys
    problem = keys.problem(entry.mac, _ENTRY, path, entry.number, entry.digest) if keys else ""
    if not problem:
        return None
    head = adopted_head(store, path)
    if head is None or entry.number >= head.count:
        raise Damaged(
            f"{path} entry {entry.number} {problem}; if the store is older than its keys and you trust what is "
            "there, run `toque audit-keys adopt`"
        )
    if entry.number == head.count - 1 and entry.digest != head.digest:
        raise Damaged(
            f"{path} entry {entry.number} is not the one that was there when the store got its keys"
        )
    return head


def adopt(store: ObjectStore, clock: Clock) -> Heads:
    """Accept the journals of a store as they are, under its audit keys; of one adopted before, only what verifies.

    For a store that is older than its keys, and to retire a key. Nothing else should write meanwhile. It may be killed
    and repeated: what is accepted counts from the last write on, which is the record's.
    Raises: Damaged if a journal ends in an entry with a MAC that is not of the keys.
    """
    first = store.find(PATH) is None
    entries = last_entries(store)
    for path, entry in entries.items():
        if entry.mac or not first:
            authenticate(store, path, entry)
        snapshot.authenticate_again(store, path, trusted=first)
    heads = Heads(clock(), {path: Head(entry.number + 1, entry.digest) for path, entry in entries.items()})
    store.put(PATH, heads.to_bytes(store.audit_keys, _KIND, PATH))
    _read.pop(store, None)
    return heads


def is_adopted(store: ObjectStore) -> bool:
    """Whether the store has audit keys, as somebody without them can tell; 1 read for each store."""
    if store not in _read and store.find(PATH) is None:
        _read[store] = None
    return _read.get(store, True) is not None


def adopted_head(store: ObjectStore, path: str) -> Head | None:
    """Head that the journal had when the store got its keys; None if it had none. Raises: Damaged for a forged record."""
    known = _read.get(store)
    if known is None or path not in known.journals:  # it may have been written since
        known = _read[store] = find_adopted(store)
    return None if known is None else known.journals.get(path)


def find_adopted(store: ObjectStore) -> Heads | None:
    """Read the record of the store, or None. Raises: Damaged if it is not of the keys."""
    data = store.find(PATH)
    return None if data is None else parse_heads(data, store.audit_keys, _KIND, PATH, where=PATH)
