"""Verification of a copied store: every object, every journal and every table."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from toque.registry.access.grants import workspace_store
from toque.registry.errors import RegistryError
from toque.registry.history import audit
from toque.registry.store.tables.table import Table, dataset_of

if TYPE_CHECKING:
    from toque.registry.history import FoldOf
    from toque.registry.store import ObjectStore
    from toque.registry.transfer.inventory import Inventory

_TABLES_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Verified:
    """What was compared, and what is wrong, each in a sentence.

    objects: of equal size; those written by this copy were read back and have equal digests. unsigned: whether there
    were no audit keys.
    """

    objects: int
    journals: int
    entries: int
    tables: int
    rows: int
    unsigned: bool
    findings: tuple[str, ...]


def verify_copy(source: ObjectStore, target: ObjectStore, known: Inventory, *, fold_of: FoldOf) -> Verified:
    """Compare a target with what was to be copied: sizes, the audit of all journals, and the rows of all tables."""
    known.read_target(target.scan(""))
    different = known.different()
    findings = [] if different is None else [f"{different} is absent in {target.url} or of another size"]
    report = audit(target, fold_of=fold_of)
    rows = 0
    with ThreadPoolExecutor(_TABLES_AT_ONCE) as pool:
        tables = known.tables()
        for found, problem in pool.map(lambda each: _compare(source, target, *each), tables.items()):
            rows += found
            findings += problem
    return Verified(
        objects=known.count(),
        journals=report.journals,
        entries=report.entries,
        tables=len(tables),
        rows=rows,
        unsigned=report.unsigned,
        findings=(*findings, *report.findings),
    )


def _compare(source: ObjectStore, target: ObjectStore, folder: str, version: int) -> tuple[int, list[str]]:
    """Open a table at the version of the copy in both stores; returns its rows, and what differs."""
    try:
        table = _table(target, folder)
        copied = _opened(table, None)
        if copied.version() != version:
            return 0, [f"{folder} is at version {copied.version()} in the copy, and was at {version}"]
        rows = int(dataset_of(copied, table).count_rows())
        expected = _rows(_table(source, folder), version)
    except (DeltaError, OSError, RegistryError, ValueError) as error:
        return 0, [f"{folder} version {version} cannot be compared: {error}"]
    return rows, [] if rows == expected else [f"{folder} has {rows} rows in the copy, and had {expected}"]


def _table(store: ObjectStore, folder: str) -> Table:
    """Find the table in `folder` of a platform's store, that of a workspace included."""
    inside, name = store, folder
    if folder.startswith("workspaces/"):
        _, workspace, name = folder.split("/", 2)
        inside = workspace_store(store, workspace)
    return Table(inside, name.removeprefix("tables/").removesuffix(".delta"))


def _opened(table: Table, version: int | None) -> DeltaTable:
    return DeltaTable(table.uri, version=version, storage_options=table.storage_options or None)


def _rows(table: Table, version: int) -> int:
    """Count the rows of a version by the table's log, or by its files where the log does not say."""
    opened = _opened(table, version)
    counts = list(_recorded(opened))
    if all(count is not None for count in counts):
        return sum(count for count in counts if count is not None)
    return int(dataset_of(opened, table).count_rows())


def _recorded(table: DeltaTable) -> Iterator[int | None]:
    import pyarrow as pa

    actions = pa.table(table.get_add_actions(flatten=True))
    if "num_records" not in actions.column_names:
        return iter([None] * actions.num_rows)
    return iter(actions.column("num_records").to_pylist())
