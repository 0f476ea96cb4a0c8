"""The object store protocol: whole objects under keys, with the same few verbs for a folder and S3."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from toque.registry.audit_keys import AuditKeys

Progress = Callable[[int], None]
Announce = Callable[[str, str], None]
"""Tells readers the store's address and the path of a journal that has a new entry; must be quick, raise nothing, and be picklable."""


class Aged(NamedTuple):
    """Bytes of an object, and seconds since they were written, by the store's clock."""

    data: bytes
    age_s: float


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Key, size and time of last change (UTC, by the store's clock) of a stored object."""

    key: str
    size_bytes: int
    modified_at: datetime


class Stream(Protocol):
    """Bytes that are read once, from the first to the last, and how many they are."""

    size_bytes: int

    def read(self, size: int = -1, /) -> bytes:
        """Read so many of the next bytes, or all that are left; fewer only where there are no more."""
        ...


@runtime_checkable
class ObjectStore(Protocol):
    """Store of whole objects under keys like `models/flights/0001.json`; picklable, rebuilt from its url.

    `create` is the platform's only compare-and-swap. A read sees every write that ended before it began.
    Every verb raises InvalidInput for a malformed key, Forbidden where the credentials do not suffice and
    Unavailable where the store did not answer (the outcome of a write is then unknown).
    """

    @property
    def url(self) -> str:
        """URL from which `open_store` rebuilds this store."""
        ...

    def within(self, prefix: str) -> ObjectStore:
        """Open the part of this store below `prefix` as a store of its own. Raises: InvalidInput."""
        ...

    @property
    def audit_keys(self) -> AuditKeys:
        """Keys that authenticate the history in the store; they are not stored in it."""
        ...

    def announce(self, path: str) -> None:
        """Tell readers in other processes that the journal, table or report at `path` changed, if the store was given a way to."""
        ...

    def get(self, key: str) -> bytes:
        """Get the bytes of an object. Raises: NotFound."""
        ...

    def find(self, key: str) -> bytes | None:
        """Find the bytes of an object, or None if absent."""
        ...

    def find_range(self, key: str, start: int, size_bytes: int) -> bytes | None:
        """Find `size_bytes` of an object from byte `start` on, fewer where it ends before, or None if absent; nothing else is read."""
        ...

    def find_aged(self, key: str) -> Aged | None:
        """Find the bytes of an object and their age by the store's clock alone, or None if absent."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Store `data` if the key is free, atomically: of any number of callers one wins.

        Raises: AlreadyExists for the other callers.
        """
        ...

    def put(self, key: str, data: bytes) -> None:
        """Store `data`, replacing an object of that key; a reader sees the old or the new one whole."""
        ...

    def find_modified_at(self, key: str) -> datetime | None:
        """Find when an object was last written, by the store's clock (UTC), or None if absent."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object if it exists."""
        ...

    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Iterate over keys that start with `prefix` and come after `after`, in order of code points.

        SeaweedFS compares part by part instead ("a/b" before "a-b"): do not mix names that begin alike.
        """
        ...

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over objects as `list` does, with their sizes and times; one that goes meanwhile may be left out."""
        ...

    def now(self) -> datetime:
        """Time by the store's clock, which gives objects their times; to the second in S3."""
        ...

    def upload(self, key: str, source: Path | Stream, *, on_progress: Progress | None = None) -> None:
        """Stream the file or the bytes of `source` into the object, in parts where the store supports them.

        on_progress: called with the bytes moved since the call before; negative when a part is sent again.
        """
        ...

    def download(self, key: str, path: Path, *, on_progress: Progress | None = None) -> None:
        """Stream the object to `path`, which appears whole or not at all. Raises: NotFound.

        on_progress: as for `upload`.
        """
        ...

    def table_location(self, name: str) -> tuple[str, dict[str, str]]:
        """URI and storage options with which `deltalake` opens the table `name`."""
        ...


def clock_skew_s(store: ObjectStore, *, clock: Callable[[], float] = time.time) -> float:
    """Measure how many seconds this machine's clock is ahead of the store's; negative if it is behind; 1 request.

    Exact to half the duration of the request, and in S3 half a second more. clock: seconds since the epoch.
    Raises: Unavailable.
    """
    before = clock()
    at = store.now()
    cut_s = 0.0 if at.microsecond else 0.5  # S3 cuts times to whole seconds
    return (before + clock()) / 2 - at.timestamp() - cut_s
