"""Files of a Delta table: as an Arrow file system that stays usable, safe on disk, and with times as tables store them.

What deltalake makes for a table holds the credentials of that moment, so a reader of an hour would outlive them: each
process opens the file system by itself, and renews credentials. Delta's library leaves it to the kernel when files
reach the disk. Times are UTC to the microsecond, at every depth.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.fs import DeltaStorageHandler
from pyarrow import fs

from toque.registry.errors import Forbidden, InvalidInput, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from toque.registry.store.object_store import ObjectStore


# In what deltalake raises, of many classes, for a request that its S3 client gave up, and for one that was refused.
_REQUEST_FAILED, _REQUEST_REFUSED = "Error performing ", "lacked the necessary privileges"
_LAYOUT = re.compile(r"\x1b\[\d+m|↳")  # of Delta's kernel, which draws its errors as a tree in colours
_FILE_URL = "file://"
STORED_TIME: Final = pa.timestamp("us", "UTC")


@contextmanager
def request_errors(store: ObjectStore, name: str) -> Iterator[None]:
    """Translate what deltalake raises for a failed request of the table `name`; a commit that met another's stays what it is.

    Raises: Unavailable; Forbidden if the store refused the credentials.
    """
    try:
        yield
    except CommitFailedError:
        raise
    except (DeltaError, OSError) as error:
        said = " ".join(_LAYOUT.sub("", str(error)).split())
        if _REQUEST_REFUSED in said:
            raise Forbidden(
                f"table {name}: {store.url} refused the credentials; check the bucket's policy: {said}"
            ) from error
        if _REQUEST_FAILED in said:
            raise Unavailable(f"table {name}: {store.url} did not take a request: {said}") from error
        raise


class TableFiles(DeltaStorageHandler):
    """Handler of the files of the table `name`; paths begin at the table or, as Ray Data writes them, at the bucket.

    sizes: bytes of files, as far as known, which are then not asked for.
    """

    def __init__(self, store: ObjectStore, name: str, sizes: Mapping[str, int] | None = None) -> None:
        self.store, self.name, self._sizes = store, name, dict(sizes or {})
        address = urlsplit(store.table_location(name)[0])
        self._root = f"{address.netloc}{address.path}/"
        self._lock = threading.Lock()
        self._opened: tuple[dict[str, str], Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.store, self.name, self._sizes)

    @property
    def _handler(self) -> Any:  # type: ignore[override]  # an attribute there
        """Handler with credentials that are still good; the base class calls it for every verb."""
        uri, options = self.store.table_location(self.name)
        with self._lock:
            if self._opened is None or self._opened[0] != options:
                made = DeltaStorageHandler(uri, options or None, self._sizes or None)
                self._opened = options, made._handler  # noqa: SLF001 - of our own base class
            return self._opened[1]

    def equals(self, other: Any) -> bool:
        """Whether another handler is of the same table of the same store."""
        return isinstance(other, TableFiles) and (self.store.url, self.name) == (other.store.url, other.name)

    def open_output_stream(self, path: str, metadata: Any = None) -> Any:
        """Open a file of the table for writing, encrypted as the store says."""
        return pa.PythonFile(_Sink(self._handler.open_output_stream(path.removeprefix(self._root), metadata)))

    def create_dir(self, path: str, recursive: bool = True) -> None:  # noqa: FBT001, FBT002  # Arrow's signature
        """Create nothing, as folders of an object store exist by their files."""

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        """Look up sizes and kinds of files."""
        return super().get_file_info([path.removeprefix(self._root) for path in paths])


class _Sink:
    """Open file of deltalake, which takes bytes, where Arrow writes its buffers."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        return int(self._file.write(bytes(data)))


def file_system(store: ObjectStore, name: str, sizes: Mapping[str, int] | None = None) -> fs.FileSystem:
    """Open the files of the table `name`, in this process and any that the file system is sent to."""
    uri, options = store.table_location(name)
    if not options:
        # Arrow's own needs no interpreter: a read is a sixth to a half faster, and an Arrow thread that lets a file go
        # while the process ends does not abort it.
        return fs.SubTreeFileSystem(uri, fs.LocalFileSystem())
    return fs.PyFileSystem(TableFiles(store, name, sizes))


def settle(store: ObjectStore) -> None:
    """Return once all that the tables of a store were given survives a power cut; in S3 it does already.

    The whole file system is synced in one call: a commit has several files in several folders, and names those of commits before it,
    whose writers may have been killed before they settled them.
    Raises: Unavailable if the disk fails.
    """
    if not store.url.startswith(_FILE_URL):
        return
    root = unquote(store.url.removeprefix(_FILE_URL))
    try:
        descriptor = os.open(root, os.O_RDONLY)
        try:
            _sync_file_system(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return  # nothing was ever stored
    except OSError as error:
        raise Unavailable(f"{store.url}: tables could not be written to the disk: {error}") from error


def _sync_file_system(descriptor: int) -> None:
    sync = _syncfs()
    if sync is None:
        os.sync()
    elif sync(descriptor) != 0:
        number = ctypes.get_errno()
        if number != errno.ENOSYS:
            raise OSError(number, os.strerror(number))
        os.sync()


@cache
def _syncfs() -> Any:
    """The C library's call for one file system, which Python lacks; None where the C library lacks it too, as on macOS."""
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


def with_stored_times(data: pa.Table, name: str) -> pa.Table:
    """Cast timestamp columns of any unit and timezone to microseconds in UTC, the only ones that every Delta reader opens.

    Raises: InvalidInput for a time without a timezone, parts of a microsecond, or a time inside a list or struct that is
    not timestamp('us', 'UTC') already.
    """
    for index, field in enumerate(data.schema):
        if not pa.types.is_timestamp(field.type):
            _check_nested(field.type, name, field.name)
        elif field.type != STORED_TIME:
            column = _stored_time(data.column(index), name, field)
            data = data.set_column(index, pa.field(field.name, STORED_TIME, field.nullable), column)
    return data


def _stored_time(column: pa.ChunkedArray, name: str, field: pa.Field) -> pa.ChunkedArray:
    if field.type.tz is None:
        raise InvalidInput(
            f"table {name}: column {field.name!r} is {field.type} without a timezone; "
            "cast it to timestamp('us', 'UTC')"
        )
    try:
        return column.cast(STORED_TIME)
    except pa.ArrowInvalid as error:
        raise InvalidInput(
            f"table {name}: column {field.name!r} is {field.type} with times that microseconds cannot hold ({error}); "
            "round them to timestamp('us', 'UTC')"
        ) from error


def _check_nested(kind: pa.DataType, name: str, column: str) -> None:
    for index in range(kind.num_fields):
        inner = kind.field(index).type
        if pa.types.is_timestamp(inner) and inner != STORED_TIME:
            raise InvalidInput(
                f"table {name}: column {column!r} has times of type {inner} inside it; cast them to timestamp('us', 'UTC')"
            )
        _check_nested(inner, name, column)
