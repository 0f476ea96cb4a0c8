"""Upkeep of tables that are partitioned by day: merge small files, and drop days past their retention for good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta
from itertools import takewhile
from typing import Any
from urllib.parse import unquote

from deltalake import DeltaTable

from toque.registry.errors import InvalidInput
from toque.registry.store.tables.naming import writing_h
from toque.registry.store.tables.table import Table, table_properties

FILE_BYTES = 128 << 20


def compact_table(table: Table, *, file_bytes: int = FILE_BYTES) -> tuple[int, int]:
    """Merge the small files of each partition, up to about `file_bytes` each; returns files (before, after) that changed.

    Gives a table that an earlier release made the properties of today.
    """

    def merge(opened: DeltaTable) -> dict[str, Any]:
        properties = table_properties(table.name)
        if properties.items() - opened.metadata().configuration.items():
            opened.alter.set_table_properties(properties)
        return dict(opened.optimize.compact(target_size=file_bytes))

    done = table.commit(merge)
    return int(done.get("numFilesRemoved", 0)), int(done.get("numFilesAdded", 0))


def compact_days(
    table: Table, days: Sequence[str], *, at_least: int, file_bytes: int = FILE_BYTES, partition: str = "day"
) -> tuple[int, int]:
    """Merge the small files of those days that have `at_least` files; returns files (before, after) that changed.

    Reads no file, and commits nothing, where a day has fewer.
    """

    def merge(opened: DeltaTable) -> dict[str, Any]:
        actions = opened.get_add_actions(flatten=True)
        files = Counter(
            day
            for day, size in zip(
                _column(actions, f"partition.{partition}"), _column(actions, "size_bytes"), strict=True
            )
            if size < file_bytes
        )
        many = [day for day in days if files[day] >= at_least]
        if not many:
            return {}
        return dict(opened.optimize.compact([(partition, "in", many)], target_size=file_bytes))

    done = table.commit(merge)
    return int(done.get("numFilesRemoved", 0)), int(done.get("numFilesAdded", 0))


def vacuum_table(table: Table, *, grace: timedelta) -> int:
    """Delete files that the table has not named for `grace`; versions that need them cannot be read. Returns their number.

    grace: at least a day, so that nothing that is being written is lost. Raises: InvalidInput for less.
    """
    if grace < timedelta(days=1):
        raise InvalidInput(f"table {table.name}: grace must be at least a day, got {grace}")
    hours = int(grace / timedelta(hours=1))
    return len(table.commit(lambda opened: _unused(opened, hours, delete=True)))


def trim_log(table: Table) -> None:
    """Delete entries of a table's log that are past the retention that its properties say, up to a checkpoint.

    Versions from before cannot be opened any more; rows and transactions of the newest stay.
    """
    table.open().cleanup_metadata()


def drop_days(table: Table, *, before: date, partition: str = "day") -> int:
    """Remove all rows of days before a date, and their files at once; returns how many files were deleted.

    Older versions cannot read those days any more. A kill leaves files that the next call deletes.
    """
    first = before.isoformat()

    def remove(opened: DeltaTable) -> None:
        paths = opened.get_add_actions(flatten=True)
        days: list[str] = [each for each in _column(paths, f"partition.{partition}") if each is not None]
        if any(day < first for day in days):  # an empty removal would still be a commit
            opened.delete(f"{partition} < '{first}'")

    table.commit(remove)
    opened = table.open()
    unused = {
        *_unused(opened, 0, full=False),
        *_unused(opened, writing_h(table.name)),
    }  # removed by a commit, or left by a killed writer
    root = f"tables/{table.name}.delta/"
    present = takewhile(lambda key: _day_of(key) < first, table.store.list(f"{root}{partition}="))
    expired = [key for key in present if key[len(root) :] in unused]
    for key in expired:
        table.store.delete(key)
    return len(expired)


def _day_of(key: str) -> str:
    return key.rpartition("=")[2].partition("/")[0]


def _column(actions: Any, name: str) -> list[Any]:
    import pyarrow as pa

    table = pa.table(actions)
    return list(table.column(name).to_pylist()) if name in table.column_names else []


def _unused(opened: DeltaTable, hours: int, *, full: bool = True, delete: bool = False) -> list[str]:
    """List, and perhaps delete, the files that the table has not named for some hours."""
    found = opened.vacuum(hours, dry_run=not delete, enforce_retention_duration=False, full=full)
    return [unquote(path) for path in found]
