"""Outcomes: logged predictions joined with their labels, as monitors and rollouts read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.prediction_log.reading.logged_tensors import TEXT_COLUMNS, answered_texts
from toque.functions.prediction_log.reading.scan_cache import shared_labels, shared_rows
from toque.functions.prediction_log.reading.truth import (
    FindSignature,
    is_text,
    with_class_numbers,
    with_texts,
    with_truth,
)
from toque.functions.prediction_log.records import (
    CONTENT,
    CONTENT_LABELS,
    LABELS,
    LOAD_TEST,
    LOGGED,
    OBSERVED_AHEAD,
    PREDICTIONS,
)
from toque.functions.prediction_log.tables import LABELS_TABLE, predictions_table
from toque.registry import NotFound, Registry
from toque.registry.models import Signature
from toque.registry.store import ObjectStore, Table

__all__ = ["find_labels", "latest_labels", "outcomes", "predicted_within", "predictions", "read_columns"]

_ALWAYS = (*PREDICTIONS.names, "propensity")
_SKEW = timedelta(hours=1)  # tolerance for clocks: a label may seem received so long before its prediction


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
