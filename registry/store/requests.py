"""Counts of the requests that this process makes to object stores, by part of the store, and as Prometheus series by outcome.

Each verb of a store counts what S3 charges for: an upload in parts counts its parts, a listing its pages. What delta-rs and
Arrow read and write in tables goes past the store's verbs, and is not counted; neither are retries.
"""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, NamedTuple

from prometheus_client import Counter, Histogram

from toque.registry.errors import AlreadyExists, Forbidden, InvalidInput, NotFound, RegistryError, Unavailable

Operation = Literal["get", "head", "put", "list", "delete"]
WRITES: frozenset[Operation] = frozenset({"put", "list"})
"""Operations that S3 charges as writes; deletions are free, and the others are reads."""
_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_OUTCOMES: dict[type[BaseException], str] = {
    AlreadyExists: "exists",
    Forbidden: "forbidden",
    InvalidInput: "invalid",
    NotFound: "ok",  # an object that is not there is an answer
    Unavailable: "unavailable",
}
OUTCOMES = Counter(
    "toque_store_requests",
    "Requests to the object store, by operation and outcome; those to tables, which deltalake and Arrow make, are not counted.",
    ("operation", "outcome"),
)
SECONDS = Histogram(
    "toque_store_request_seconds",
    "Seconds of a request to the object store, however it ended; without those to tables.",
    ("operation",),
    buckets=_BUCKETS_S,
)


class Charged(NamedTuple):
    """Number of requests by what S3 charges for: reads (GET, HEAD), and writes (PUT, POST, LIST)."""

    reads: int
    writes: int

    def since(self, earlier: Charged) -> Charged:
        """Requests made after those of an earlier count."""
        return Charged(self.reads - earlier.reads, self.writes - earlier.writes)


class RequestCounts:
    """Counts of requests since this process started; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[tuple[Operation, str]] = collections.Counter()

    def add(self, operation: Operation, key: str, requests: int = 1) -> None:
        """Count requests for `key`, whose first part names the part of the store."""
        part = key.partition("/")[0]
        with self._lock:
            self._counts[operation, part] += requests

    def by_part(self) -> dict[tuple[Operation, str], int]:
        """Requests by operation and first part of the key."""
        with self._lock:
            return dict(self._counts)

    def charged(self) -> Charged:
        """Requests so far by what S3 charges for."""
        counts = self.by_part()
        return Charged(
            reads=sum(n for (operation, _), n in counts.items() if operation in {"get", "head"}),
            writes=sum(n for (operation, _), n in counts.items() if operation in WRITES),
        )

    def forget(self) -> None:
        """Start again from zero, as a forked process does: its parent reports the counts so far."""
        self._lock = threading.Lock()
        self._counts.clear()


REQUESTS = RequestCounts()
"""Counts of this process."""

os.register_at_fork(after_in_child=REQUESTS.forget)


@contextmanager
def observed(
    operation: Operation, key: str, translated: AbstractContextManager[None], *, requests: int = 1
) -> Iterator[None]:
    """Count and time one request to a store. translated: raises its errors as the registry's."""
    REQUESTS.add(operation, key, requests)
    begun, outcome = time.perf_counter(), "failed"
    try:
        with translated:
            yield
        outcome = "ok"
    except RegistryError as error:
        outcome = _OUTCOMES.get(type(error), "failed")
        raise
    finally:
        OUTCOMES.labels(operation, outcome).inc()
        SECONDS.labels(operation).observe(time.perf_counter() - begun)
