"""Functions on features that build training sets with lineage, bring features online and measure their health."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from toque.featurestore import InvalidDefinition, InvalidRows, Materialized, ViewHealth, view_health
from toque.featurestore.offline.retrieval import PinnedRetrieval, check_entities, stored_view
from toque.featurestore.offline.retrieval_job import RetrievalJob
from toque.featurestore.online.materialize import Spread
from toque.featurestore.sources import SourceLineage
from toque.functions.arguments import End, Label, Start, Views
from toque.functions.features.entity_rows import EntityRows
from toque.functions.features.large_training_sets import (
    BuildPlan,
    BuildRecord,
    ShardedBuild,
    estimated_bytes,
    memory_bytes,
)
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Retries
from toque.functions.runtime.function import function
from toque.functions.runtime.run import cluster
from toque.functions.runtime.run.log import report_progress
from toque.registry import InvalidInput, NotFound, ObjectStore, Table, TableSnapshot, as_utc
from toque.registry.store import check_table_name, overwrite_with_parts

SpanHours = Annotated[
    float,
    Field(gt=0.0, le=87_600.0, description="Hours of event time that are read, back from the newest row."),
]

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


class TrainingSetLineage(BaseModel, frozen=True):
    """Origin of a training set: feature service (empty: none), entity rows, and the snapshots that were read.

    entities: the snapshot of rows and labels; views: digest of each view's definition; tables: the offline snapshot read for
    each view (absent: the view had no rows); start, end: of event times; known_by: labels known later were left out; rows:
    number of rows in the set; as_known: whether values that became known after a row's time were left out; sources: batch sources that the views' rows came from, each up to the load that they had.
    """

    service: str
    entities: TableSnapshot
    views: dict[str, str]
    tables: dict[str, TableSnapshot]
    label: str
    start: datetime
    end: datetime
    known_by: datetime
    rows: int
    as_known: bool = False
    sources: dict[str, SourceLineage] = {}


class MaterializeResult(BaseModel, frozen=True):
    """Result of a materialization, view by view."""

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
    service: Annotated[
        str | None,
        Field(
            description="Name of a feature service in force; none if the rows have all their features already."
        ),
    ],
    entities: Annotated[
        TableSnapshot,
        Field(
            description=(
                "Table at one version, of rows with join keys, request values, `event_timestamp`, the label, "
                "and perhaps `label_known_at`."
            )
        ),
    ],
    label: Label,
    start: Start,
    end: End,
    known_by: Annotated[
        datetime | None,
        Field(
            description=(
                "Time by which a label must have been known, with an offset from UTC; "
                "now, on the platform's clock, unless given."
            )
        ),
    ] = None,
    name: Annotated[
        str,
        Field(
            description=(
                "Table that gets the set as its next version; `training/` and the name of the service, "
                "or else of the entities, unless given."
            )
        ),
    ] = "",
    *,
    as_known: Annotated[
        bool,
        Field(
            description=(
                "Whether a row sees only values that were known at its time, of views that say when; "
                "otherwise all by event time alone."
            )
        ),
    ] = True,
) -> TableSnapshot:
    """Build the features of a service as of each labelled row's time, stored as a table snapshot with its lineage.

    Used are rows with `start <= event_timestamp < end`, a label, and `label_known_at <= known_by`. Views say when a
    value became known by `known_at` of a source, the log of a stream, or a `created_timestamp` that was written.
    A set that would take more than `memory_share` of this machine's memory, by the tables' logs, is made shard by shard, on the
    Ray cluster if there is one; a call that was killed is taken up after its last shard when it is made again within six hours.
    Raises: InvalidDefinition for a feature whose deprecation is in force; InvalidRows if no row is left, or a column is missing; InvalidInput for the name of a table that holds anything
    but training sets.
    """
    ctx = context()
    table = Table(ctx.store, check_table_name(name or f"training/{service or entities.name}", what="name"))
    _require_training_sets(table)
    since, until = as_utc(start, name="start"), as_utc(end, name="end")
    known = ctx.clock() if known_by is None else as_utc(known_by, name="known_by")
    chosen = EntityRows(Table(ctx.store, entities.name), entities, label, since, until, known)
    empty = chosen.choose(chosen.pinned().schema.empty_table())
    job = None if service is None else _retrieval(empty, service, as_known=as_known)
    if job is not None:
        _refuse_deprecated(job, ctx.clock())
    digests = {} if service is None else ctx.features().definitions_digest(service)
    asked = _Asked(service, table, chosen, job, digests, known_given=known_by is not None, as_known=as_known)
    if estimated_bytes(chosen, job) > ctx.memory_share * memory_bytes():
        return _built_in_shards(asked)
    rows = chosen.read()
    if not rows.num_rows:
        raise InvalidRows(chosen.none_left())
    if job is not None:
        rows = replace(job, entities=check_entities(rows, job.retrieval)).to_arrow()
    return table.overwrite(rows, metadata=asked.metadata(rows.num_rows))


def _retrieval(entities: pa.Table, service: str, *, as_known: bool) -> RetrievalJob:
    features = context().features()
    views = features.views_with_known_times(service) if as_known else frozenset[str]()
    return features.get_historical_features(entities, features=service, as_known=views)


def _refuse_deprecated(job: PinnedRetrieval, now: datetime) -> None:
    """Refuse features whose deprecation has come into force. Raises: InvalidDefinition."""
    for lookup in job.retrieval.lookups:
        given = stored_view(lookup).deprecated
        used = [name for name in lookup.features if given is not None and given.concerns(name)]
        if given is not None and used and given.since <= now:
            raise InvalidDefinition(
                f"feature {lookup.view.name}:{used[0]} is deprecated since {given.since.isoformat()}, so no training set is made "
                f"with it: {given.remedy}"
            )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a call of `build_training_set` asked for. job: a retrieval for no rows; digests: of the views' definitions."""

    service: str | None
    table: Table
    entities: EntityRows
    job: RetrievalJob | None
    digests: dict[str, str]
    known_given: bool
    as_known: bool

    def metadata(self, rows: int) -> dict[str, str]:
        """Metadata of the commit: the lineage."""
        entities = self.entities
        lineage = TrainingSetLineage(
            service=self.service or "",
            entities=entities.snapshot,
            views=self.digests,
            tables={} if self.job is None else _tables(self.job),
            label=entities.label,
            start=entities.start,
            end=entities.end,
            known_by=entities.known_by,
            rows=rows,
            as_known=self.as_known,
            sources={} if self.job is None else context().features().sources_of(self.job),
        )
        return {"training_set": lineage.model_dump_json()}

    def key(self) -> str:
        """Digest of what was asked, by which a call takes up one that was killed: in a durable run only its own attempts."""
        entities = self.entities
        known = entities.known_by.isoformat() if self.known_given else ""
        texts = [self.service or "", self.table.name, str(entities.snapshot), entities.label, known]
        texts += [entities.start.isoformat(), entities.end.isoformat(), context().invocation or ""]
        texts += [] if self.as_known else ["by event time"]
        return sha256(json.dumps([texts, self.digests], sort_keys=True).encode()).hexdigest()


def _built_in_shards(asked: _Asked) -> TableSnapshot:
    """Build a set of which no process holds more than a shard, after the shards that a killed call has left."""
    ctx, job = context(), asked.job
    schema = asked.entities.pinned().schema if job is None else job.to_arrow().schema
    build = ShardedBuild(asked.table, asked.entities, job, schema)
    versions = {} if job is None else dict(job.versions)
    record = BuildRecord(ctx.store, asked.key())
    plan = record.begin(
        BuildPlan(
            made_at=ctx.clock(),
            known_by=asked.entities.known_by,
            tables=versions,
            shard_rows=build.shard_rows(ctx.memory_share * memory_bytes()),
            entities=asked.entities.pinned().digest(),
        )
    )
    asked = replace(
        asked,
        entities=replace(asked.entities, known_by=plan.known_by, digest=plan.entities),
        job=None if job is None else replace(job, versions=plan.tables),
    )
    try:
        parts = replace(build, entities=asked.entities, job=asked.job).write(record, plan)
    except InvalidRows:  # another call would meet it again
        record.end()
        raise
    metadata = asked.metadata(sum(part.rows for part in parts))
    made = overwrite_with_parts(asked.table, parts, schema, metadata=metadata, commit_id=plan.id)
    record.end()
    return made


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
def materialize(
    views: Views = None,
    end: Annotated[
        datetime | None,
        Field(
            description=(
                "Event time up to which rows are brought online, with an offset from UTC; "
                "now, on the platform's clock, unless given."
            )
        ),
    ] = None,
) -> MaterializeResult:
    """Bring new rows of views online up to `end`, with late rows and corrections; safe to repeat at any time.

    A view with a million new rows is written by tasks
    on all nodes of the Ray cluster, if there is one. Reports rows done of those to read, and the rate.
    Raises: OnlineStoreUnavailable if Redis does not answer; a rerun completes it.
    """
    spread: Spread | None = None
    if cluster.running():
        from toque.featurestore.online.spread import spread_files as spread  # late: Ray Data, as above

    done = context().features().materialize_incremental(end, views=views, progress=_Progress(), spread=spread)
    return MaterializeResult(views=done)


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
    views: Views = None,
    span_hours: SpanHours = 24.0,
    samples: Annotated[
        int,
        Field(
            ge=0,
            le=1_000,
            description="Number of each view's newest rows that are shown, personal values masked.",
        ),
    ] = 3,
) -> list[ViewHealth]:
    """Measure how fresh and how full views are, how much of them is online, and show their newest rows.

    Raises: UnknownDefinition; OnlineStoreUnavailable if Redis does not answer.
    """
    features, span = context().features(), timedelta(hours=span_hours)
    names = [view.name for view in features.list_feature_views()] if views is None else views
    return [view_health(features, name, span=span, samples=samples) for name in names]


@function(http=True, timeout_s=600)
def record_feature_health(views: Views = None, span_hours: SpanHours = 24.0) -> list[ViewHealth]:
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


def _tables(job: PinnedRetrieval) -> dict[str, TableSnapshot]:
    return {view: snapshot for view, snapshot in job.versions.items() if snapshot is not None}
