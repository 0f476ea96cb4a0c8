"""Tells a full disk from other errors, whichever library met it, and which disk it is."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["full_disk"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# What libraries that are not written in Python say: pyarrow, deltalake, Rust's standard library, SQLite.
_WORDS = ("no space left on device", "os error 28", "disk quota exceeded", "os error 122", "disk is full")
_MEGABYTE = 1 << 20


def full_disk(error: BaseException, home: Path) -> str | None:
    """Say in plain words that a disk is full, if an error or one behind it is of that; else None.

    home: the state folder, whose disk is named, beside that of temporary files, with what each has left.
    """
    if not any(_is_full(one) for one in _behind(error, set())):
        return None
    places = {"the state folder": home, "temporary files": Path(tempfile.gettempdir())}
    left = "; ".join(f"{what} in {path.absolute()}: {_left(path)}" for what, path in places.items())
    return (
        f"a disk is full, so this ended before its end ({left}). What was recorded before is complete: free some space, and "
        "run the command again"
    )


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error).lower()
    return any(words in text for words in _WORDS)


def _behind(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    """Yield an error with all that led to it, and the members of a group."""
    if id(error) in seen:
        return
    seen.add(id(error))
    yield error
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    for one in (error.__cause__, error.__context__, *parts):
        if one is not None:
            yield from _behind(one, seen)


def _left(path: Path) -> str:
    """What the disk of a folder has left, or of the nearest one above it that is there."""
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    return f"{shutil.disk_usage(there).free / _MEGABYTE:,.0f} MB left"
