"""The object store: whole objects under keys, with the same few verbs for a folder and S3."""

from __future__ import annotations

import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from toque.registry.audit_keys import AuditKeys
from toque.registry.errors import NotFound
from toque.registry.names import check_key
from toque.registry.store.requests import Operation, observed

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
class ObjectStore(Protocol):  # so that a wrapper which passes on what it lacks is one too
    """Store of whole objects under keys like `models/flights/0001.json`; picklable, rebuilt from its url.

    `create` is the platform's only compare-and-swap. A read sees every write that ended before it began.
    Every verb raises InvalidInput for a malformed key, Forbidden where the credentials do not suffice and
    Unavailable where the store did not answer (the outcome of a write is then unknown).
    """

    _audit_keys: AuditKeys
    _announce: Announce | None

    def __init__(self, place: str, audit_keys: AuditKeys | None, announce: Announce | None) -> None:
        self._audit_keys = (audit_keys or AuditKeys()).at(place)
        self._announce = announce

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    @abstractmethod
    def url(self) -> str:
        """URL from which `open_store` rebuilds this store."""

    @abstractmethod
    def within(self, prefix: str) -> ObjectStore:
        """Open the part of this store below `prefix` as a store of its own. Raises: InvalidInput."""

    @property
    def audit_keys(self) -> AuditKeys:
        """Keys that authenticate the history in the store; they are not stored in it."""
        return self._audit_keys

    def announce(self, path: str) -> None:
        """Tell readers in other processes that the journal, table or report at `path` changed, if the store was given a way to."""
        if self._announce is not None:
            self._announce(self.url.partition("?")[0], path)

    def get(self, key: str) -> bytes:
        """Get the bytes of an object. Raises: NotFound."""
        data = self.find(key)
        if data is None:
            raise NotFound(f"{key} is not in {self.url}")
        return data

    def find(self, key: str) -> bytes | None:
        """Find the bytes of an object, or None if absent."""
        try:
            with self._request("get", key):
                return self._read(key)
        except NotFound:
            return None

    def find_range(self, key: str, start: int, size_bytes: int) -> bytes | None:
        """Find `size_bytes` of an object from byte `start` on, fewer where it ends before, or None if absent; nothing else is read."""
        if size_bytes < 1:
            return b"" if self.find_modified_at(key) else None
        try:
            with self._request("get", key):
                return self._read_range(key, start, size_bytes)
        except NotFound:
            return None

    def find_aged(self, key: str) -> Aged | None:
        """Find the bytes of an object and their age by the store's clock alone, to a second in S3, or None if absent."""
        try:
            with self._request("get", key):
                data, written_at, now = self._read_dated(key)
        except NotFound:
            return None
        return Aged(data, max(0.0, (now - written_at).total_seconds()))

    def create(self, key: str, data: bytes) -> None:
        """Store `data` if the key is free, atomically: of any number of callers one wins.

        A retry inside S3's client can meet its own success: AlreadyExists then means "someone, maybe you".
        Raises: AlreadyExists for the other callers.
        """
        with self._request("put", key):
            self._create(key, data)

    def put(self, key: str, data: bytes) -> None:
        """Store `data`, replacing an object of that key; a reader sees the old or the new one whole."""
        with self._request("put", key):
            self._put(key, data)

    def find_modified_at(self, key: str) -> datetime | None:
        """Find when an object was last written, by the store's clock (UTC), or None if absent."""
        try:
            with self._request("head", key):
                return self._modified_at(key)
        except NotFound:
            return None

    def delete(self, key: str) -> None:
        """Remove the object if it exists."""
        with self._request("delete", key):
            self._delete(key)

    @abstractmethod
    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Iterate over keys that start with `prefix` and come after `after`, in order of code points.

        SeaweedFS compares part by part instead ("a/b" before "a-b"): do not mix names that begin alike.
        """

    @abstractmethod
    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over objects as `list` does, with their sizes and times; one that goes meanwhile may be left out."""

    @abstractmethod
    def now(self) -> datetime:
        """Time by the store's clock, which gives objects their times; to the second in S3."""

    @abstractmethod
    def upload(self, key: str, source: Path | Stream, *, on_progress: Progress | None = None) -> None:
        """Stream the file or the bytes of `source` into the object, in parts where the store supports them.

        on_progress: called with the bytes moved since the call before; negative when a part is sent again.
        """

    def download(self, key: str, path: Path, *, on_progress: Progress | None = None) -> None:
        """Stream the object to `path`, which appears whole or not at all. Raises: NotFound.

        on_progress: as for `upload`.
        """
        partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}")
        try:
            with self._request("get", key):
                with partial.open("xb") as sink:
                    for chunk in self._chunks(key):
                        sink.write(chunk)
                        if on_progress:
                            on_progress(len(chunk))
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @abstractmethod
    def table_location(self, name: str) -> tuple[str, dict[str, str]]:
        """URI and storage options with which `deltalake` opens the table `name`."""

    def _request(self, operation: Operation, key: str, requests: int = 1) -> AbstractContextManager[None]:
        """Count and time a request about an object, and translate its errors. Raises: InvalidInput for a malformed key."""
        return observed(operation, check_key(key), self._errors(key), requests=requests)

    # What a store does within a request; reads raise NotFound, or return None where they may.

    @abstractmethod
    def _errors(self, key: str) -> AbstractContextManager[None]: ...

    @abstractmethod
    def _read(self, key: str) -> bytes | None: ...

    @abstractmethod
    def _read_range(self, key: str, start: int, size_bytes: int) -> bytes: ...

    @abstractmethod
    def _read_dated(self, key: str) -> tuple[bytes, datetime, datetime]:
        """Read an object, when it was written, and what time it is."""

    @abstractmethod
    def _chunks(self, key: str) -> Iterator[bytes]: ...

    @abstractmethod
    def _modified_at(self, key: str) -> datetime: ...

    @abstractmethod
    def _create(self, key: str, data: bytes) -> None: ...

    @abstractmethod
    def _put(self, key: str, data: bytes) -> None: ...

    @abstractmethod
    def _delete(self, key: str) -> None: ...


def clock_skew_s(store: ObjectStore, *, clock: Callable[[], float] = time.time) -> float:
    """Measure how many seconds this machine's clock is ahead of the store's; negative if it is behind; 1 request.

    Exact to half the duration of the request, and in S3 half a second more. clock: seconds since the epoch.
    Raises: Unavailable.
    """
    before = clock()
    at = store.now()
    cut_s = 0.0 if at.microsecond else 0.5  # S3 cuts times to whole seconds
    return (before + clock()) / 2 - at.timestamp() - cut_s
