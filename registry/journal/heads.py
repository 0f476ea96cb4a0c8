"""Heads of journals: how many entries each has, and the digest of the last, authenticated together by one MAC.

Kept outside the store, heads show that a journal was cut or rewritten since. Kept in it, they are the record of what
the store held when it got its audit keys: entries without a MAC are accepted up to there alone, and nothing can be
added to that part or changed in it. Without the record, or beyond it, an entry without a MAC of the keys is damage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from toque.registry.errors import Damaged
from toque.registry.journal import snapshot
from toque.registry.journal.entry import Entry, parse_entry
from toque.registry.times import from_text, to_text

if TYPE_CHECKING:
    from toque.registry.audit_keys import AuditKeys
    from toque.registry.journal.entry import Entry
    from toque.registry.store import ObjectStore
    from toque.registry.times import Clock


_READERS = 16
_SKIPPED = (
    "tables/",
    "workspaces/",
    "checkpoints/",
)  # no history of this store is there, and the tables have many objects
PATH = "audit/adopted.json"  # of the record in the store
_ADOPTED = "adopted"
_ENTRY_KIND = "entry"
_known_heads: WeakKeyDictionary[ObjectStore, Heads | None] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Head:
    """Number of entries in a journal, and the digest of the last."""

    count: int
    digest: str


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads of all journals of a store at a moment, by the journal's path."""

    at: datetime
    journals: Mapping[str, Head]

    def to_bytes(self, keys: AuditKeys, kind: str, path: str = "") -> bytes:
        """Write the heads as JSON with a MAC, which says what `kind` they are and at which `path` they lie."""
        journals = {path: [head.count, head.digest] for path, head in sorted(self.journals.items())}
        content = {"at": to_text(self.at), "journals": journals}
        return json.dumps({**content, "mac": keys.mac(kind, path, _digest(content))}, indent=0).encode()


def parse_heads(data: bytes, keys: AuditKeys, kind: str, path: str = "", *, where: str) -> Heads:
    """Parse heads and verify their MAC. Raises: Damaged, naming `where`."""
    try:
        content: dict[str, Any] = json.loads(data)
        mac = str(content.pop("mac"))
        journals = {
            name: Head(int(count), str(digest)) for name, (count, digest) in content["journals"].items()
        }
        heads = Heads(from_text(content["at"]), journals)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{where} does not hold heads of journals: {error!r}") from error
    problem = keys.problem(mac, kind, path, _digest(content))
    if problem:
        raise Damaged(f"{where} {problem}")
    return heads


def journal_counts(store: ObjectStore) -> dict[str, int]:
    """List the journals of a store, those of its workspaces left out, with the number of entries in each; 0 where only a snapshot is left."""
    counts: dict[str, int] = {}
    for key in _keys(store):
        path, _, name = key.rpartition("/entries/")
        if path and name.removesuffix(".json").isdigit():
            counts[path] = max(counts.get(path, 0), int(name.removesuffix(".json")) + 1)
        elif key.endswith(snapshot.SUFFIX):
            counts.setdefault(key.removesuffix(snapshot.SUFFIX), 0)
    return counts


def last_entries(store: ObjectStore) -> dict[str, Entry]:
    """Read the last entry of every journal of a store, unverified; one listing and one read for each journal.

    Raises: Damaged if one is not readable.
    """

    def last(item: tuple[str, int]) -> tuple[str, Entry]:
        path, count = item
        key = f"{path}/entries/{count - 1:08d}.json"
        return path, parse_entry(store.get(key), f"{path} entry {count - 1}")[0]

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(pool.map(last, [item for item in journal_counts(store).items() if item[1]]))


def _keys(store: ObjectStore) -> Iterator[str]:
    """Iterate over the keys of a store, passing over the folders without journals of its own."""
    after = ""
    while True:
        for key in store.list("", after=after):
            skipped = next((folder for folder in _SKIPPED if key.startswith(folder)), None)
            if skipped:
                after = f"{skipped[:-1]}0"  # the code point after "/"
                break
            yield key
        else:
            return


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def entry_mac(keys: AuditKeys, path: str, entry: Entry) -> str:
    """Authenticate an entry of the journal at `path`; "" without keys."""
    return keys.mac(_ENTRY_KIND, path, entry.number, entry.digest) if keys else ""


def authenticate(store: ObjectStore, path: str, entry: Entry) -> Head | None:
    """Verify an entry's MAC; returns the adopted head if it has none and belongs to that part, else None.

    Raises: Damaged for any other entry, unless the store has no keys here.
    """
    keys = store.audit_keys
    problem = keys.problem(entry.mac, _ENTRY_KIND, path, entry.number, entry.digest) if keys else ""
    if not problem:
        return None
    head = adopted_head(store, path)
    if head is None or entry.number >= head.count:
        raise Damaged(
            f"{path} entry {entry.number} {problem}; if the store is older than its keys and you trust what is "
            "there, run `toque store keys adopt`"
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
    store.put(PATH, heads.to_bytes(store.audit_keys, _ADOPTED, PATH))
    _known_heads.pop(store, None)
    return heads


def is_adopted(store: ObjectStore) -> bool:
    """Whether the store has audit keys, as somebody without them can tell; 1 read for each store."""
    if store not in _known_heads and store.find(PATH) is None:
        _known_heads[store] = None
    return _known_heads.get(store, True) is not None


def adopted_head(store: ObjectStore, path: str) -> Head | None:
    """Head that the journal had when the store got its keys; None if it had none. Raises: Damaged for a forged record."""
    known = _known_heads.get(store)
    if known is None or path not in known.journals:  # it may have been written since
        known = _known_heads[store] = find_adopted(store)
    return None if known is None else known.journals.get(path)


def find_adopted(store: ObjectStore) -> Heads | None:
    """Read the record of the store, or None. Raises: Damaged if it is not of the keys."""
    data = store.find(PATH)
    return None if data is None else parse_heads(data, store.audit_keys, _ADOPTED, PATH, where=PATH)
