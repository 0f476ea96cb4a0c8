"""Outcomes: logged predictions joined with their labels, as monitors and rollouts read them.

What is true is put in the terms of the version that answered: names of classes, lists, and texts. All models' labels lie in one
table; within `shared_scans` the log is read once for any number of models and monitors. So the labels that the first monitor reads are
kept, indexed by the hash of their prediction's id, until the block ends: the tables as of their first read in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.prediction_log.reading.logged_tensors import TEXT_COLUMNS, answered_texts
from toque.functions.prediction_log.records import (
    ANSWER_TEXT,
    CONTENT,
    CONTENT_LABELS,
    LABEL_TEXT,
    LABELS,
    LABELS_TABLE,
    LOAD_TEST,
    LOGGED,
    OBSERVED_AHEAD,
    PREDICTIONS,
    TRUTH,
    predictions_table,
)
from toque.kernels import hash_strings
from toque.registry import NotFound, Registry
from toque.registry.models import Signature
from toque.registry.store import ObjectStore, Table

_ALWAYS = (*PREDICTIONS.names, "propensity")
_SKEW = timedelta(hours=1)  # tolerance for clocks: a label may seem received so long before its prediction
FindSignature = Callable[[int], Signature | None]
"""Signature of a version of the model by its number; None if it has none."""
MAX_LABELS = 20_000_000  # that are cached, about 100 bytes each; beyond, every reader keeps only its own
Batches = Iterator[pa.RecordBatch]


def predictions(
    store: ObjectStore,
    model: str,
    start: datetime,
    end: datetime,
    *,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Read the logged predictions with start <= predicted_at < end, in order of time; shadows included.

    columns: of `records.LOGGED`; by default those of `PREDICTIONS`, and the propensity.
    Raises: ValueError if a time is naive.
    """
    _aware(start, end)
    chosen = None if columns is None else tuple(columns)
    return shared_rows(
        (store.url, model, start, end, chosen), lambda: _predictions(store, model, start, end, chosen)
    )


def _predictions(
    store: ObjectStore, model: str, start: datetime, end: datetime, columns: Sequence[str] | None
) -> pa.Table:
    chosen = _ALWAYS if columns is None else columns
    rows = read_columns(store, model, start, end, [*chosen, "predicted_at", "prediction_id", "version"])
    order = [("predicted_at", "ascending"), ("prediction_id", "ascending"), ("version", "ascending")]
    return rows.sort_by(order).select(list(chosen))


def read_columns(
    store: ObjectStore,
    model: str,
    start: datetime,
    end: datetime,
    columns: Sequence[str],
    *,
    version: int | None = None,
    ids: Sequence[str] | None = None,
) -> pa.Table:
    """Read columns of the predictions with start <= predicted_at < end, in no order; null where no row needed a column.

    columns: of `records.LOGGED`. version, ids: of these predictions; None: all.
    Raises: ValueError if a time is naive.
    """
    _aware(start, end)
    schema = pa.schema([LOGGED.field(name) for name in dict.fromkeys(columns)])
    table = Table(store, predictions_table(model))
    if not table.exists():
        return schema.empty_table()
    dataset = table.dataset()
    where = predicted_within(start, end)
    if version is not None:
        where = where & (pc.field("version") == version)
    if ids is not None:
        where = where & pc.field("prediction_id").isin(list(ids))
    there = [name for name in schema.names if name in dataset.schema.names]
    rows = dataset.to_table(columns=there, filter=where)
    for name in schema.names:
        if name not in there:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, schema.field(name).type))
    return rows.select(schema.names).cast(schema)


def predicted_within(start: datetime, end: datetime) -> Any:
    """Return the filter for predictions with start <= predicted_at < end, those of load tests left out; files of other days are skipped."""
    return (
        (pc.field("arm") != LOAD_TEST)
        & (pc.field("day") >= _day(start))
        & (pc.field("day") <= _day(end))
        & (pc.field("predicted_at") >= pa.scalar(start, pa.timestamp("us", tz="UTC")))
        & (pc.field("predicted_at") < pa.scalar(end, pa.timestamp("us", tz="UTC")))
    )


def latest_labels(store: ObjectStore, *, received_from: datetime | None = None) -> pa.Table:
    """Read the label in force of each prediction id: of several, the latest observed, then the latest received.

    A label that claims to be observed after it was received counts only where there is no other.
    """
    table = Table(store, LABELS_TABLE)
    if not table.exists():
        return CONTENT_LABELS.empty_table()
    where: Any = None if received_from is None else pc.field("day") >= _day(received_from)
    rows = table.read(where=where)
    return _in_force(_with_content(rows))


def find_labels(store: ObjectStore, ids: Sequence[str], *, since: datetime) -> pa.Table:
    """Read the labels in force of some predictions, which were made from `since` on.

    Raises: ValueError if the time is naive.
    """
    _aware(since)
    wanted = pa.array(ids, pa.string())
    parts = [
        batch.filter(pc.is_in(batch["prediction_id"], value_set=wanted))
        for batch in _labels_since(store, since - _SKEW)
    ]
    return _in_force(pa.Table.from_batches(parts, CONTENT_LABELS))


def _in_force(labels: pa.Table) -> pa.Table:
    """Keep the latest of several labels of a prediction."""
    rows = pl.from_arrow(labels)
    assert isinstance(rows, pl.DataFrame)  # noqa: S101 - a table is not a column
    # False sorts first: a label from the future, which would be the latest for ever, gives way to any other.
    possible = (pl.col("observed_at") <= pl.col("received_at") + OBSERVED_AHEAD).alias("possible")
    ordered = rows.sort(possible, "observed_at", "received_at")
    return ordered.unique("prediction_id", keep="last", maintain_order=True).to_arrow().cast(CONTENT_LABELS)


def outcomes(
    store: ObjectStore,
    model: str,
    start: datetime,
    end: datetime,
    *,
    labelled_only: bool = True,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Read predictions with start <= predicted_at < end beside their labels, in order of prediction.

    Columns of the predictions (or `columns` of them), then `label`, `observed_at`, `received_at`, `content` and `truth` if
    a label is a list or text, and `answer_text` and `label_text` if one is a text; shadows are rows of their own with the same prediction_id and label. A label that was received more than an hour before `start`
    cannot belong to such a prediction, and is not read. A label that is the name of a class of the row's version reads as the class's number.
    labelled_only: leave out predictions without a label; otherwise their label is null.
    Raises: ValueError if a time is naive.
    """
    wanted = list(_ALWAYS if columns is None else dict.fromkeys([*columns, "prediction_id"]))
    rows = _labelled(store, model, start, end, wanted, labelled_only=labelled_only)
    find_signature = _signatures(store, model)

    def numbered(columns: Sequence[str]) -> pa.Table:
        read = list(dict.fromkeys([*wanted, "version", *columns]))
        found = _labelled(store, model, start, end, read, labelled_only=labelled_only)
        found = with_class_numbers(found, find_signature)
        return found if "version" in wanted else found.drop_columns(["version"])

    if pc.any(is_text(rows)).as_py():
        rows = numbered(())
    if pc.any(is_text(rows)).as_py():  # they name no class
        rows = numbered(TEXT_COLUMNS)
        texts = pc.fill_null(is_text(rows), False).to_numpy()
        rows = with_texts(rows, answered_texts(store, model, rows, texts))
        rows = rows.drop_columns([name for name in TEXT_COLUMNS if name not in wanted])
    return with_truth(rows, find_signature)


def _labelled(
    store: ObjectStore,
    model: str,
    start: datetime,
    end: datetime,
    columns: Sequence[str],
    *,
    labelled_only: bool,
) -> pa.Table:
    """Read columns of predictions and their labels in force, with `content`."""
    rows = predictions(store, model, start, end, columns=columns)
    left = pl.from_arrow(rows)
    right = pl.from_arrow(_in_force(_labels_of(store, rows["prediction_id"], start - _SKEW)))
    assert isinstance(left, pl.DataFrame)  # noqa: S101 - tables are not columns
    assert isinstance(right, pl.DataFrame)  # noqa: S101
    joined = left.join(
        right.drop("day"),
        on="prediction_id",
        how="inner" if labelled_only else "left",
        maintain_order="left",
    )
    fields = [LOGGED.field(name) for name in columns]
    fields += [LABELS.field(name).with_nullable(True) for name in ("label", "observed_at", "received_at")]
    return joined.to_arrow().cast(pa.schema([*fields, CONTENT]))


def _signatures(store: ObjectStore, model: str) -> FindSignature:
    """Look up signatures of a model's versions, each once; None for a version that is not in the registry."""
    registry = Registry(store, actor="prediction-log")

    @cache
    def find(version: int) -> Signature | None:
        try:
            return registry.get_version(model, version).signature
        except NotFound:
            return None

    return find


def _labels_of(store: ObjectStore, ids: pa.ChunkedArray, since: datetime) -> pa.Table:
    """Read all labels of these predictions received from `since` on; labels of others may be among them.

    The table holds the labels of all models, so it is read in batches and filtered.
    """

    def read(begin: datetime) -> Iterator[pa.RecordBatch]:
        return _labels_since(store, begin)

    shared = shared_labels(store.url, ids, since, read)
    if shared is not None:
        return shared
    wanted = pc.unique(ids)
    parts = [batch.filter(pc.is_in(batch["prediction_id"], value_set=wanted)) for batch in read(since)]
    return pa.Table.from_batches(parts, CONTENT_LABELS)


def _labels_since(store: ObjectStore, since: datetime) -> Iterator[pa.RecordBatch]:
    table = Table(store, LABELS_TABLE)
    if not table.exists():
        return
    where = (pc.field("day") >= _day(since)) & (
        pc.field("received_at") >= pa.scalar(since, pa.timestamp("us", tz="UTC"))
    )
    dataset = table.dataset()
    there = [name for name in CONTENT_LABELS.names if name in dataset.schema.names]
    for batch in dataset.to_batches(columns=there, filter=where):
        yield _with_content(batch)


def _with_content(rows: Any) -> Any:
    """Add the column of lists, of nulls, to a table or batch of labels that has none."""
    if CONTENT.name not in rows.schema.names:
        rows = rows.append_column(CONTENT, pa.nulls(rows.num_rows, CONTENT.type))
    return rows.select(CONTENT_LABELS.names).cast(CONTENT_LABELS)


def _day(at: datetime) -> str:
    return at.astimezone(UTC).date().isoformat()


def _aware(*times: datetime) -> None:
    for at in times:
        if at.tzinfo is None:
            raise ValueError(f"a time needs its zone, got {at.isoformat()}; use datetime.now(UTC)")


def with_truth(rows: pa.Table, find_signature: FindSignature) -> pa.Table:
    """Add the column `truth`: for a list of names a 0 or 1 for each class of the row's version, a list of numbers as it is.

    It is null where the label is no list, and where the list names what the version does not know, as for a label that does not
    fit. Rows of which no label is a list, or that do not name their version, are returned without both columns.
    """
    if rows[CONTENT.name].null_count == rows.num_rows or "version" not in rows.column_names:
        return rows.drop_columns([CONTENT.name])
    classes: dict[int, Sequence[str] | None] = {}
    for version in pc.unique(rows["version"]).to_pylist():
        signature = find_signature(version)
        classes[version] = signature.outputs[0].columns if signature is not None else None
    truth = [
        None if content is None else _truth(json.loads(content), classes[version])
        for content, version in zip(rows[CONTENT.name].to_pylist(), rows["version"].to_pylist(), strict=True)
    ]
    return rows.append_column(TRUTH, pa.array(truth, TRUTH.type))


def with_class_numbers(rows: pa.Table, find_signature: FindSignature) -> pa.Table:
    """Put the number of a class in place of its name, where a label is the name of a class of the row's version.

    rows: with `version`. A text that names no class stays a text.
    """
    numbers: dict[int, dict[str, int]] = {}
    for version in pc.unique(rows.filter(is_text(rows))["version"]).to_pylist():
        signature = find_signature(version)
        names = signature.classes if signature is not None else ()
        numbers[version] = {json.dumps(name): number for number, name in enumerate(names)}
    contents, labels = rows[CONTENT.name].to_pylist(), rows["label"].to_pylist()
    for place, version in enumerate(rows["version"].to_pylist()):
        number = numbers.get(version, {}).get(contents[place])
        if number is not None:
            contents[place], labels[place] = None, float(number)
    for name, values in ((CONTENT.name, contents), ("label", labels)):
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type))
    return rows


def is_text(rows: pa.Table) -> pa.ChunkedArray:
    """Whether the label of each row is a text; null for a number."""
    return pc.starts_with(rows[CONTENT.name], '"')


def with_texts(rows: pa.Table, answers: Sequence[str | None]) -> pa.Table:
    """Add what was answered and what was true, as texts, each null where it is none. answers: one a row."""
    texts = [
        json.loads(each) if each is not None and each.startswith('"') else None
        for each in rows[CONTENT.name].to_pylist()
    ]
    for field, values in ((ANSWER_TEXT, answers), (LABEL_TEXT, texts)):
        rows = rows.append_column(field, pa.array(values, field.type))
    return rows


def _truth(content: str | list[str | float], classes: Sequence[str] | None) -> list[float] | None:
    if isinstance(content, str):
        return None
    if content and not isinstance(content[0], str):
        return [float(each) for each in content]
    if classes is None or not set(content) <= set(classes):
        return None
    return [float(name in content) for name in classes]


class _LabelIndex:
    """Labels received from `since` on, indexed by the hash of their prediction's id."""

    def __init__(self, store: str, since: datetime, rows: pa.Table) -> None:
        self.store, self.since = store, since
        hashes = hash_strings(rows["prediction_id"])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._rows = hashes[order], rows.take(pa.array(order))

    def of(self, ids: pa.ChunkedArray) -> pa.Table:
        """Return all labels of these predictions, and by a hash collision rarely one of another."""
        wanted = np.unique(hash_strings(ids))
        first, last = (np.searchsorted(self._hashes, wanted, side=side) for side in ("left", "right"))
        counts = last - first
        begins = np.cumsum(counts) - counts
        places = np.arange(counts.sum()) + np.repeat(first - begins, counts)
        return self._rows.take(pa.array(places))


class _ScanCache:
    """Cache of one block: the labels, and the rows read last."""

    def __init__(self) -> None:
        self.labels: _LabelIndex | None = None
        self.too_many_since: datetime | None = None
        self.rows: tuple[Any, pa.Table] | None = None


_open: ContextVar[_ScanCache | None] = ContextVar("toque_shared_scans", default=None)


@contextmanager
def shared_scans() -> Iterator[None]:
    """Share one read of the log among all readers within the block; an inner block joins the outer one."""
    if _open.get() is not None:
        yield
        return
    token = _open.set(_ScanCache())
    try:
        yield
    finally:
        _open.reset(token)


def shared_labels(
    store: str, ids: pa.ChunkedArray, since: datetime, read: Callable[[datetime], Batches]
) -> pa.Table | None:
    """Return all labels of predictions received from `since` on; None outside a block, or if they are too many.

    read: the labels received from a time on, in batches. Rarely a label of another prediction is among the result.
    """
    scans = _open.get()
    if scans is None or (scans.too_many_since is not None and since <= scans.too_many_since):
        return None
    if scans.labels is None or scans.labels.store != store or scans.labels.since > since:
        rows = _bounded(read(since))
        if rows is None:
            scans.too_many_since = since
            return None
        scans.labels = _LabelIndex(store, since, rows)
    return scans.labels.of(ids)


def shared_rows(key: object, read: Callable[[], pa.Table]) -> pa.Table:
    """Return what `read` returns, cached within a block for repeated reads of one key."""
    scans = _open.get()
    if scans is None:
        return read()
    if scans.rows is None or scans.rows[0] != key:
        scans.rows = (key, read())
    return scans.rows[1]


def _bounded(batches: Batches) -> pa.Table | None:
    """Collect all batches into a table; None if they are too many to keep."""
    kept, count = [], 0
    for batch in batches:
        kept.append(batch)
        count += batch.num_rows
        if count > MAX_LABELS:
            return None
    return pa.Table.from_batches(kept, CONTENT_LABELS)


__all__ = [
    "find_labels",
    "latest_labels",
    "outcomes",
    "predicted_within",
    "predictions",
    "read_columns",
    "shared_labels",
    "shared_rows",
    "shared_scans",
]
