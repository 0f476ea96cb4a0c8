"""Content-addressed files, named by their SHA-256, uploaded in parallel and checked on every read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from toque.registry.errors import Damaged, InvalidInput, NotFound

if TYPE_CHECKING:
    from toque.registry.store.object_store import ObjectStore, Progress

T = TypeVar("T")
R = TypeVar("R")
_PARALLEL = 8


class Blob(BaseModel):
    """Stored content of one file, by SHA-256 (hex) and size in bytes.

    generation: how often garbage had been collected when it was stored; part of its key.
    """

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    generation: int = Field(default=0, ge=0)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A local file to store, with its digest, size and time of last change."""

    path: Path
    sha256: str
    size: int
    mtime_ns: int


class Blobs:
    """Blobs stored below `prefix` in `store`, by generation and digest."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def key(self, blob: Blob) -> str:
        """Key under which `blob` is stored."""
        return f"{self._prefix}/{blob.generation:08d}/{blob.sha256}"

    def upload(
        self, files: Iterable[LocalFile], *, generation: int, on_progress: Progress | None = None
    ) -> dict[str, Blob]:
        """Store files in parallel, 1 write each (large ones in parts); returns digest -> blob.

        on_progress: called with the bytes of each piece as it is stored.
        Raises: InvalidInput if a file changed since it was read first.
        """

        def upload_one(file: LocalFile) -> Blob:
            blob = Blob(sha256=file.sha256, size=file.size, generation=generation)
            self._store.upload(self.key(blob), file.path, on_progress=on_progress)
            now = file.path.stat()
            if (now.st_size, now.st_mtime_ns) != (file.size, file.mtime_ns):
                raise InvalidInput(
                    f"{file.path} changed while it was stored; write it first, register it then"
                )
            return blob

        return {blob.sha256: blob for blob in _parallel(upload_one, list(files))}

    def download(self, files: Mapping[str, Blob], to: Path, *, on_progress: Progress | None = None) -> None:
        """Write files (path -> blob) below `to`; each appears only after its digest was checked.

        An existing file with the right content is kept.
        Raises: Damaged if stored bytes do not give their digest; NotFound if a blob is gone.
        """

        def download_one(item: tuple[str, Blob]) -> None:
            path, blob = to / item[0], item[1]
            if not (path.is_file() and path.stat().st_size == blob.size and sha256_of(path) == blob.sha256):
                fetch(self._store, self.key(blob), blob, path, on_progress=on_progress)
            elif on_progress:
                on_progress(blob.size)

        _parallel(download_one, list(files.items()))

    def check(self, blobs: Iterable[Blob], scratch: Path) -> int:
        """Read blobs and check their digests; returns the number of bytes.

        scratch: a folder for temporary files.
        Raises: Damaged, naming the first blob that is gone or changed.
        """

        def check_one(blob: Blob) -> int:
            path = scratch / blob.sha256
            fetch(self._store, self.key(blob), blob, path)
            path.unlink()
            return blob.size

        return sum(_parallel(check_one, sorted(blobs, key=lambda blob: blob.sha256)))


def fetch(
    store: ObjectStore, key: str, blob: Blob, path: Path, *, on_progress: Progress | None = None
) -> None:
    """Write the content stored under `key` to `path`, which appears only after its digest was checked.

    Raises: Damaged if the object is gone, or its bytes do not give the digest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{blob.sha256[:16]}.{uuid4().hex}")
    try:
        store.download(key, partial, on_progress=on_progress)
        found = sha256_of(partial)
        if found != blob.sha256:
            raise Damaged(f"blob {key} has bytes of digest {found[:12]}…: it was changed")
        partial.replace(path)
    except NotFound as error:
        raise Damaged(f"blob {key} is gone; restore it from a copy") from error
    finally:
        partial.unlink(missing_ok=True)


def scan(path: Path) -> dict[str, LocalFile]:
    """List the files at `path` (a folder, or one file) by relative path, with their digests.

    Raises: InvalidInput if there are no files, or one is a link or not a regular file.
    """
    if path.is_file() and not path.is_symlink():
        found = {path.name: path}
    elif path.is_dir():
        found = {
            item.relative_to(path).as_posix(): item
            for item in sorted(path.rglob("*"))
            if not _is_folder(item)
        }
    else:
        raise InvalidInput(f"path={str(path)!r} is neither a folder nor a file")
    if not found:
        raise InvalidInput(f"path={str(path)!r} has no files; a version needs at least one")
    for name, item in found.items():
        if item.is_symlink() or not item.is_file():
            raise InvalidInput(
                f"{name} in {str(path)!r} is a link or no regular file; copy its content there"
            )
    return dict(zip(found, _parallel(_local_file, list(found.values())), strict=True))


def sha256_of(path: Path) -> str:
    """Hash the file at `path` with SHA-256, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _local_file(path: Path) -> LocalFile:
    before = path.stat()
    return LocalFile(path, sha256_of(path), before.st_size, before.st_mtime_ns)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _parallel(work: Callable[[T], R], items: list[T]) -> list[R]:
    if len(items) <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(_PARALLEL, len(items), 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(work, items))
