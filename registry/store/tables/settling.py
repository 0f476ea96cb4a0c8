"""Durability of tables in a folder: Delta's library writes files and leaves it to the kernel when they reach the disk."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from toque.registry.errors import Unavailable

if TYPE_CHECKING:
    from toque.registry.store.object_store import ObjectStore

_FOLDER = "file://"


def settle(store: ObjectStore) -> None:
    """Return once all that the tables of a store were given survives a power cut; in S3 it does already.

    The whole file system is synced in one call: a commit has several files in several folders, and names those of commits before it,
    whose writers may have been killed before they settled them.
    Raises: Unavailable if the disk fails.
    """
    if not store.url.startswith(_FOLDER):
        return
    root = unquote(store.url.removeprefix(_FOLDER))
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
