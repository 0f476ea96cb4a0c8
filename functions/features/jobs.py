"""Functions on features that build training sets with lineage, bring features online and measure their health."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from featurestore import InvalidRows, Materialized, ViewHealth, view_health
from featurestore.offline.historical import RetrievalJob
from functions.runtime.context import context
from functions.runtime.declaration import Retries
from functions.runtime.function import function
from functions.runtime.run.capture import report_progress
from registry import InvalidInput, NotFound, ObjectStore, Table, TableSnapshot, as_utc
from registry.store import check_table_name

EVENT_TIMESTAMP = "event_timestamp"
LABEL_KNOWN_AT = "label_known_at"
HEALTH_TABLE = "feature_health"

_HEALTH = pa.schema(
    [
        pa.field("view", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("feature", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("measured_at", pa.timestamp("us", "UTC"), nullable=False),
    ]
)
"""One row for each view and metric (`rows`, `freshness_s`, `recent_rows`, `coverage`), and for each feature's `fill`."""


class TrainingSetLineage(BaseModel):
    """Origin of a training set: feature service, entity rows, and the snapshots that were read.

    entities: the snapshot of rows and labels; views: digest of each view's definition; tables: the offline snapshot read for
    each view (absent: the view had no rows); start, end: of event times; known_by: labels known later were left out; rows:
    number of rows in the set.
    """

    model_config = ConfigDict(frozen=True)

    service: str
    entities: TableSnapshot
    views: dict[str, str]
    tables: dict[str, TableSnapshot]
    label: str
    start: datetime
    end: datetime
    known_by: datetime
    rows: int


class MaterializeResult(BaseModel):
    """Result of a materialization, view by view."""

    model_config = ConfigDict(frozen=True)

    views: list[Materialized]

    @property
    def rows(self) -> int:
        """Number of rows offered to the online store."""
        return sum(view.rows for view in self.views)

    @property
    def written(self) -> int:
        """Number of rows that the online store did not have yet."""
        return sum(view.written for view in self.views)


@function(http=True, timeout_s=1800, retries=Retries(max_attempts=3))
def build_training_set(
    service: str,
    entities: TableSnapshot,
    label: str,
    start: datetime,
    end: datetime,
    known_by: datetime | None = None,
    name: str = "",
) -> TableSnapshot:
    """Build the features of a service as of each labelled row's time, stored as a table snapshot with its lineage.

    service: name of a feature service that is in force.
    entities: rows with join keys, request values, `event_timestamp`, the label, and perhaps `label_known_at`; used are
        rows with `start <= event_timestamp < end`, a label, and `label_known_at <= known_by`.
    known_by: by default now, on the platform's clock.
    name: of the table it is stored in, by default `training/{service}`; every call makes a new version of it.
    Raises: InvalidRows if no row is left, or a column is missing; InvalidInput for the name of a table that holds anything
    but training sets.
    """
    ctx = context()
    table = Table(ctx.store, check_table_name(name or f"training/{service}", what="name"))
    _require_training_sets(table)
    features = ctx.features()
    since, until = as_utc(start, name="start"), as_utc(end, name="end")
    known = ctx.clock() if known_by is None else as_utc(known_by, name="known_by")
    rows = Table(ctx.store, entities.name).read(version=entities.version, where=_between(since, until))
    chosen = labelled(rows, label, known_by=known)
    if not chosen.num_rows:
        msg = f"{entities} has no rows with {label!r} known by {known} and {since} <= {EVENT_TIMESTAMP} < {until}"
        raise InvalidRows(msg)
    job = features.get_historical_features(chosen, features=service)
    lineage = TrainingSetLineage(
        service=service,
        entities=entities,
        views=features.definitions_digest(service),
        tables=_tables(job),
        label=label,
        start=since,
        end=until,
        known_by=known,
        rows=chosen.num_rows,
    )
    return table.overwrite(job.to_arrow(), metadata={"training_set": lineage.model_dump_json()})


def _require_training_sets(table: Table) -> None:
    """Check that a table is new or was made by `build_training_set`: entities and others are never written over.

    Raises: InvalidInput.
    """
    if not table.exists():
        return
    newest = table.version()
    # Version 0 creates the table, empty, and the first training set is version 1; upkeep commits later versions.
    left_by_a_kill = newest == 0 and not table.dataset().count_rows()
    if not left_by_a_kill and "training_set" not in table.metadata(min(newest, 1)):
        raise InvalidInput(
            f"name={table.name!r} is a table of something else than training sets; choose another"
        )


def training_set_lineage(snapshot: TableSnapshot) -> TrainingSetLineage:
    """Read the origin of a stored training set.

    Raises: InvalidRows if the snapshot was not made by `build_training_set`.
    """
    metadata = Table(context().store, snapshot.name).metadata(snapshot.version)
    if "training_set" not in metadata:
        raise InvalidRows(
            f"{snapshot} was not made by build_training_set; its metadata has {sorted(metadata)}"
        )
    return TrainingSetLineage.model_validate(json.loads(metadata["training_set"]))


@function(http=True, timeout_s=1800, retries=Retries(max_attempts=3))
def materialize(views: list[str] | None = None, end: datetime | None = None) -> MaterializeResult:
    """Bring new rows of views online up to `end`, with late rows and corrections; safe to repeat at any time.

    views: by default all; end: by default now, on the platform's clock. Reports rows done of those to read, and the rate.
    Raises: OnlineStoreUnavailable if Redis does not answer; a rerun completes it.
    """
    features = context().features()
    return MaterializeResult(views=features.materialize_incremental(end, views=views, progress=_Progress()))


class _Progress:
    """Reports progress and rows a second of the view that is being materialized."""

    def __init__(self) -> None:
        self._view = ""
        self._begun = self._last = time.perf_counter()

    def __call__(self, view: str, rows: int, total: int) -> None:
        if view != self._view:  # a view begins when the one before has ended
            self._view, self._begun = view, self._last
        self._last = time.perf_counter()
        rate = rows / (self._last - self._begun)
        report_progress(rows, total, f"{view}: {rows:,} of {total:,} rows, {rate:,.0f} rows/s")


@function(http=True, role="viewer", timeout_s=600)
def feature_health(
    views: list[str] | None = None, span_hours: float = 24.0, samples: int = 3
) -> list[ViewHealth]:
    """Measure how fresh and how full views are, how much of them is online, and show their newest rows.

    views: by default all; span_hours: how much of the newest event time is read.
    Raises: UnknownDefinition; OnlineStoreUnavailable if Redis does not answer.
    """
    features, span = context().features(), timedelta(hours=span_hours)
    names = [view.name for view in features.list_feature_views()] if views is None else views
    return [view_health(features, name, span=span, samples=samples) for name in names]


@function(http=True, timeout_s=600)
def record_feature_health(views: list[str] | None = None, span_hours: float = 24.0) -> list[ViewHealth]:
    """Measure views and append the figures to the table `feature_health`, for a schedule.

    Raises: UnknownDefinition; OnlineStoreUnavailable if Redis does not answer.
    """
    measured = feature_health(views, span_hours, samples=0)
    rows = [row for health in measured for row in _health_rows(health)]
    if rows:
        Table(context().store, HEALTH_TABLE).append(pa.Table.from_pylist(rows, schema=_HEALTH))
    return measured


def latest_feature_health(store: ObjectStore, *, since: datetime) -> list[dict[str, Any]]:
    """Read each view's newest measurement since `since` in the table `feature_health`.

    Raises: RegistryError if the store does not answer.
    """
    after = pc.field("measured_at") >= pa.scalar(since, pa.timestamp("us", "UTC"))
    try:
        rows = Table(store, HEALTH_TABLE).read(where=after).to_pylist()
    except NotFound:  # nothing was measured yet
        return []
    newest: dict[str, datetime] = {}
    for row in rows:
        newest[row["view"]] = max(row["measured_at"], newest.get(row["view"], row["measured_at"]))
    return [row for row in rows if row["measured_at"] == newest[row["view"]]]


def _health_rows(health: ViewHealth) -> list[dict[str, Any]]:
    figures: dict[tuple[str, str | None], float | None] = {
        ("rows", None): float(health.rows),
        ("freshness_s", None): health.freshness_s,
        ("recent_rows", None): float(health.recent_rows),
        ("coverage", None): health.coverage,
    } | {("fill", feature): share for feature, share in health.fill.items()}
    return [
        {
            "view": health.view,
            "metric": metric,
            "feature": feature,
            "value": value,
            "measured_at": health.measured_at,
        }
        for (metric, feature), value in figures.items()
    ]


def labelled(rows: pa.Table, label: str, *, known_by: datetime) -> pa.Table:
    """Select the rows whose label is present and was known by a time.

    Raises: InvalidRows if there is no such column.
    """
    if label not in rows.column_names:
        raise InvalidRows(f"entity table: label column {label!r} is missing; got {rows.column_names}")
    kept = pc.is_valid(rows.column(label))
    if LABEL_KNOWN_AT in rows.column_names:
        known = pc.less_equal(rows.column(LABEL_KNOWN_AT), pa.scalar(known_by, pa.timestamp("us", "UTC")))
        kept = pc.and_(kept, pc.fill_null(known, False))
    return rows.filter(kept)


def _between(start: datetime, end: datetime) -> pc.Expression:
    time, utc = pc.field(EVENT_TIMESTAMP), pa.timestamp("us", "UTC")
    return (time >= pa.scalar(start, utc)) & (time <= pa.scalar(end - timedelta(microseconds=1), utc))


def _tables(job: RetrievalJob) -> dict[str, TableSnapshot]:
    return {view: snapshot for view, snapshot in job.versions.items() if snapshot is not None}
