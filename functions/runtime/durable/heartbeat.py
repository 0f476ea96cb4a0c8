"""Heartbeats of workers: an object that a worker rewrites a few times within its lease."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

from functions.runtime.durable.record import Record
from registry.errors import RegistryError
from registry.store import ObjectStore


def lease_key(invocation: str) -> str:
    """Return the key of the heartbeat of an invocation's worker."""
    return f"invocations/{invocation}/lease.json"


def write_heartbeat(store: ObjectStore, invocation: str, worker: str, at: datetime) -> None:
    """Write a heartbeat of `worker`, which renews its lease."""
    store.put(lease_key(invocation), json.dumps({"worker": worker, "at": at.isoformat()}).encode())


@contextmanager
def repeated(
    write: Callable[[], None], *, every_s: float, name: str, tolerated: type[RegistryError]
) -> Iterator[None]:
    """Call `write` every `every_s` seconds in a thread of that name, from a first wait on until the block ends.

    tolerated: errors of the store after which it is tried again in time.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(every_s):
            with suppress(tolerated):
                write()

    thread = threading.Thread(target=beat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def lease_end(store: ObjectStore, record: Record, now: datetime) -> datetime:
    """Compute when the lease of a running invocation ends; one read, once its claim alone has expired."""
    if record.due > now:
        return record.due
    data = store.find(lease_key(record.id))
    heartbeat: dict[str, Any] = json.loads(data) if data else {}
    if heartbeat.get("worker") != record.worker:
        return record.due
    return max(record.due, datetime.fromisoformat(heartbeat["at"]) + timedelta(seconds=record.lease_s))
