"""Heads of a platform's journals published to another store, where nobody can take them back.

Each is a new object that is never written again, so a bucket with object lock (or a folder that the platform's account
may only add to) keeps it as it was.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toque.registry.errors import Damaged
from toque.registry.journal.adoption import adopt
from toque.registry.journal.heads import Head, Heads, last_entries, parse_heads

if TYPE_CHECKING:
    from toque.registry.audit_keys import AuditKeys
    from toque.registry.store import ObjectStore
    from toque.registry.times import Clock

_FOLDER = "heads/"
_KIND = "published"
_WORKSPACES = "workspaces/"


@dataclass(frozen=True, slots=True)
class Part:
    """A store with journals in a platform's: the platform's own with prefix "", or that of a workspace."""

    prefix: str
    store: ObjectStore


def publish_heads(store: ObjectStore, target: ObjectStore, clock: Clock) -> str:
    """Write the head of every journal of a platform to `target`; returns the key of the new object there.

    store: the platform's, with its audit keys; one listing, and one read for each journal.
    Raises: InvalidInput without audit keys; Damaged if a last entry is not readable.
    """
    at = clock()
    journals = {
        f"{part.prefix}{path}": Head(entry.number + 1, entry.digest)
        for part in parts(store)
        for path, entry in last_entries(part.store).items()
    }
    key = f"{_FOLDER}{at:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}.json"
    target.create(key, Heads(at, journals).to_bytes(store.audit_keys.at(""), _KIND))
    return key


def read_published(target: ObjectStore, keys: AuditKeys) -> tuple[list[Heads], list[str]]:
    """Read all published heads, and what is wrong with those that are not of the keys."""
    heads, problems = [], []
    for key in target.list(_FOLDER):
        try:
            heads.append(parse_heads(target.get(key), keys.at(""), _KIND, where=f"{target.url} {key}"))
        except Damaged as error:
            problems.append(str(error))
    return heads, problems


def adopt_all(store: ObjectStore, clock: Clock) -> int:
    """Adopt a platform's store and those of its workspaces, as `adopt`; returns the number of journals."""
    return sum(len(adopt(part.store, clock).journals) for part in parts(store))


def parts(store: ObjectStore) -> Iterator[Part]:
    """Iterate over the platform's store and those of its workspaces; one listing for each."""
    yield Part("", store)
    after = ""
    while (key := next(store.list(_WORKSPACES, after=after), None)) is not None:
        prefix = "/".join(key.split("/")[:2])
        yield Part(f"{prefix}/", store.within(prefix))
        after = f"{prefix}0"  # the code point after "/"
