"""What two stores hold, by kinds of objects, and the copying of single objects from one to the other.

Lists are compared on disk: a store may have more keys than memory has room for. A kind, told from the key, says what may
happen to an object while its store is copied. Several objects are copied at once with bounded memory, and what arrived
is compared with what was read.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TypeVar

from toque.registry.errors import AlreadyExists, Damaged, NotFound, Refused
from toque.registry.store import ObjectInfo, ObjectStore, Progress
from toque.registry.store.blobs import sha256_of
from toque.registry.times import epoch_us

LARGE_BYTES = 16 << 20
"""Size from which an object counts as content: what is rewritten in place is small."""

_WORKSPACE = re.compile(r"workspaces/[^/]+/")
_ENTRY = re.compile(r"(.+)/entries/([0-9]{8,})\.json\Z")
_COMMIT = re.compile(r"(tables/.+\.delta)/_delta_log/([0-9]{20})\.json\Z")
_LEFT_OUT = re.compile(
    r"(?:leases|leaders|probes|copies|erasures/leases|console)/|invocations/[^/]+/lease\.json\Z"
)
_CONTENT = re.compile(
    r"tables/.+\.parquet\Z|models/[^/]+/(?:blobs|signatures)/|values/|runs/[^/]+/(?:run\.json\Z|segments/|artifacts/)"
)
WORKERS = 16
IN_MEMORY_BYTES = 4 << 20
_LARGE_AT_ONCE = 4
_ITEMS_AT_ONCE = 256
T = TypeVar("T")


class Kind(StrEnum):
    """Kind of a stored object.

    LEFT_OUT: belongs to running processes, such as a lease, to a session of the console, or to a copy itself. CONTENT: written once, before what
    names it. ENTRY, COMMIT: of a journal and of a table's log; they name what was written before. STATE: rewritten in
    place, such as a cursor.
    """

    LEFT_OUT = "left-out"
    CONTENT = "content"
    ENTRY = "entry"
    COMMIT = "commit"
    STATE = "state"


def kind_of(key: str, size_bytes: int = 0) -> Kind:
    """Tell the kind of the object under `key`; one that is large is content."""
    inside = _inside(key)
    if _LEFT_OUT.match(inside):
        return Kind.LEFT_OUT
    if _ENTRY.match(inside):
        return Kind.ENTRY
    if _COMMIT.match(inside):
        return Kind.COMMIT
    if size_bytes > LARGE_BYTES or _CONTENT.match(inside):
        return Kind.CONTENT
    return Kind.STATE


def numbered(key: str) -> tuple[str, int]:
    """Split the key of an entry or commit into the journal or table it belongs to, and its number."""
    inside = _inside(key)
    found = _ENTRY.match(inside) or _COMMIT.match(inside)
    if found is None:
        raise ValueError(f"{key} is neither an entry nor a commit")
    return key[: len(key) - len(inside)] + found.group(1), int(found.group(2))


def is_deletable(series: str) -> bool:
    """Whether a journal may be deleted, which retention does with those of invocations."""
    return _inside(series).startswith("invocations/")


def _inside(key: str) -> str:
    found = _WORKSPACE.match(key)
    return key[found.end() :] if found else key


@dataclass(frozen=True, slots=True)
class Item:
    """Object that is to be copied. modified_us: microseconds since 1970, by the source's clock."""

    key: str
    size_bytes: int
    modified_us: int
    kind: Kind


def as_us(at: datetime | None) -> int:
    """Convert a time to microseconds since 1970; 0 for None."""
    return 0 if at is None else epoch_us(at)


_SCHEMA = """
CREATE TABLE source (
    key TEXT PRIMARY KEY, size INTEGER, modified INTEGER, kind TEXT, series TEXT, number INTEGER, meant INTEGER
) WITHOUT ROWID;
CREATE TABLE target (key TEXT PRIMARY KEY, size INTEGER, kind TEXT, series TEXT) WITHOUT ROWID;
"""


class Inventory:
    """What a source and a target hold, in a file below `scratch`."""

    def __init__(self, scratch: Path) -> None:
        path = scratch / "inventory.sqlite"
        path.unlink(missing_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {_SCHEMA}")

    def clear(self) -> None:
        """Forget the listings of both stores."""
        self._db.execute("DELETE FROM source")
        self._db.execute("DELETE FROM target")

    def close(self) -> None:
        """Close the file of the lists."""
        self._db.close()

    def read_source(self, found: Iterable[ObjectInfo], *, until: datetime, without: frozenset[str]) -> None:
        """Take up the listing of the source; `meant` is what was there at the moment `until`.

        without: keys that are not taken up at all.
        """
        rows = (
            _source_row(info, as_us(until))
            for info in found
            if info.key not in without and kind_of(info.key) is not Kind.LEFT_OUT
        )
        self._insert("source", 7, rows)
        half_deleted = "SELECT series FROM source WHERE kind = 'entry' GROUP BY series HAVING min(number) > 0"
        self._db.execute(f"UPDATE source SET meant = 0 WHERE kind = 'entry' AND series IN ({half_deleted})")  # noqa: S608  # both are constants

    def read_target(self, found: Iterable[ObjectInfo]) -> None:
        """Take up the listing of the target, instead of one before."""
        self._db.execute("DELETE FROM target")
        rows = ((i.key, i.size_bytes, kind, _series(i.key, kind)) for i in found if (kind := kind_of(i.key)))
        self._insert("target", 4, (row for row in rows if row[2] is not Kind.LEFT_OUT))

    def find_gap(self) -> str | None:
        """Find a journal or table whose meant entries are not consecutive: something was rewritten meanwhile."""
        return self._one(
            "SELECT series FROM source WHERE meant AND series != '' GROUP BY kind, series "
            "HAVING count(*) != max(number) - min(number) + 1"
        )

    def lost_history(self) -> Iterator[str]:
        """Iterate over the journals of the target with entries that the source lacks, and the tables with commits; a
        table that is gone as a whole is left out.
        """
        rows = self._db.execute(
            "SELECT DISTINCT t.series FROM target t LEFT JOIN source s USING (key) WHERE s.key IS NULL AND (t.kind = 'entry' "
            "OR t.kind = 'commit' AND t.series IN (SELECT series FROM source WHERE kind = 'commit'))"
        )
        return (row[0] for row in rows)

    def content(self) -> Iterator[Item]:
        """Iterate over the content that the target lacks."""
        return self._items("s.kind = 'content' AND (t.key IS NULL OR s.size != t.size)", "s.key", 0)

    def history(self, since: datetime | None) -> Iterator[Item]:
        """Iterate over the entries and commits to write, in the order in which they were written.

        since: those of later are among them although the target has some under their keys: a commit may have been
        rewritten, and an entry there may be of another history.
        """
        wanted = (
            "s.kind IN ('entry', 'commit') AND (t.key IS NULL OR s.modified > :since OR s.size != t.size)"
        )
        return self._items(wanted, "s.modified, s.kind, s.number, s.key", as_us(since))

    def states(self) -> Iterator[tuple[Item, bool]]:
        """Iterate over the states that the source holds, and whether each was last written before the moment."""
        rows = self._db.execute(
            "SELECT key, size, modified, meant FROM source WHERE kind = 'state' ORDER BY key"
        )
        return ((Item(key, size, modified, Kind.STATE), bool(meant)) for key, size, modified, meant in rows)

    def is_current(self, info: ObjectInfo, since: datetime | None) -> bool:
        """Whether the target has an object of this size that was not written since."""
        row = self._db.execute("SELECT size FROM target WHERE key = ?", (info.key,)).fetchone()
        return row is not None and row[0] == info.size_bytes and as_us(info.modified_at) <= as_us(since)

    def extra(self) -> Iterator[str]:
        """Iterate over the keys of the target that the source does not hold any more."""
        rows = self._db.execute(
            "SELECT t.key FROM target t LEFT JOIN source s USING (key) WHERE s.key IS NULL"
        )
        return (row[0] for row in rows)

    def forget(self, keys: Iterable[str]) -> None:
        """Forget objects that were removed from the target."""
        self._db.executemany("DELETE FROM target WHERE key = ?", ((key,) for key in keys))

    def different(self) -> str | None:
        """Find an object that was to be copied and is absent in the target or of another size."""
        return self._one(
            "SELECT s.key FROM source s LEFT JOIN target t USING (key) "
            "WHERE s.meant AND s.kind != 'state' AND (t.key IS NULL OR t.size != s.size)"
        )

    def tables(self) -> dict[str, int]:
        """List the tables of the copy with the number of their newest version."""
        rows = self._db.execute(
            "SELECT series, max(number) FROM source WHERE meant AND kind = 'commit' GROUP BY series ORDER BY series"
        )
        return {series: int(number) for series, number in rows}

    def count(self) -> int:
        """Count the objects of the copy, states left aside."""
        row = self._db.execute("SELECT count(*) FROM source WHERE meant AND kind != 'state'").fetchone()
        return int(row[0])

    def _items(self, wanted: str, order: str, since: int, *, meant: bool = True) -> Iterator[Item]:
        rows = self._db.execute(
            "SELECT s.key, s.size, s.modified, s.kind FROM source s LEFT JOIN target t USING (key) "  # noqa: S608  # constants of this module
            f"WHERE (s.meant OR NOT :meant) AND ({wanted}) ORDER BY {order}",
            {"since": since, "meant": meant},
        )
        return (Item(key, size, modified, Kind(kind)) for key, size, modified, kind in rows)

    def _insert(self, table: str, columns: int, rows: Iterable[tuple[object, ...]]) -> None:
        self._db.execute("BEGIN")
        self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * columns)})", rows)  # noqa: S608  # constants of this module
        self._db.execute("COMMIT")

    def _one(self, query: str) -> str | None:
        row = self._db.execute(query).fetchone()
        return None if row is None else str(row[0])


def _source_row(info: ObjectInfo, until_us: int) -> tuple[object, ...]:
    kind = kind_of(info.key, info.size_bytes)
    series, number = numbered(info.key) if kind in {Kind.ENTRY, Kind.COMMIT} else ("", 0)
    modified = as_us(info.modified_at)
    return info.key, info.size_bytes, modified, kind, series, number, modified <= until_us


def _series(key: str, kind: Kind) -> str:
    return numbered(key)[0] if kind in {Kind.ENTRY, Kind.COMMIT} else ""


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
        for batch in batches(items, _ITEMS_AT_ONCE):
            for size_bytes in self._pool.map(work, batch):
                self.copied += 1
                self.copied_bytes += size_bytes
                if self.on_progress:
                    self.on_progress(size_bytes)

    def each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Run `work` on each item, several at a time."""
        for batch in batches(items, _ITEMS_AT_ONCE):
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
