"""Heartbeats of workers: an object that a worker rewrites a few times within its lease."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, NamedTuple

from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.receipt import Usage
from toque.registry.errors import RegistryError
from toque.registry.journal import Journal
from toque.registry.store import ObjectStore

OVERDUE = 0.4  # of the lease, of which a heartbeat comes every third


def lease_key(invocation: str) -> str:
    """Return the key of the heartbeat of an invocation's worker."""
    return f"invocations/{invocation}/lease.json"


def write_heartbeat(
    store: ObjectStore,
    invocation: str,
    worker: str,
    at: datetime,
    *,
    node: str | None = None,
    waited_s: float = 0.0,
    usage: Usage | None = None,
) -> None:
    """Write a heartbeat of `worker`, which renews its lease.

    node: address of its Ray node, if it has one; waited_s: of its run so far, for room on the cluster; usage: what it has used so
    far, which is all that is known if it is killed.
    """
    beat: dict[str, Any] = {"worker": worker, "at": at.isoformat(), "node": node, "waited_s": waited_s}
    if usage is not None:
        beat["usage"] = usage.model_dump()
    store.put(lease_key(invocation), json.dumps(beat).encode())


@contextmanager
def repeated(
    write: Callable[[], None], *, every_s: float, name: str, tolerated: type[RegistryError]
) -> Iterator[None]:
    """Call `write` every `every_s` seconds in a thread of that name, from a first wait on until the block ends; at once again if it takes longer.

    tolerated: errors of the store after which it is tried again in time.
    """
    ended = threading.Event()

    def beat() -> None:
        wait_s = every_s
        while not ended.wait(wait_s):
            begun = time.monotonic()
            with suppress(tolerated):
                write()
            wait_s = max(0.0, every_s - (time.monotonic() - begun))

    thread = threading.Thread(target=beat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Sign(NamedTuple):
    """Last sign of life of a worker: its age by the store's clock, and the node that the worker is on, if known.

    waited_s: for how long its run had waited for room on the cluster; usage: what it had used, None if it did not say.
    """

    age_s: float
    node: str | None = None
    worker: str | None = None
    waited_s: float = 0.0
    usage: Usage | None = None


def last_beat(store: ObjectStore, invocation: str) -> Sign | None:
    """Find the last heartbeat of any worker of an invocation, or None before the first; one read."""
    found = store.find_aged(lease_key(invocation))
    if found is None:
        return None
    content = json.loads(found.data)
    usage = Usage(**content["usage"]) if "usage" in content else None
    return Sign(found.age_s, content.get("node"), content["worker"], content.get("waited_s", 0.0), usage)


def usage_of(beat: Sign | None, worker: str | None) -> Usage | None:
    """What a worker's run had used by its last heartbeat; None if it did not say, or another worker has written since."""
    return beat.usage if beat is not None and beat.worker == worker else None


def with_usage(body: dict[str, Any], usage: Usage | None) -> dict[str, Any]:
    """Add what a run has used, if that is known, to the entry that ends it."""
    return body if usage is None else body | {"usage": usage.model_dump()}


def last_sign(store: ObjectStore, record: Record) -> Sign | None:
    """Find the last sign of life of a running invocation's worker: its heartbeat, or its claim before the first.

    Timed by the store alone, as clocks of machines differ. A younger heartbeat of another worker, which lost the claim and
    does not know it yet, has overwritten this one's, and counts for it. None if the invocation was deleted.
    """
    beat = last_beat(store, record.id)
    if beat is not None and beat.worker == record.worker:
        return beat
    claim = store.find_aged(Journal(store, f"invocations/{record.id}", actor="reader").key(record.claim))
    if claim is None:
        return None
    age_s = claim.age_s if beat is None else min(claim.age_s, beat.age_s)
    return Sign(age_s, record.node, record.worker)


def node_is_lost(age_s: float, silence_s: float, lease_s: float) -> bool:
    """Whether a worker is lost with its node: both are silent, and one of them for longer than a node may stall.

    A node may stall for a third of the lease, 5 s of 15: until then either its checks or its heartbeats, which come every
    third, show that it has not stalled for longer. A busy worker on a node that answers, or a busy node whose worker writes,
    keeps its run.
    age_s: of the worker's last sign of life; silence_s: of its node, 0 unless it missed several checks.
    """
    if silence_s <= 0 or age_s <= OVERDUE * lease_s:
        return False
    return max(silence_s, age_s - lease_s / 3) >= lease_s / 3


def next_look_s(age_s: float, silence_s: float, lease_s: float) -> float:
    """Compute when to look again for a sign of life that is `age_s` old: when the next one is overdue, or the lease ends."""
    again_s = lease_s / 30 if silence_s else lease_s / 8
    return min(lease_s - age_s, max(OVERDUE * lease_s - age_s, again_s))


def lease_left_s(store: ObjectStore, record: Record) -> float:
    """Compute how long the lease of a running invocation still lasts; at most 0 if it has ended."""
    sign = last_sign(store, record)
    return 0.0 if sign is None else record.lease_s - sign.age_s
