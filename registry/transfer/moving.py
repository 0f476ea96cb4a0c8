"""Copies single objects, several at once with bounded memory, and compares what arrived with what was read."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from toque.registry.errors import AlreadyExists, Damaged, NotFound, Refused
from toque.registry.store import ObjectStore, Progress
from toque.registry.store.blobs import sha256_of
from toque.registry.transfer.inventory import Item, as_us
from toque.registry.transfer.kinds import Kind

WORKERS = 16
IN_MEMORY_BYTES = 4 << 20
_LARGE_AT_ONCE = 4
_BATCH = 256
T = TypeVar("T")


class SourceChangedError(Exception):
    """The source changed under the copy in a way that only another moment of it can settle."""


@dataclass
class Mover:
    """Copier of objects from `source` to `target`; those above 4 MiB go through files in `scratch`.

    copied, copied_bytes: what was written so far.
    """

    source: ObjectStore
    target: ObjectStore
    scratch: Path
    on_progress: Progress | None = None
    copied: int = 0
    copied_bytes: int = 0
    _large: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_LARGE_AT_ONCE))
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WORKERS))

    def close(self) -> None:
        """End the threads that copy."""
        self._pool.shutdown()

    def run(self, work: Callable[[T], int], items: Iterable[T]) -> None:
        """Run `work`, which returns the bytes it wrote, on each item; several at a time, few in memory."""
        for batch in batches(items, _BATCH):
            for size_bytes in self._pool.map(work, batch):
                self.copied += 1
                self.copied_bytes += size_bytes
                if self.on_progress:
                    self.on_progress(size_bytes)

    def each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Run `work` on each item, several at a time."""
        for batch in batches(items, _BATCH):
            list(self._pool.map(work, batch))

    def move(self, item: Item) -> int:
        """Copy an object as it was at the moment; returns its size. Raises: SourceChangedError; Damaged; Refused."""
        try:
            if item.size_bytes > IN_MEMORY_BYTES:
                with self._large:
                    return self._move_file(item)
            data = self.source.get(item.key)
        except NotFound as error:
            raise SourceChangedError(f"{item.key} went") from error
        if len(data) != item.size_bytes or (item.kind is Kind.COMMIT and self.changed(item)):
            raise SourceChangedError(f"{item.key} was rewritten")
        self.write(item, data)
        return len(data)

    def write(self, item: Item, data: bytes) -> None:
        """Write the bytes of an object and read them back. Raises: Damaged; Refused if an entry is there that differs."""
        if item.kind is Kind.ENTRY:
            try:
                self.target.create(item.key, data)
            except AlreadyExists as error:
                if self.target.get(item.key) != data:
                    raise Refused(
                        f"{item.key} in {self.target.url} is another one than in {self.source.url}: the target has a "
                        "history of its own; copy to an empty one"
                    ) from error
        else:
            self.target.put(item.key, data)
        if hashlib.sha256(self.target.get(item.key)).digest() != hashlib.sha256(data).digest():
            raise Damaged(f"{item.key} has other bytes in {self.target.url} than were written; copy again")

    def changed(self, item: Item) -> bool:
        """Whether an object was written again since it was listed."""
        at = self.source.find_modified_at(item.key)
        return at is None or as_us(at) != item.modified_us

    def _move_file(self, item: Item) -> int:
        path = self.scratch / uuid.uuid4().hex
        back = path.with_suffix(".back")
        try:
            self.source.download(item.key, path)
            size_bytes = path.stat().st_size
            if size_bytes != item.size_bytes:
                raise SourceChangedError(f"{item.key} was rewritten")
            self.target.upload(item.key, path)
            self.target.download(item.key, back)
            if sha256_of(back) != sha256_of(path):
                raise Damaged(
                    f"{item.key} has other bytes in {self.target.url} than were written; copy again"
                )
        finally:
            path.unlink(missing_ok=True)
            back.unlink(missing_ok=True)
        return size_bytes


def batches(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    """Split items into lists of at most `size`."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
