"""Versions of an offline table: which files hold its rows, and reads of rows of some of them by time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.fields import EVENT_DAY, EVENT_TIMESTAMP, KNOWN_TIMESTAMP
from toque.featurestore.rows import gathered, shaped
from toque.registry.store import Table
from toque.registry.store.tables.table import dataset_of
from toque.registry.times import LAST_TIME

if TYPE_CHECKING:
    import pyarrow.dataset as ds  # at runtime it comes with the first table that is read, and pandas with it

_LOG_RESOLUTION = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class File:
    """One file of a table's version.

    day: of its events; first, last: bounds of its event times, None where the log has no bounds.
    """

    path: str
    day: str
    rows: int
    first: datetime | None
    last: datetime | None
    fragment: ds.Fragment = field(compare=False)

    def may_hold(self, after: datetime | None, until: datetime | None) -> bool:
        """Whether the file may have rows with `after <= event time <= until`."""
        too_old = after is not None and self.last is not None and self.last < after
        too_new = until is not None and self.first is not None and self.first > until
        return not (too_old or too_new)


@dataclass(frozen=True, slots=True)
class Version:
    """The files of one version of a view's table."""

    number: int
    files: tuple[File, ...]
    schema: pa.Schema
    dataset: ds.FileSystemDataset = field(compare=False)

    def of(self, files: Iterable[File]) -> ds.FileSystemDataset:
        """Open a dataset of some of the files."""
        fragments = [f.fragment for f in files]
        return type(self.dataset)(fragments, self.schema, self.dataset.format, self.dataset.filesystem)


def _between(start: datetime | None, end: datetime | None) -> pc.Expression | None:
    time = pc.field(EVENT_TIMESTAMP)
    conditions = []
    if start is not None:
        conditions.append(time >= pa.scalar(start, TIMESTAMP))
    if end is not None:
        conditions.append(time <= pa.scalar(end, TIMESTAMP))
    if not conditions:
        return None
    return conditions[0] if len(conditions) == 1 else conditions[0] & conditions[1]


def scan(
    version: Version,
    files: Iterable[File],
    schema: pa.Schema,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    known_else: str | None = None,
) -> pa.Table:
    """Read rows of some files with `start <= event time <= end`, in the given schema.

    known_else: where `KNOWN_TIMESTAMP` comes along, the column whose time stands for one that a row has none of.
    """
    kept = [f for f in files if f.may_hold(start, end)]
    if not kept:
        return _shaped(schema.empty_table(), schema, known_else)
    names = _stored_names(version, schema, known_else)
    return _shaped(version.of(kept).to_table(columns=names, filter=_between(start, end)), schema, known_else)


def _stored_names(version: Version, schema: pa.Schema, known_else: str | None) -> list[str]:
    names = [*schema.names, *([] if known_else is None else [KNOWN_TIMESTAMP])]
    return [name for name in names if name in version.schema.names]


def split(
    version: Version,
    file: File,
    schema: pa.Schema,
    *,
    start: datetime | None,
    end: datetime | None,
    rows: int,
    known_else: str | None = None,
) -> Iterator[tuple[pa.Table, tuple[File, ...]]]:
    """Read one large file in several batches; only the last names the file as ended. known_else: as in `scan`."""
    names = _stored_names(version, schema, known_else)
    scanner = version.of([file]).scanner(columns=names, filter=_between(start, end), batch_size=rows)
    ready = _shaped(schema.empty_table(), schema, known_else)
    for piece in gathered(scanner.to_batches(), rows):
        if ready.num_rows:
            yield ready, ()
        ready = _shaped(piece, schema, known_else)
    yield ready, (file,)


def _shaped(rows: pa.Table, schema: pa.Schema, known_else: str | None) -> pa.Table:
    found = shaped(rows, schema)
    if known_else is None:
        return found
    known = found.column(known_else)
    if KNOWN_TIMESTAMP in rows.column_names:
        known = pc.coalesce(rows.column(KNOWN_TIMESTAMP).cast(TIMESTAMP), known)
    return found.append_column(KNOWN_TIMESTAMP, known)


def open_version(table: DeltaTable, of: Table) -> Version:
    """List the files of an opened version by the times of their rows."""
    dataset = dataset_of(table, of)
    actions = {each["path"]: each for each in pa.table(table.get_add_actions(flatten=True)).to_pylist()}
    files = [_file(actions[fragment.path], fragment) for fragment in dataset.get_fragments()]
    files.sort(
        key=lambda f: str(f.first)
    )  # of those that begin at one time in the table's order; paths are random
    return Version(table.version(), tuple(files), dataset.schema, dataset)


def _file(action: dict[str, Any], fragment: ds.Fragment) -> File:
    """Build a file from its action in the log; without recorded bounds, as of what Ray Data wrote, its day gives them.

    A file of several days always has them. The log cuts bounds to milliseconds, so the last row may be that much later than it says.
    """
    first, last = action.get(f"min.{EVENT_TIMESTAMP}"), action.get(f"max.{EVENT_TIMESTAMP}")
    last = None if last is None else _after(last, _LOG_RESOLUTION)
    day = action.get(f"partition.{EVENT_DAY}")
    if (first is None or last is None) and day is not None:
        first = datetime.fromisoformat(day).replace(tzinfo=UTC)
        last = _after(first, timedelta(days=1))
    return File(action["path"], day or "", action["num_records"] or 0, first, last, fragment)


def _after(at: datetime, span: timedelta) -> datetime:
    """Add a span to a time, up to the calendar's end."""
    return at + min(span, LAST_TIME - at)
