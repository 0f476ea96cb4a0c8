"""Samples of a set by their numbers, from shards that this process has open, and a cache of them on the machine's disk.

The cache is within a bound of bytes, shared by all processes of a user. A shard appears whole or not at all, under its digest.
Before one is fetched its bytes are reserved, and shards that nobody has open are evicted for them, those used longest ago first:
so the files never exceed the bound. Where all others are in use, the shard is held in memory. Locks are the system's, so a killed
process leaves none, and the next one removes what it had reserved.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cachetools import LRUCache

from toque.clusters import file_lock
from toque.functions.training_data.formats import (
    OpenShard,
    SetIndex,
    SetRef,
    Shard,
    ShardFormat,
    Values,
    open_shard,
    read_index,
    unpack_shard,
)
from toque.functions.training_data.order import EpochOrder, InOrder, Numbers, Shuffle, ShuffledOrder
from toque.registry import Damaged, ObjectStore
from toque.registry.store import private_folder, temporary_folder

DEFAULT_BYTES = 16 << 30
_LOCK, _FETCH, _BYTES = "lock", "fetch-", "bytes"
_FETCHERS = 4  # threads of a reader that fetch shards


@dataclass(frozen=True, slots=True)
class OpenSet:
    """A set of the store that can be read. shuffle: of its epochs; None for the order in which it is stored."""

    store: ObjectStore
    ref: SetRef
    index: SetIndex
    shuffle: Shuffle | None = Shuffle()  # noqa: RUF009 - frozen

    @classmethod
    def of(cls, store: ObjectStore, ref: SetRef, *, shuffle: Shuffle | None = Shuffle()) -> OpenSet:  # noqa: B008 - frozen
        """Open a set by its name and version. Raises: SampleSetError if there is none."""
        return cls(store, ref, read_index(store, ref), shuffle)

    @property
    def group(self) -> int:
        """Number of shards that are read at once."""
        sizes = [shard.open_bytes for shard in self.index.shards]
        return 1 if self.shuffle is None else self.shuffle.group_size(sizes)

    def order(self, epoch: int) -> EpochOrder:
        """Order of the samples of an epoch, from 0."""
        if self.shuffle is None:
            return InOrder(self.index.rows)
        rows = [shard.rows for shard in self.index.shards]
        return ShuffledOrder(rows, self.shuffle, epoch=epoch, group=self.group)


class SampleRows:
    """Reader of one set's samples by number. It may be used from several threads."""

    def __init__(self, opened: OpenSet, cache: ShardCache | None = None) -> None:
        self.set = opened
        self._cache = cache or ShardCache()
        self._starts = np.array(opened.index.starts, dtype=np.int64)
        self._open = _OpenShards(2 * opened.group + 1)  # a group, and the one that is fetched ahead
        self._lock = threading.Lock()
        self._fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="toque-shards")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, numbers: Numbers) -> dict[str, Values]:
        """Read the samples with these numbers, in this order, by field."""
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        found: dict[str, Values] = {}
        for shard in np.unique(shards).tolist() or [0]:  # no samples have their fields too
            places = np.flatnonzero(shards == shard)
            # Ascending, so that a mapped file is read forwards.
            places = places[np.argsort(numbers[places], kind="stable")]
            part = self._opened(shard).result().shard.take(numbers[places] - self._starts[shard])
            for name, values in part.items():
                if name not in found:
                    found[name] = np.empty((len(numbers), *values.shape[1:]), dtype=values.dtype)
                found[name][places] = values
        return found

    def fetch(self, numbers: Numbers) -> None:
        """Begin to fetch the shards of these samples, in this order, as many as a group has; does not wait."""
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        for shard in list(dict.fromkeys(shards.tolist()))[: self.set.group]:
            self._opened(shard)

    def close(self) -> None:
        """Close all shards, so that they may be evicted."""
        self._fetchers.shutdown(cancel_futures=True)
        with self._lock:
            while self._open:
                self._open.popitem()

    def _opened(self, shard: int) -> Future[CachedShard]:
        with self._lock:
            if shard not in self._open or _failed(self._open[shard]):
                index = self.set.index
                self._open[shard] = self._fetchers.submit(
                    self._cache.open, self.set.store, index.format, index.shards[shard]
                )
            return self._open[shard]


@dataclass(frozen=True, slots=True)
class CachedShard:
    """Opened shard of the cache. file: a descriptor whose lock keeps the shard from being evicted before `close`."""

    shard: OpenShard
    file: int

    def close(self) -> None:
        """Let the shard be evicted; what was read of it stays readable."""
        os.close(self.file)


class ShardCache:
    """Shards of any sets, each on this machine's disk once.

    folder: by default one of this user's temporary folder; most_bytes: of all its files.
    """

    def __init__(self, folder: Path | None = None, *, most_bytes: int = DEFAULT_BYTES) -> None:
        self.folder = private_folder(folder) if folder else temporary_folder("shards")
        self.most_bytes = most_bytes

    def open(self, store: ObjectStore, form: ShardFormat, shard: Shard) -> CachedShard:
        """Open a shard, fetched from the store if it is not here.

        Raises: Damaged if its bytes are not those of the index; NotFound if it is gone; OSError if the disk is full.
        """
        path = self.folder / f"{shard.digest}.{form}"
        needed = shard.open_bytes + (shard.size_bytes if form == "parquet" else 0)
        while True:
            file = _opened(path)
            if file is not None:
                return CachedShard(open_shard(form, path), file)
            with self._reserved(path, needed) as fetch:
                if fetch is None:
                    continue  # another process has fetched it
                if fetch == self.folder:
                    return _in_memory(store, form, shard)
                stored, unpacked = fetch / "stored", fetch / "unpacked"
                store.download(shard.key, stored)
                _check(shard, stored)
                unpack_shard(form, stored, unpacked)
                with self._locked():  # its bytes are counted once
                    unpacked.rename(path)
                    shutil.rmtree(fetch)

    def size_bytes(self) -> int:
        """Bytes of all shards that are here, and of those that are being fetched."""
        with self._locked():
            return sum(size for _, size, _ in self._files())

    @contextmanager
    def _reserved(self, path: Path, needed: int) -> Iterator[Path | None]:
        """Make the folder in which a shard is fetched, locked against other fetchers of it, with its bytes reserved.

        Yields None once another process has fetched it, well or not, and the cache's own folder if there is no room.
        """
        fetch = self.folder / f"{_FETCH}{path.name}"
        with self._locked():
            lock = None if path.exists() else _free(fetch)
            if lock is None and not path.exists() and self._make_room(needed):
                fetch.mkdir()
                (fetch / _BYTES).write_text(str(needed))
                own = os.open(fetch / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
                file_lock.lock(own)
            else:
                own = None
            no_room = lock is None and own is None and not path.exists()
        try:
            if lock is not None:
                file_lock.lock(lock, shared=True)
            yield fetch if own is not None else self.folder if no_room else None
        finally:
            if own is not None:
                shutil.rmtree(fetch, ignore_errors=True)
            for each in (own, lock):
                if each is not None:
                    os.close(each)

    def _make_room(self, needed: int) -> bool:
        """Evict what nobody has open until the bytes fit; whether they do."""
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total + needed <= self.most_bytes:
                break
            if _abandoned(path) if path.is_dir() else _evicted(path):
                total -= size
        return total + needed <= self.most_bytes

    def _files(self) -> list[tuple[int, int, Path]]:
        """List shards and those being fetched with time of last use (ns) and size."""
        found = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError, ValueError):
                state = path.stat()
                if path.name.startswith(_FETCH):
                    found.append((state.st_mtime_ns, int((path / _BYTES).read_text()), path))
                elif path.name != _LOCK:
                    found.append((state.st_mtime_ns, state.st_size, path))
        return found

    def _locked(self) -> AbstractContextManager[bool]:
        return file_lock.file_lock(self.folder / _LOCK)


def _opened(path: Path) -> int | None:
    """Open a shard that is here, locked against eviction, and mark it as used; None if it is absent."""
    while True:
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        file_lock.lock(file, shared=True)
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file).st_ino:
                os.utime(file)
                return file
        os.close(file)  # it was evicted meanwhile


def _evicted(path: Path) -> bool:
    """Remove a shard unless somebody has it open; whether it is gone."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        if free := file_lock.lock(file, wait=False):
            path.unlink()
    finally:
        os.close(file)
    return free


def _free(fetch: Path) -> int | None:
    """Remove what a killed process left of a fetch; returns a descriptor of its lock if one is at it still."""
    try:
        lock = os.open(fetch / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        shutil.rmtree(fetch, ignore_errors=True)
        return None
    if not file_lock.lock(lock, wait=False):
        return lock
    shutil.rmtree(fetch, ignore_errors=True)
    os.close(lock)
    return None


def _abandoned(fetch: Path) -> bool:
    """Remove what a killed process left of a fetch; whether it is gone."""
    lock = _free(fetch)
    if lock is not None:
        os.close(lock)
    return lock is None


def _check(shard: Shard, stored: Path) -> None:
    with stored.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shard.digest:
        raise Damaged(
            f"{shard.key} has the digest {found[:12]}…, its index says {shard.digest[:12]}…: write the set again"
        )


def _in_memory(store: ObjectStore, form: ShardFormat, shard: Shard) -> CachedShard:
    """Open a shard without the disk, in files of memory."""
    files = [os.memfd_create(shard.digest) for _ in range(2)]
    stored, unpacked = (Path(f"/proc/self/fd/{file}") for file in files)
    stored.write_bytes(store.get(shard.key))
    _check(shard, stored)
    if form == "parquet":
        unpack_shard(form, stored, unpacked)
    opened = open_shard(form, unpacked if form == "parquet" else stored)
    os.close(files[0])
    return CachedShard(opened, files[1])


class _OpenShards(LRUCache[int, Future[CachedShard]]):
    """Shards by number, closed when they are evicted."""

    def popitem(self) -> tuple[int, Future[CachedShard]]:
        shard, opened = super().popitem()
        _closed(opened)
        return shard, opened


def _failed(opened: Future[CachedShard]) -> bool:
    return opened.done() and not opened.cancelled() and opened.exception() is not None


def _closed(opened: Future[CachedShard]) -> None:
    def close(done: Future[Any]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().close()

    opened.add_done_callback(close)
