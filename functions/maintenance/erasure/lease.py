"""Lease by which one erasure at a time rewrites a store's tables: two at once would undo each other's rewriting."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from functions.maintenance.errors import MaintenanceError
from functions.runtime.durable.heartbeat import repeated
from registry import AlreadyExists, ObjectStore, RegistryError, utc_now
from registry.times import from_text, to_text

BEAT_S = 10.0
STALE_S = 60.0
_FOLDER = "erasures/leases/"


@contextmanager
def only_erasure(store: ObjectStore) -> Iterator[None]:
    """Hold the lease of a store's erasures within the block; that of a killed process is taken over after a minute.

    Raises: MaintenanceError if another erasure is under way.
    """
    key, holder = _take(store), uuid.uuid4().hex

    def renew() -> None:
        _write(store, key, holder)

    try:
        with repeated(renew, every_s=BEAT_S, name="erasure-lease", tolerated=RegistryError):
            yield
    finally:
        _write(store, key, None)


def _take(store: ObjectStore) -> str:
    """Create the next lease, which one contender can; returns its key."""
    keys = list(store.list(_FOLDER))
    last = keys[-1] if keys else None
    held: dict[str, Any] = json.loads(store.get(last)) if last is not None else {"holder": None}
    if held["holder"] is not None and utc_now() - from_text(held["at"]) < timedelta(seconds=STALE_S):
        raise _busy()
    number = int(last.rpartition("/")[2].removesuffix(".json")) + 1 if last is not None else 0
    key = f"{_FOLDER}{number:08d}.json"
    try:
        store.create(key, _content("a new holder"))
    except AlreadyExists as error:
        raise _busy() from error
    for old in keys[:-1]:
        store.delete(old)
    return key


def _busy() -> MaintenanceError:
    return MaintenanceError(
        "another erasure is under way, or was killed less than a minute ago; yours is recorded: "
        "call finish_erasures then, or leave it to the nightly run"
    )


def _write(store: ObjectStore, key: str, holder: str | None) -> None:
    store.put(key, _content(holder))


def _content(holder: str | None) -> bytes:
    return json.dumps({"holder": holder, "at": to_text(utc_now())}).encode()
