"""Counts of the requests that this process makes to object stores, by operation and by part of the store.

Each verb of a store counts what S3 charges for: an upload in parts counts its parts, a listing its pages. What delta-rs and
Arrow read and write in tables goes past the store's verbs, and is not counted; neither are retries.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Literal, NamedTuple

Operation = Literal["get", "head", "put", "list", "delete"]
WRITES: frozenset[Operation] = frozenset({"put", "list"})
"""Operations that S3 charges as writes; deletions are free, and the others are reads."""


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
        self._counts: Counter[tuple[Operation, str]] = Counter()

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
