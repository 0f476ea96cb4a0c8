"""Folder for the files that engines of one process read, which goes with the process even if that is killed."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toque.registry.store import temporary_folder

__all__ = ["scratch_folder", "sweep_scratch"]


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder in the machine's temporary folder for a `with` block; those that killed processes left are removed.

    Weights are large: a job or a door that is killed and started again must not leave a copy of them each time. Who lives holds a
    lock in its folder, which the kernel gives back when the process ends.
    """
    with _swept() as parent:
        own = parent / f"{os.getpid()}-{secrets.token_hex(4)}"
        own.mkdir(mode=0o700)
        lock = (own / "lock").open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)


def sweep_scratch() -> None:
    """Remove the folders that killed processes left, as of a platform that has been ended."""
    with _swept():
        pass


@contextmanager
def _swept() -> Iterator[Path]:
    """The parent of all folders, locked, with those of living processes alone in it."""
    parent = temporary_folder("engine-files")
    with _locked(parent / "lock"):
        for other in parent.iterdir():
            if other.is_dir() and not _is_held(other / "lock"):
                shutil.rmtree(other, ignore_errors=True)
        yield parent


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # its process was killed before it had one
        return False
    return False
