"""Predictions joined with what became known of them: the table that monitors and rollouts read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from functions.prediction_log.drain import LABELS_TABLE, predictions_table
from functions.prediction_log.records import LABELS, PREDICTIONS
from registry.store import ObjectStore
from registry.tables import Table

__all__ = ["latest_labels", "outcomes", "predictions"]


def predictions(
    store: ObjectStore,
    model: str,
    start: datetime,
    end: datetime,
    *,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """The logged predictions with start <= predicted_at < end, in order of time; shadows included.

    Raises: ValueError if a time is naive.
    """
    _aware(start, end)
    table = Table(store, predictions_table(model))
    schema = PREDICTIONS if columns is None else pa.schema([PREDICTIONS.field(name) for name in columns])
    if not table.exists():
        return schema.empty_table()
    where: Any = (
        (pc.field("day") >= _day(start))
        & (pc.field("day") <= _day(end))
        & (pc.field("predicted_at") >= pa.scalar(start, pa.timestamp("us", tz="UTC")))
        & (pc.field("predicted_at") < pa.scalar(end, pa.timestamp("us", tz="UTC")))
    )
    wanted = list(
        dict.fromkeys([*(columns or PREDICTIONS.names), "predicted_at", "prediction_id", "version"])
    )
    rows = table.read(columns=wanted, where=where)
    order = [("predicted_at", "ascending"), ("prediction_id", "ascending"), ("version", "ascending")]
    return rows.sort_by(order).select(schema.names).cast(schema)


def latest_labels(store: ObjectStore, *, received_from: datetime | None = None) -> pa.Table:
    """For each prediction id the label in force: of several, the latest observed, then the latest received."""
    table = Table(store, LABELS_TABLE)
    if not table.exists():
        return LABELS.empty_table()
    where: Any = None if received_from is None else pc.field("day") >= _day(received_from)
    rows = pl.from_arrow(table.read(where=where))
    assert isinstance(rows, pl.DataFrame)  # noqa: S101 - a table is not a column
    latest = rows.sort("observed_at", "received_at").unique("prediction_id", keep="last", maintain_order=True)
    return latest.to_arrow().cast(LABELS)


def outcomes(
    store: ObjectStore,
    model: str,
    start: datetime,
    end: datetime,
    *,
    labelled_only: bool = True,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Predictions with start <= predicted_at < end beside their labels, in order of prediction.

    Columns of the predictions (or `columns` of them), then `label`, `observed_at`, `received_at`; shadows are
    rows of their own with the same prediction_id and label. A label is never received before the day of its
    prediction: older label files are not read.
    labelled_only: leave out predictions without a label; otherwise their label is null.
    Raises: ValueError if a time is naive.
    """
    wanted = None if columns is None else list(dict.fromkeys([*columns, "prediction_id"]))
    left = pl.from_arrow(predictions(store, model, start, end, columns=wanted))
    right = pl.from_arrow(latest_labels(store, received_from=start - timedelta(days=1)))
    assert isinstance(left, pl.DataFrame)  # noqa: S101 - tables are not columns
    assert isinstance(right, pl.DataFrame)  # noqa: S101
    joined = left.join(
        right.drop("day"),
        on="prediction_id",
        how="inner" if labelled_only else "left",
        maintain_order="left",
    )
    names = wanted if wanted is not None else PREDICTIONS.names
    fields = [PREDICTIONS.field(name) for name in names]
    fields += [LABELS.field(name).with_nullable(True) for name in ("label", "observed_at", "received_at")]
    return joined.to_arrow().cast(pa.schema(fields))


def _day(at: datetime) -> str:
    return at.astimezone(UTC).date().isoformat()


def _aware(*times: datetime) -> None:
    for at in times:
        if at.tzinfo is None:
            raise ValueError(f"a time needs its zone, got {at.isoformat()}; use datetime.now(UTC)")
