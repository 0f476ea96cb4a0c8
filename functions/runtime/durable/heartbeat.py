"""Heartbeats of workers: an object that a worker rewrites a few times within its lease."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from functions.runtime.durable.record import Record
from registry.store import ObjectStore


def lease_key(invocation: str) -> str:
    """Return the key of the heartbeat of an invocation's worker."""
    return f"invocations/{invocation}/lease.json"


def write_heartbeat(store: ObjectStore, invocation: str, worker: str, at: datetime) -> None:
    """Write a heartbeat of `worker`, which renews its lease."""
    store.put(lease_key(invocation), json.dumps({"worker": worker, "at": at.isoformat()}).encode())


def lease_end(store: ObjectStore, record: Record, now: datetime) -> datetime:
    """Compute when the lease of a running invocation ends; one read, once its claim alone has expired."""
    if record.due > now:
        return record.due
    data = store.find(lease_key(record.id))
    heartbeat: dict[str, Any] = json.loads(data) if data else {}
    if heartbeat.get("worker") != record.worker:
        return record.due
    return max(record.due, datetime.fromisoformat(heartbeat["at"]) + timedelta(seconds=record.lease_s))
