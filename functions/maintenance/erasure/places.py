"""Places that hold a subject in the store: rows of tables, and objects such as reports, results and logs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.maintenance.erasure.record import (
    ErasurePreview,
    PendingErasure,
    TableErasure,
    TablePreview,
)
from toque.functions.maintenance.erasure.sample_sets import find_sets
from toque.functions.maintenance.erasure.subject import PREDICTION_ID, TEXT, UNIT, Traces
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.record import Record
from toque.registry import InvalidInput, ObjectStore, Table
from toque.registry.store import FolderStore, find_rows, remove_rows, table_names
from toque.registry.store.tables.history import FilesInProgress, HistoryMatch

_REMADE = re.compile(r"reports/|memos/|values/|monitoring/.+/reference/")
_INVOCATION = re.compile(r"invocations/([0-9A-Za-z._-]+)/")
OTHERWISE: Mapping[str, str] = {
    "tables/": "searched as tables",
    "samples/": "searched as sample sets",
    "features/[^/]+/indexes/": "indexes are dropped with the tables of their views",
    "erasures/": "the record of erasures, which has hashes, and a subject only until it is erased",
    "workspaces/": "searched when it is their turn",
    "models/.+/(blobs|signatures)/": "files of models: what was learned, which no erasure reaches",
    "runs/.+/(artifacts|blobs)/": "files of runs: what was learned, which no erasure reaches",
    "checkpoints/": "files of trainings: what was learned, which no erasure reaches",
}
"""How each place is searched that is not searched as JSON, or why it is not; patterns of the beginnings of keys."""
_UNSEARCHED = re.compile("|".join(OTHERWISE))
_EXAMPLES = re.compile(r"models/.+/blobs/|runs/.+/(artifacts|blobs)/|checkpoints/")
_OWNERS = 20


def collect_prediction_ids(store: ObjectStore, traces: Traces) -> list[str]:
    """Collect the ids of the subject's predictions from every version of the tables that have them."""
    ids: set[str] = set()
    for name in table_names(store):
        if name.startswith(("predictions/", "predictions_large/", "batch/")):
            search = _Search(traces)
            with suppress(InvalidInput):  # that table is reported when its rows are to go
                find_rows(Table(store, name), search)
            ids |= search.ids
    return sorted(ids)


class _Search:
    """Traces that note why rows match, whose they are, and their prediction ids."""

    def __init__(self, traces: Traces, *, with_mentions: bool = False) -> None:
        """with_mentions: count the rows, too, that mention the subject in a text and stay."""
        self._traces = traces
        self._searched = replace(traces, text=True) if with_mentions else traces
        self.reasons: Counter[str] = Counter()
        self.owners: set[str] = set()
        self.ids: set[str] = set()
        self.going = self.staying = 0

    def columns(self, schema: pa.Schema) -> list[str]:
        names = [*self._searched.columns(schema), PREDICTION_ID, UNIT]
        return list(dict.fromkeys(name for name in names if name in schema.names))

    def mask(self, rows: pa.Table) -> pa.Array:
        going = mentioning = pa.array([False] * rows.num_rows, pa.bool_())
        for reason, matches in self._searched.reasons(rows):
            if count := pc.sum(matches).as_py():
                self.reasons[reason] += count
            if reason.startswith(TEXT) and not self._traces.text:
                mentioning = pc.or_(mentioning, matches)
            else:
                going = pc.or_(going, matches)
        self.going += pc.sum(going).as_py() or 0
        self.staying += pc.sum(pc.and_not(mentioning, going)).as_py() or 0
        chosen = rows.filter(pc.or_(going, mentioning))
        for name in sorted({UNIT, *self._traces.values} & set(rows.column_names)):
            self.owners |= {f"{name}={value}" for value in chosen.column(name).unique().to_pylist()}
        if PREDICTION_ID in rows.column_names:
            self.ids.update(rows.filter(going).column(PREDICTION_ID).to_pylist())
        return going

    def mentions(self, text: str) -> bool:
        return self._traces.mentions(text)


def preview(store: ObjectStore, traces: Traces) -> ErasurePreview:
    """List what an erasure would remove from tables and objects, why, and what mentions the subject and stays; changes nothing."""
    tables, left = {}, []
    lost: dict[str, TableErasure] = {}
    for name in table_names(store):
        search = _Search(traces, with_mentions=True)
        try:
            if matches := find_rows(Table(store, name), search):
                lost[name] = _summary(matches)
        except InvalidInput as error:
            left.append(str(error))
        if search.reasons:
            tables[name] = TablePreview(
                rows=search.going,
                staying=search.staying,
                why=dict(sorted(search.reasons.items())),
                whose=sorted(search.owners)[:_OWNERS],
            )
    objects = find_sets(store, traces, lost)
    staying: list[str] = []
    for key in _searched(store):
        data = store.find(key) or b""
        is_named = traces.names(data)
        if is_named or (traces.text and traces.in_bytes(data)):
            goes = _INVOCATION.match(key) or _REMADE.match(key)
            reason = "names it" if is_named else "mentions it in its text"
            objects[key] = reason if goes else f"{reason}, and cannot be changed"
        elif _is_unreadable(data):
            left.append(_unreadable(key))
        elif replace(traces, text=True).in_bytes(data):
            staying.append(key)
    for key in _with_examples(store, traces):
        objects[key] = _EXAMPLE
    return ErasurePreview(tables=tables, objects=objects, staying=staying, left=left)


def erase_from_tables(
    store: ObjectStore,
    traces: Traces,
    pending: PendingErasure,
    *,
    save: Callable[[], None],
    check: Callable[[], None],
) -> tuple[list[str], list[str]]:
    """Remove the subject's rows from every version of every table; what is about to go is recorded before it goes.

    check: raises where this erasure may write no more, asked before each table and after its rows were read.
    Returns: why a table could not be searched, for each such; and the tables with rows in files that are still being written.
    """
    left: list[str] = []
    waiting: list[str] = []
    for name in table_names(store):

        def note(matches: Sequence[HistoryMatch], name: str = name) -> None:
            check()
            made = _summary(matches)
            pending.tables[name] = pending.tables[name] + made if name in pending.tables else made
            save()

        check()
        try:
            remove_rows(Table(store, name), traces, before=note)
        except InvalidInput as error:
            left.append(str(error))
        except FilesInProgress as error:
            waiting.append(str(error))
    return left, waiting


def _summary(matches: Sequence[HistoryMatch]) -> TableErasure:
    return TableErasure(
        rows=sum(match.rows for match in matches),
        files=len(matches),
        versions=tuple(sorted({span for match in matches for span in match.versions})),
    )


def erase_from_objects(
    store: ObjectStore, traces: Traces, pending: PendingErasure, *, actor: str
) -> list[str]:
    """Delete reports, results and logs that hold the subject; returns the keys of objects that hold it and must stay."""
    ledger = Ledger(store, actor=actor)
    left: list[str] = []
    invocations: set[str] = set()
    values: list[str] = []
    for key in _searched(store):
        data = store.find(key)
        if data is None or not traces.in_bytes(data):
            if data is not None and _is_unreadable(data):
                left.append(_unreadable(key))
            continue
        if (found := _INVOCATION.match(key)) is not None:
            invocations.add(found[1])
        elif key.startswith("values/"):
            values.append(key)
        elif _REMADE.match(key):
            store.delete(key)
            pending.count(key.partition("/")[0], 1)
        else:
            left.append(key)
    holders = _holders(store, values)
    staying = _delete_invocations(ledger, invocations.union(*holders.values()), pending)
    left += staying.values()
    for key in values:
        if holders[key] & staying.keys():
            left.append(f"{key} (a value of invocations that stay)")
        else:
            store.delete(key)
            pending.count("values", 1)
    left += [f"{key} ({_EXAMPLE})" for key in _with_examples(store, traces)]
    return left + _half_written(store, traces)


def _delete_invocations(
    ledger: Ledger, invocations: Iterable[str], pending: PendingErasure
) -> dict[str, str]:
    """Delete invocations; returns those that must stay, with why.

    A workflow that runs, or is redriven, submits its children again, and they must not run again: a child whose parent has not ended
    stays, and a parent that may be redriven goes first.
    """
    left: dict[str, str] = {}
    names, gone = set(invocations), set[str]()
    for invocation in sorted(names):
        if invocation in gone:
            continue
        line = _line_of(ledger, invocation)
        open_ones = [record for record in line if not record.ended]
        if open_ones:
            left[invocation] = _why_left(invocation, open_ones[-1].id)
            continue
        for record in line[:0:-1]:  # the eldest first: a kill leaves no parent that could run a child again
            if not ledger.delete(record.id):  # redriven meanwhile
                left[invocation] = _why_left(invocation, record.id)
                break
            gone.add(record.id)
            pending.count("invocations" if record.id in names else _PARENTS, 1)
        else:
            if ledger.delete(invocation):
                pending.count("invocations", 1)
            else:
                left[invocation] = _why_left(invocation, invocation)
    return left


def _why_left(invocation: str, cause: str) -> str:
    if cause == invocation:
        return f"invocations/{invocation}/ (it has not ended; cancel it, or wait, and erase again)"
    return (
        f"invocations/{invocation}/ (workflow {cause} has not ended, and would run it again; cancel that, or wait, "
        "and erase again)"
    )


def _line_of(ledger: Ledger, invocation: str) -> list[Record]:
    """List an invocation and the workflows above it, up to the first that has succeeded, and so never runs again."""
    line: list[Record] = []
    record = ledger.find(invocation)
    while record is not None and not (line and record.status == "succeeded"):
        line.append(record)
        record = ledger.find(record.parent) if record.parent is not None and record.ended else None
    return line


_PARENTS = "workflows that submitted them"
_EXAMPLE = "a file of a model or a run names it, such as an example row, and cannot be changed; delete that version or run"
_BINARY = re.compile(rb"\A(PAR1|ARROW1|\x1f\x8b|PK\x03\x04|\x28\xb5\x2f\xfd|BZh|\xfd7zXZ)")


def _with_examples(store: ObjectStore, traces: Traces) -> Iterator[str]:
    """Yield the files of models and runs that are JSON and name the subject; others are what was learned."""
    for info in store.scan(""):
        if _EXAMPLES.match(info.key) and (store.find_range(info.key, 0, 1) or b"") in {b"{", b"["}:
            data = store.find(info.key)
            if data is not None and traces.in_bytes(data):
                yield info.key


def _is_unreadable(data: bytes) -> bool:
    """Whether an object is in a format in which a search of JSON and text finds nothing."""
    return _BINARY.match(data) is not None or b"\0" in data


def _unreadable(key: str) -> str:
    return f"{key} (not searched: it is neither JSON nor text; look at it, and delete it if it holds the subject)"


def _searched(store: ObjectStore) -> Iterator[str]:
    return (key for key in store.list("") if not _UNSEARCHED.match(key))


def _holders(store: ObjectStore, values: Sequence[str]) -> dict[str, set[str]]:
    """Find, for each large value by its key, the invocations whose arguments or results it is."""
    digests = {key.rpartition("/")[2].removesuffix(".json").encode(): key for key in values}
    holders: dict[str, set[str]] = {key: set() for key in values}
    for key in store.list("invocations/") if values else ():
        match, data = _INVOCATION.match(key), store.find(key)
        if match is not None and data is not None:
            for digest, value in digests.items():
                if digest in data:
                    holders[value].add(match[1])
    return holders


def _half_written(store: ObjectStore, traces: Traces) -> list[str]:
    """Delete half-written objects of killed writers that hold the subject; returns those that are still being written."""
    if not isinstance(store, FolderStore):
        return []
    return [f".tmp/{path.name}" for path in store.half_written(traces.in_bytes)]
