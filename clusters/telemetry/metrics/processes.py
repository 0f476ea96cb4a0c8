"""Processes that keep series in a node's folder: which live, told by a lock that ends with its holder.

A process holds a lock on a file that bears its name. The kernel lets go of it when the process dies, however it does, so
nobody compares process numbers, which are used again.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PUBLISHED = ".prom"
"""Suffix of files of gauges that a process replaces as a whole."""
_LOCK = ".lock"
_FOLDER_LOCK = "folder.flock"


@dataclass(frozen=True, slots=True)
class Member:
    """Process that keeps series in a folder. name: its own among all that ever were; role: like "gateway"."""

    name: str
    role: str
    pid: int
    handle: int = -1

    def leave_to_parent(self) -> None:
        """Close, in a forked child, what the parent holds."""
        os.close(self.handle)


@contextmanager
def folder_held(folder: Path, *, alone: bool) -> Iterator[bool]:
    """Hold a folder as one reader of several, waiting for it; or alone, without waiting: whether it is held.

    Who holds it alone may remove files of dead processes.
    """
    handle = os.open(folder / _FOLDER_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def join(folder: Path, role: str) -> Member:
    """Make this process known in a folder, until it ends."""
    name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
    with folder_held(folder, alone=False):  # nobody takes the file for a dead process's before it is locked
        handle = os.open(folder / f"{name}{_LOCK}", os.O_RDWR | os.O_CREAT, 0o600)
        os.write(handle, json.dumps({"role": role, "pid": os.getpid()}).encode())
        fcntl.flock(handle, fcntl.LOCK_EX)
    return Member(name, role, os.getpid(), handle)


def living(folder: Path) -> list[Member]:
    """List the processes that live; the folder must be held."""
    found = []
    for path in folder.glob(f"*{_LOCK}"):
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                content = json.loads(path.read_text() or "{}")
                found.append(
                    Member(path.name.removesuffix(_LOCK), content.get("role", ""), content.get("pid", 0))
                )
            finally:
                os.close(handle)
    return found


def forget(folder: Path, alive: set[str]) -> None:
    """Remove the locks, and what was published, of all others than `alive`; the folder must be held alone."""
    for path in (*folder.glob(f"*{_LOCK}"), *folder.glob(f"*{PUBLISHED}")):
        if path.stem.rpartition("_")[2] not in alive:
            path.unlink(missing_ok=True)
