"""An object store in a folder: each object is a file, made visible by one atomic step, never half written.

What a `kill -9` or a power cut leaves, line by line of `create`: before the link, a file in `.tmp/` that
no reader sees and `sweep` removes; after the link, the whole object (its bytes were on disk before its name).
"""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from toque.registry.errors import AlreadyExists, Forbidden, InvalidInput, NotFound, Unavailable
from toque.registry.names import check_key
from toque.registry.store.object_store import ObjectInfo, ObjectStore
from toque.registry.store.requests import REQUESTS

if TYPE_CHECKING:
    from toque.registry.audit_keys import AuditKeys
    from toque.registry.store.object_store import Announce, Progress, Stream

_TMP = ".tmp"
_CHUNK_BYTES = 1 << 20
_PRIVATE, _SHARED = 0o600, 0o660  # modes of files
_STALE_S = 24 * 3600.0
_SMALL_BYTES = 16 << 20
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class FolderStore(ObjectStore):
    """Object store of files below `root`, on a file system with hard links (any local one; NFS too).

    root: absolute path; created when the first object is written. audit_keys: authenticate the history in it. announce:
    called with the store's address and the path of each journal that it appends to. Whatever the
    umask, only its user may read and write what is created; a root that its group may write (`chmod 2770`) is shared,
    and all in it belongs to the group too.
    """

    def __init__(
        self, root: Path, *, audit_keys: AuditKeys | None = None, announce: Announce | None = None
    ) -> None:
        if not root.is_absolute():
            raise InvalidInput(f"store folder {str(root)!r} is not absolute; pass Path(...).resolve()")
        super().__init__(str(root), audit_keys, announce)
        self._root = root
        self._shared: bool | None = None  # known once the root exists

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(FolderStore, audit_keys=self._audit_keys, announce=self._announce), (self._root,)

    @property
    def url(self) -> str:
        """URL of the store, `file://` and the absolute path."""
        return f"file://{quote(str(self._root))}"

    @property
    def root(self) -> Path:
        """Folder that holds the objects."""
        return self._root

    def within(self, prefix: str) -> FolderStore:
        """Open the part of this store below `prefix` as a store of its own. Raises: InvalidInput."""
        place = self._root / check_key(prefix)
        return FolderStore(place, audit_keys=self._audit_keys, announce=self._announce)

    def _open(self, key: str) -> BinaryIO:
        try:
            return self._path(key).open("rb")
        except _ABSENT as error:
            raise NotFound(f"{key} is not in {self.url}") from error

    def _read(self, key: str) -> bytes | None:
        try:
            return self._path(key).read_bytes()
        except _ABSENT:  # no NotFound: an idle platform asks for entries that are not there, and an error costs half a request
            return None

    def _read_range(self, key: str, start: int, size_bytes: int) -> bytes:
        with self._open(key) as file:
            file.seek(start)
            return file.read(size_bytes)

    def _read_dated(self, key: str) -> tuple[bytes, datetime, datetime]:
        with self._open(key) as file:
            return file.read(), _modified_at(file), self.now()

    def _chunks(self, key: str) -> Iterator[bytes]:
        with self._open(key) as file:
            yield from _chunks_of(file)

    def _modified_at(self, key: str) -> datetime:
        with self._open(key) as file:
            return _modified_at(file)

    def _create(self, key: str, data: bytes) -> None:
        def link(temporary: Path, path: Path) -> None:
            try:
                os.link(temporary, path)
            except FileExistsError as error:
                raise AlreadyExists(f"{key} is already in {self.url}") from error

        with self._new_file(key, link) as file:
            file.write(data)

    def _put(self, key: str, data: bytes) -> None:
        with self._new_file(key, Path.replace) as file:
            file.write(data)

    @contextmanager
    def _new_file(self, key: str, name: Callable[[Path, Path], object]) -> Iterator[BinaryIO]:
        """Open a temporary file, which `name` makes that of `key` once its bytes are on the disk."""
        path = self._path(key)
        with self._temporary() as temporary:
            with _open_new(temporary, self._mode) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            changed = self._make_parent(path)
            name(temporary, path)
            _sync_folders(changed)

    def _delete(self, key: str) -> None:
        """Remove the file of a key. Folders stay: removing one could race with `create`."""
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except (IsADirectoryError, PermissionError):
            if not path.is_dir():
                raise

    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Iterate over keys that start with `prefix` and come after `after`, in order of code points."""
        folder = prefix.rpartition("/")[0]
        if folder:
            check_key(folder)
        REQUESTS.add("list", prefix)
        with self._errors(prefix):  # not timed, as it goes on while its caller works
            yield from self._walk(folder, prefix, after)

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over objects as `list` does, with their sizes and times; one that goes meanwhile is left out."""
        for key in self.list(prefix):
            with self._errors(key), suppress(FileNotFoundError, NotADirectoryError):
                status = self._path(key).stat()
                yield ObjectInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    def now(self) -> datetime:
        """Time by the file system's clock; by the machine's where the folder cannot be written."""
        try:
            with self._temporary() as temporary, _open_new(temporary, _PRIVATE) as file:
                return _modified_at(file)
        except OSError:
            return datetime.now(UTC)

    def upload(self, key: str, source: Path | Stream, *, on_progress: Progress | None = None) -> None:
        """Stream the file or the bytes of `source` into the object; `on_progress` gets the bytes of each piece."""
        with (
            self._request("put", key),
            source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream,
            self._new_file(key, Path.replace) as file,
        ):
            for chunk in _chunks_of(stream):
                file.write(chunk)
                if on_progress:
                    on_progress(len(chunk))

    def table_location(self, name: str) -> tuple[str, dict[str, str]]:
        """Path at which `deltalake` keeps the table `name`, with empty storage options."""
        return str(self._path(f"tables/{name}.delta")), {}

    def sweep(self, *, older_than_s: float = _STALE_S) -> int:
        """Remove files that killed writers left in `.tmp/`; returns how many.

        older_than_s: age by the file system's clock; must be longer than any upload takes.
        """
        removed = 0
        for path in (self._root / _TMP).glob("*"):
            try:
                if time.time() - path.stat().st_mtime > older_than_s:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:
                continue  # removed meanwhile by its writer or another sweep
        return removed

    def half_written(self, chosen: Callable[[bytes], bool], *, settled_s: float = 60.0) -> Sequence[Path]:
        """Remove chosen small files of killed writers from `.tmp/`; returns those that may still be written.

        chosen: tells by the bytes, of files up to 16 MiB; settled_s: how long a file must not have changed.
        """
        young = []
        for path in (self._root / _TMP).glob("*"):
            try:
                changed = path.stat()
                if changed.st_size > _SMALL_BYTES or not chosen(path.read_bytes()):
                    continue
                if time.time() - changed.st_mtime > settled_s:
                    path.unlink()
                else:
                    young.append(path)
            except FileNotFoundError:
                continue  # its writer has finished
        return young

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _make_parent(self, path: Path) -> Sequence[Path]:
        """Make the folder of `path`; returns the folders to sync, those that get a new name."""
        changed = [path.parent]
        while not changed[-1].is_dir():
            changed.append(changed[-1].parent)
        for made in reversed(changed[:-1]):
            self._make_folder(made)
        return changed

    def _make_folder(self, folder: Path) -> None:
        with suppress(FileExistsError):
            shared = self._mode == _SHARED
            folder.mkdir(mode=0o770 if shared else 0o700)
            if shared:
                folder.chmod(0o2770)  # new files get the group of the folder

    @property
    def _mode(self) -> int:
        """Mode of new files: their user's alone, or the group's too if the root is shared with it."""
        if self._shared is None:
            self._shared = bool(self._root.stat().st_mode & stat.S_IWGRP)
        return _SHARED if self._shared else _PRIVATE

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """Give a fresh path in `.tmp/`, on the same file system, and remove it afterwards."""
        folder = self._root / _TMP
        if not folder.is_dir():
            self._root.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self._root.mkdir(mode=0o700)
            self._make_folder(folder)
        path = folder / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Translate errors of the file system into the registry's errors."""
        try:
            yield
        except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
            raise InvalidInput(
                f"{key}: a part of this key is an object already, or the object a folder, in {self.url}"
            ) from error
        except PermissionError as error:
            raise Forbidden(
                f"{key}: no permission in {self.url}; check owner and mode of the folder"
            ) from error
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise InvalidInput(f"{key}: too long for the file system of {self.url}") from error
            raise Unavailable(f"{key}: {self.url} failed: {error}") from error

    def _walk(self, folder: str, prefix: str, after: str) -> Iterator[str]:
        try:
            entries = list(os.scandir(self._root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        base = f"{folder}/" if folder else ""
        names = sorted(base + entry.name + ("/" if entry.is_dir() else "") for entry in entries)
        for name in names:
            if name == f"{_TMP}/" or not (name.startswith(prefix) or prefix.startswith(name)):
                continue
            if name.endswith("/"):
                if name > after or after.startswith(name):
                    yield from self._walk(name[:-1], prefix, after)
            elif name > after:
                yield name


def _modified_at(file: BinaryIO) -> datetime:
    return datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)


def _chunks_of(stream: BinaryIO | Stream) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def _open_new(path: Path, mode: int) -> BinaryIO:
    """Open a new file for writing; the umask may not add to its mode, and may not take the group from a shared store."""
    file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, _PRIVATE))  # noqa: SIM115  # Path.open takes no opener
    if mode != _PRIVATE:
        os.fchmod(file.fileno(), mode)
    return file


def _sync_folders(folders: Sequence[Path]) -> None:
    """Make the names in them durable; several at a time, for each waits for the disk."""
    if len(folders) > 1:
        with suppress(RuntimeError):  # while the interpreter ends, which starts no thread: one by one then
            with ThreadPoolExecutor(len(folders)) as pool:
                list(pool.map(_sync_folder, folders))
            return
    for folder in folders:
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
