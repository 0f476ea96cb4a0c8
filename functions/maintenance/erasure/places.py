"""Places that hold a subject in the store: rows of tables, and objects such as reports, results and logs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pyarrow as pa

from functions.maintenance.erasure.record import PendingErasure, TableErasure
from functions.maintenance.erasure.subject import PREDICTION_ID, Traces
from functions.runtime.durable.ledger import Ledger
from registry import InvalidInput, ObjectStore, Table
from registry.store import FolderStore, find_rows, remove_rows, table_names
from registry.store.tables.history import HistoryMatch

_REMADE = re.compile(r"reports/|memos/|values/|monitoring/.+/reference/")
_INVOCATION = re.compile(r"invocations/([0-9A-Za-z._-]+)/")
_UNSEARCHED = re.compile(
    r"tables/|erasures/|workspaces/|models/.+/blobs/|runs/.+/(artifacts|blobs)/|checkpoints/"
)
"""Tables are searched as tables, and other workspaces when it is their turn; files of models and runs are what was learned,
which no erasure reaches."""


def collect_prediction_ids(store: ObjectStore, traces: Traces) -> list[str]:
    """Collect the ids of the subject's predictions from every version of the tables that have them."""
    collector = _IdCollector(traces)
    for name in table_names(store):
        if name.startswith(("predictions/", "predictions_large/", "batch/")):
            with suppress(InvalidInput):  # that table is reported when its rows are to go
                find_rows(Table(store, name), collector)
    return sorted(collector.ids)


class _IdCollector:
    """Traces that note the prediction ids of the rows that they match."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces
        self.ids: set[str] = set()
        self.mentions = traces.mentions

    def columns(self, schema: pa.Schema) -> list[str]:
        wanted = self._traces.columns(schema)
        return list(dict.fromkeys([*wanted, *(n for n in (PREDICTION_ID,) if n in schema.names)]))

    def mask(self, rows: pa.Table) -> pa.Array:
        mask = self._traces.mask(rows)
        if PREDICTION_ID in rows.column_names:
            self.ids.update(rows.filter(mask).column(PREDICTION_ID).to_pylist())
        return mask


def erase_from_tables(
    store: ObjectStore, traces: Traces, pending: PendingErasure, *, save: Callable[[], None]
) -> list[str]:
    """Remove the subject's rows from every version of every table; what is about to go is recorded before it goes.

    Returns: why a table could not be searched, for each such.
    """
    left: list[str] = []
    for name in table_names(store):

        def note(matches: Sequence[HistoryMatch], name: str = name) -> None:
            made = TableErasure(
                rows=sum(each.rows for each in matches),
                files=len(matches),
                versions=tuple(sorted({span for each in matches for span in each.versions})),
            )
            pending.tables[name] = pending.tables[name] + made if name in pending.tables else made
            save()

        try:
            remove_rows(Table(store, name), traces, before=note)
        except InvalidInput as error:
            left.append(str(error))
    return left


def erase_from_objects(
    store: ObjectStore, traces: Traces, pending: PendingErasure, *, actor: str
) -> list[str]:
    """Delete reports, results and logs that hold the subject; returns the keys of objects that hold it and must stay."""
    ledger = Ledger(store, actor=actor)
    left: list[str] = []
    invocations: set[str] = set()
    texts: tuple[str, ...] = ()
    for key in _searched(store):
        data = store.find(key)
        if data is None or not traces.in_bytes(data):
            continue
        if (found := _INVOCATION.match(key)) is not None:
            invocations.add(found[1])
        elif _REMADE.match(key):
            store.delete(key)
            pending.count(key.partition("/")[0], 1)
            texts += (key.rpartition("/")[2].removesuffix(".json"),) if key.startswith("values/") else ()
        else:
            left.append(key)
    invocations |= set(_naming(store, texts))
    for each in sorted(invocations):
        if ledger.delete(each):
            pending.count("invocations", 1)
        else:
            left.append(f"invocations/{each}/ (it has not ended; cancel it, or wait, and erase again)")
    return left + _half_written(store, traces)


def _searched(store: ObjectStore) -> Iterator[str]:
    return (key for key in store.list("") if not _UNSEARCHED.match(key))


def _naming(store: ObjectStore, digests: Sequence[str]) -> Iterator[str]:
    """Yield the invocations whose arguments or results are values with one of these digests."""
    if not digests:
        return
    for key in store.list("invocations/"):
        found, data = _INVOCATION.match(key), store.find(key)
        if found is not None and data is not None and any(each.encode() in data for each in digests):
            yield found[1]


def _half_written(store: ObjectStore, traces: Traces) -> list[str]:
    """Delete half-written objects of killed writers that hold the subject; returns those that are still being written."""
    if not isinstance(store, FolderStore):
        return []
    return [f".tmp/{path.name}" for path in store.half_written(traces.in_bytes)]
