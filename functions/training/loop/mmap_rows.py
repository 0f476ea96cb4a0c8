"""Rows that do not fit memory: encoded once into a file of this machine, and read from there in any order.

The store is read once, batch by batch, not once an epoch; the system's page cache keeps of the file what memory there is.
Any row can be asked for at any time, so every worker draws the same permutation as from memory and takes the same steps:
what is learnt, by however many workers and after whatever interruption, is to the last bit what it would be from memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_FILE, _LOCK, _DONE = "rows", "lock", "done.json"
_MEMORY_PART = 0.5  # a file below this part of memory is kept by the page cache, and needs no foresight
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Spool:
    """Rows of named arrays in a file. rows: the file, a field for each array; file: its open descriptor."""

    rows: npt.NDArray[Any]
    file: int

    @classmethod
    def of(cls, name: str, parts: Callable[[], Iterable[Arrays]], *, within: Path | None = None) -> Self:
        """The rows of `parts`, one after the other: written by the first who asks on this machine, and read by all.

        name: what tells these rows from others, of table, version, columns and encoding; parts: arrays by name, each with
        as many rows and all of one type and shape but for that; within: where folders are made (default: the temporary
        folder). It is removed when the last who reads it ends; of one that was killed it stays for whoever asks again.
        Raises: OSError if the disk is full; ValueError if there are no rows.
        """
        digest = hashlib.sha256(name.encode()).hexdigest()[:24]
        folder = (within or Path(tempfile.gettempdir())) / f"toque-rows-{os.getuid()}-{digest}"
        lock = _held(folder, parts)
        told = json.loads((folder / _DONE).read_text())
        kind = np.dtype([(field, form, tuple(shape)) for field, form, shape in told["kind"]])
        rows = np.memmap(folder / _FILE, dtype=kind, mode="r", shape=(told["rows"],))
        file = os.open(folder / _FILE, os.O_RDONLY)
        spool = cls(rows, file)
        weakref.finalize(spool, _leave, folder, lock, file)
        return spool

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """The rows with these numbers, in this order, as tensors by name."""
        order = rows.numpy()
        ascending = np.argsort(order, kind="stable")  # the disk is read forwards
        found = np.empty(len(order), dtype=self.rows.dtype)
        found[ascending] = self.rows[order[ascending]]
        return {name: torch.from_numpy(np.ascontiguousarray(found[name])) for name in found.dtype.names or ()}

    def soon(self, rows: Tensor) -> None:
        """Let the system read these rows ahead, if they are not all in memory anyway; does not wait for it."""
        if self.rows.nbytes < _MEMORY_PART * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            return
        size = self.rows.dtype.itemsize
        for row in np.sort(rows.numpy()).tolist():
            os.posix_fadvise(self.file, row * size, size, os.POSIX_FADV_WILLNEED)


def _held(folder: Path, parts: Callable[[], Iterable[Arrays]]) -> int:
    """The folder's lock, shared with its other readers, once all rows are there; whoever finds none writes them alone."""
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the last reader has just removed the folder
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if _same(folder, lock) and (folder / _DONE).exists():
                    return lock
                fcntl.flock(lock, fcntl.LOCK_EX)
                if _same(folder, lock) and not (folder / _DONE).exists():
                    _write(folder, parts())
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)


def _same(folder: Path, lock: int) -> bool:
    """Whether the lock is still that of the folder, which may have been removed and made again."""
    return (folder / _LOCK).stat().st_ino == os.fstat(lock).st_ino


def _write(folder: Path, parts: Iterable[Arrays]) -> None:
    """Write all rows, and only then that they are all there."""
    kind: np.dtype[Any] | None = None
    count = 0
    with (folder / _FILE).open("wb") as file:
        for part in parts:
            if kind is None:
                kind = np.dtype([(name, array.dtype, array.shape[1:]) for name, array in part.items()])
            rows = np.empty(len(next(iter(part.values()))), dtype=kind)
            for name, array in part.items():
                rows[name] = array
            file.write(rows.tobytes())
            count += len(rows)
        file.flush()
        os.fsync(file.fileno())
    if kind is None or count == 0:
        raise ValueError(f"{folder}: there are no rows to write")
    fields = [[name, kind[name].base.str, list(kind[name].shape)] for name in kind.names or ()]
    done = folder / f"{_DONE}.new"
    done.write_text(json.dumps({"rows": count, "kind": fields}))
    done.rename(folder / _DONE)


def _leave(folder: Path, lock: int, file: int) -> None:
    os.close(file)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # another still reads it
    else:
        shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
