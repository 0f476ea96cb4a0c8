"""The one memory: objects under keys, in a folder or in S3, behind the same few verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

Progress = Callable[[int], None]


@runtime_checkable
class ObjectStore(Protocol):
    """Whole objects under keys like `models/flights/0001.json`; picklable, rebuilt from its url.

    `create` is the platform's only compare-and-swap. A read sees every write that ended before it began.
    Every verb raises InvalidInput for a malformed key, Forbidden where the credentials do not suffice and
    Unavailable where the store did not answer (the outcome of a write is then unknown).
    """

    @property
    def url(self) -> str:
        """What `open_store` rebuilds this store from."""
        ...

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises: NotFound."""
        ...

    def find(self, key: str) -> bytes | None:
        """The object's bytes, or None if absent."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Store `data` if nothing is there, atomically: of any number of callers one wins.

        Raises: AlreadyExists for the others.
        """
        ...

    def put(self, key: str, data: bytes) -> None:
        """Store `data`, replacing what is there; a reader sees the old or the new whole."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; an absent one is fine."""
        ...

    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Keys that start with `prefix` and come after `after`, in order of code points.

        SeaweedFS compares part by part instead ("a/b" before "a-b"): do not mix names that begin alike.
        """
        ...

    def upload(self, key: str, path: Path, *, on_progress: Progress | None = None) -> None:
        """`put` the file at `path`, streaming, in parts where the store has them.

        on_progress: called with the bytes moved since the call before; negative when a part is sent again.
        """
        ...

    def download(self, key: str, path: Path, *, on_progress: Progress | None = None) -> None:
        """Write the object to `path`, streaming; `path` appears whole or not at all. Raises: NotFound.

        on_progress: as for `upload`.
        """
        ...

    def table_location(self, name: str) -> tuple[str, dict[str, str]]:
        """(uri, storage options) where `deltalake` keeps the table `name`."""
        ...
