"""The one memory: objects under keys, in a folder or in S3, behind the same few verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from urllib.parse import parse_qs, unquote, urlsplit

from registry.errors import InvalidInput
from registry.store.folder import FolderStore

if TYPE_CHECKING:
    from registry.store.s3 import S3Store

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


def open_store(url: str) -> FolderStore | S3Store:
    """The store at `url`: `file:///absolute/path` or `s3://bucket/prefix?endpoint=http://…`.

    S3 credentials, region and endpoint come from where boto3 finds them (AWS_* and its files); `endpoint`
    in the url goes first.
    Raises: InvalidInput for any other url.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query, strict_parsing=bool(parts.query))
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return FolderStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc and set(query) <= {"endpoint"}:
        from registry.store.s3 import S3Store  # late: boto3 is a third of this room's import

        return S3Store(parts.netloc, unquote(parts.path).strip("/"), endpoint=query.get("endpoint", [""])[-1])
    raise InvalidInput(f"store url {url!r}: want 'file:///absolute/path' or 's3://bucket/prefix?endpoint=…'")
