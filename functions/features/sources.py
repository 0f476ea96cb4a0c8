"""Rows into feature views and into the tables that a model learns from: from batch sources, or as a user gives them.

Rows that a user gives come in batches and are never all in memory. Loading the same rows again writes nothing: of
each key and time the newest row is remembered by a hash.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated

import polars as pl
import pyarrow as pa
from pydantic import BaseModel, Field

from toque.featurestore import (
    BatchSource,
    FeatureStore,
    FeatureStoreError,
    FeatureView,
    OnDemandFeatureView,
    Projection,
    Refreshed,
    SourceLoad,
)
from toque.featurestore.rows import conform
from toque.featurestore.sources import IcebergRows, SqlTable
from toque.featurestore.sources.backfill import load_range
from toque.functions.features.entity_rows import EVENT_TIMESTAMP, LABEL_KNOWN_AT
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Retries
from toque.functions.runtime.function import function
from toque.functions.runtime.secret import secret_value, use_secrets
from toque.registry import InvalidInput, Table
from toque.registry.errors import Forbidden, Unavailable
from toque.registry.store import Part, check_table_name, overwrite_with_parts, write_part

_CREATED = "created_timestamp"
_logger = logging.getLogger(__name__)
_BATCH_ROWS = 500_000  # in memory at a time
AgainFrom = Annotated[
    datetime | None,
    Field(
        description=(
            "First event time of what is loaded again, with an offset from UTC; "
            "only what is new is loaded unless given."
        )
    ),
]
AgainUpTo = Annotated[
    datetime | None,
    Field(
        description=(
            "Event time before which it is loaded again, with an offset from UTC; "
            "now unless given, and only with `start`."
        )
    ),
]


class SourceStatus(BaseModel, frozen=True):
    """State of a batch source. loads: the last ones, newest first; views: that take their rows or events from it."""

    source: str
    reads: str
    owner: str
    views: list[str]
    loads: list[SourceLoad]


class FeatureRefresh(BaseModel, frozen=True):
    """Result of a refresh: what was loaded, and the rows that came into each view."""

    loads: list[SourceLoad]
    views: list[Refreshed]


class RefreshError(FeatureStoreError):
    """Some sources or views could not be refreshed; all others were."""


@function(http=True, timeout_s=3600, retries=Retries(max_attempts=3), max_concurrency=1)
def load_source(
    source: Annotated[str, Field(description="Name of a batch source.")],
    start: AgainFrom = None,
    end: AgainUpTo = None,
) -> SourceLoad | None:
    """Load what is new at a batch source into its table, once; None if nothing is.

    With `start` it loads what happened from then on, before `end`, wherever the source was read up to: rows that are
    not stored as they are there. The source must then say what is `unique`.
    Raises: InvalidInput for `end` alone; UnknownDefinition; UnreadableSource if it cannot be read as declared, and
    UnexpectedRows if too many rows do not fit: then nothing is stored.
    """
    _check_range(start, end)
    table = context().features().source_table(source)
    reads = table.source.reads
    needed = reads.secret_names if isinstance(reads, SqlTable | IcebergRows) else []
    with use_secrets(f"batch source {source!r}", needed, context().find_secret):
        if start is None:
            return table.load(secret_value)
        return load_range(table, secret_value, start=start, end=context().clock() if end is None else end)


@function(http=True, timeout_s=7200, retries=Retries(max_attempts=3), max_concurrency=1)
def refresh_features(
    views: Annotated[
        list[str] | None,
        Field(description="Names of feature views; all that have a source or are derived unless given."),
    ] = None,
    start: AgainFrom = None,
    end: AgainUpTo = None,
) -> FeatureRefresh:
    """Load the batch sources of views, and bring what is new into the views' offline tables, each row once.

    Of streams it brings what their consumers have stored.

    A range of the sources is loaded again as `load_source` does.
    Safe to repeat, and to kill, at any time; `materialize` brings the rows online.
    Raises: RefreshError, once all others had their turn; InvalidInput for `end` alone; UnknownDefinition.
    """
    _check_range(start, end)
    features = context().features()
    chosen = _with_sources(features.list_feature_views(), views)
    loads: list[SourceLoad] = []
    refreshed: list[Refreshed] = []
    failed: dict[str, str] = {}
    batch = {view.events.name for view in chosen if isinstance(view.events, BatchSource)}
    for source in sorted(batch):
        try:
            loaded = load_source(source, start, end)
        except (Unavailable, Forbidden):  # of our own store
            raise
        except Exception as error:  # noqa: BLE001  # a reader's library raises errors of its own; the others have their turn
            failed[f"batch source {source!r}"] = _reason(error)
        else:
            loads += [] if loaded is None else [loaded]
    for view in chosen:
        try:
            refreshed.append(features.refresh_view(view))
        except (Unavailable, Forbidden):
            raise
        except Exception as error:  # noqa: BLE001  # as above
            failed[f"feature view {view.name!r}"] = _reason(error)
    if failed:
        raise RefreshError("; ".join(f"{name}: {text}" for name, text in failed.items()))
    return FeatureRefresh(loads=loads, views=refreshed)


def _reason(error: Exception) -> str:
    if isinstance(error, FeatureStoreError):
        return str(error)
    _logger.error("a refresh failed", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _check_range(start: datetime | None, end: datetime | None) -> None:
    if start is None and end is not None:
        raise InvalidInput(
            f"end={end.isoformat()} ends what is loaded again, and there is no start: give start, or leave end out"
        )


def refresh_service(service: str) -> FeatureRefresh:
    """Refresh all views that a feature service reads, also through on-demand views, and those that they are derived from.

    Views whose rows are written by hand stay as they are. Raises: as `refresh_features`.
    """
    views = _stored_views(context().features().get_feature_service(service).projections)
    return refresh_features([view.name for view in views if view.events is not None or view.inputs])


def _stored_views(projections: Iterable[Projection]) -> Iterator[FeatureView]:
    """Yield the stored views of projections, and those whose columns their on-demand views get."""
    for each in projections:
        if isinstance(each.view, OnDemandFeatureView):
            yield from _stored_views(each.view.projections)
        else:
            yield each.view


@function(http=True, role="viewer", timeout_s=600, in_thread=True)
def source_status(
    sources: Annotated[
        list[str] | None, Field(description="Names of batch sources; all of the project unless given.")
    ] = None,
    loads: Annotated[
        int, Field(le=1_000, ge=0, description="Number of each source's last loads that are listed.")
    ] = 5,
) -> list[SourceStatus]:
    """Tell of batch sources what they read, what their last loads brought, and which views use them.

    Raises: UnknownDefinition.
    """
    features = context().features()
    views = features.list_feature_views()
    found = []
    for name in features.list_batch_sources() if sources is None else sources:
        table = features.source_table(name)
        described = table.source.reads.describe()
        kind = described.pop("type")
        where = next(str(described[key]) for key in ("pattern", "uri", "table") if key in described)
        found.append(
            SourceStatus(
                source=name,
                reads=f"{kind} {where}",
                owner=table.source.owner,
                views=[each.name for each in views if each.reads_from(table.source)],
                loads=list(table.state().loads[::-1][:loads]),
            )
        )
    return found


def _with_sources(known: Sequence[FeatureView], names: Sequence[str] | None) -> list[FeatureView]:
    """Choose the views that have a batch source or are derived, each after those that it is derived from.

    names: of views that are wanted, with all that they are derived from. Raises: UnknownDefinition.
    """
    features = context().features()
    wanted = known if names is None else [features.get_feature_view(name) for name in names]
    found: dict[str, FeatureView] = {}

    def add(view: FeatureView, *, named: bool) -> None:
        for each in view.inputs:
            add(features.get_feature_view(each.view.name), named=False)
        if named or view.events is not None or view.inputs:
            found.setdefault(view.name, view)

    for view in wanted:
        add(view, named=names is not None)
    return list(found.values())


def load_declared(
    view: FeatureView, *, entities: str, label: pl.Expr | str, label_delay: timedelta = timedelta(0)
) -> LoadedRows:
    """Load what is new at a view's batch source, bring it into the view, and write the table of entities from all of its rows.

    view: applied already, with `events`. entities: name of the table of entities, which is replaced as a whole, at once: key, time
    and label of each row. label: a column of the source, or an expression of its columns that is named as the label.
    label_delay: how long after its time a row's label becomes known. Raises: InvalidInput if the view has no batch source or that has
    no rows; RefreshError.
    """
    if not isinstance(view.events, BatchSource):
        raise InvalidInput(
            f"feature view {view.name!r} declares no batch source; give it events=BatchSource(…)"
        )
    done = refresh_features([view.name])
    used, expression = context(), pl.col(label) if isinstance(label, str) else label
    keys = [key.name for key in view.join_keys]
    read = used.features().source_table(view.events).rows(columns=[*keys, *expression.meta.root_names()])
    rows = pl.DataFrame(read)
    if not rows.height:
        raise InvalidInput(f"batch source {view.events.name!r} has no rows; is the file empty?")
    asked = rows.select(
        *keys, EVENT_TIMESTAMP, expression, (pl.col(EVENT_TIMESTAMP) + label_delay).alias(LABEL_KNOWN_AT)
    )
    Table(used.store, check_table_name(entities, what="entities")).overwrite(asked.to_arrow())
    name = expression.meta.output_name()
    return LoadedRows(
        rows=rows.height,
        written=sum(each.rows for each in done.views),
        labelled=rows.height - asked[name].null_count(),
    )


class LoadedRows(BaseModel, frozen=True):
    """Result of one load of rows. rows: read; written: feature rows that were new or had changed; labelled: rows with a label."""

    rows: int = 0
    written: int = 0
    labelled: int = 0


@dataclass(slots=True)
class _Known:
    """Newest row of each key and time in a view's table, as hashes."""

    rows: dict[int, int] = field(default_factory=dict)

    def new(self, batch: pl.DataFrame, keys: list[str], columns: list[str]) -> pl.DataFrame:
        """Select the rows that differ from what is known, and remember them."""
        names = batch.select(keys).hash_rows().to_list()
        contents = batch.select(columns).hash_rows().to_list()
        fresh = [self.rows.get(name) != content for name, content in zip(names, contents, strict=True)]
        self.rows.update(zip(names, contents, strict=True))
        return batch.filter(pl.Series(fresh, dtype=pl.Boolean))


def load_rows(
    rows: pl.LazyFrame | pl.DataFrame | Iterable[pl.DataFrame],
    *,
    view: FeatureView,
    entities: str,
    label: str,
    label_delay: timedelta = timedelta(0),
) -> LoadedRows:
    """Write rows to a view's offline table and to a model's table of entities; what is there already is not written again.

    rows: the view's keys and features, `event_timestamp` and the label, which may be null; perhaps `label_known_at`.
    view: applied already. entities: name of the table of entities, which is replaced as a whole, at once.
    label_delay: how long after its time a row's label becomes known, where the rows do not say.
    Raises: InvalidRows for rows that do not fit the view; InvalidInput if the label's column or all rows are missing.
    """
    used = context()
    features, table = used.features(), Table(used.store, check_table_name(entities, what="entities"))
    keys = [*(key.name for key in view.join_keys), EVENT_TIMESTAMP]
    columns = [*keys, *view.features]
    known, total = _known(features, view, keys, columns), LoadedRows()
    parts: list[Part] = []
    schema: pa.Schema | None = None
    for batch in _batches(rows):
        if label not in batch.columns:
            raise InvalidInput(f"the rows have no column {label!r}; they have {batch.columns}")
        typed = pl.DataFrame(conform(view, batch.select(columns), clock=used.clock))
        fresh = known.new(typed, keys, columns)
        if fresh.height:
            features.write_offline(view, fresh.drop(_CREATED))  # the rows do not say when they became known
        asked = _entities(batch, keys, label, label_delay).to_arrow()
        schema = schema or pa.schema([field.with_nullable(True) for field in asked.schema])
        if not parts:
            table.create(schema)
        parts.append(write_part(table, asked.cast(schema)))
        total = LoadedRows(
            rows=total.rows + batch.height,
            written=total.written + fresh.height,
            labelled=total.labelled + batch.height - batch[label].null_count(),
        )
    if schema is None:
        raise InvalidInput("there are no rows to load; is the source empty?")
    overwrite_with_parts(table, parts, schema)
    return total


def _batches(rows: pl.LazyFrame | pl.DataFrame | Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    if isinstance(rows, pl.LazyFrame):
        rows = rows.collect_batches(chunk_size=_BATCH_ROWS)
    for batch in [rows] if isinstance(rows, pl.DataFrame) else rows:
        yield from (part for part in batch.iter_slices(_BATCH_ROWS) if part.height)


def _entities(batch: pl.DataFrame, keys: list[str], label: str, delay: timedelta) -> pl.DataFrame:
    """Select what is asked about each row: its key and time, its label, and when that became known."""
    given = LABEL_KNOWN_AT in batch.columns
    known_at = pl.col(LABEL_KNOWN_AT) if given else pl.col(EVENT_TIMESTAMP) + delay
    return batch.select(*keys, pl.col(label), known_at.alias(LABEL_KNOWN_AT))


def _known(features: FeatureStore, view: FeatureView, keys: list[str], columns: list[str]) -> _Known:
    """Read the newest row of each key and time, a part of the table at a time."""
    found = _Known()
    version = features.offline.version(view)
    if version is None:
        return found
    newest: dict[int, int] = {}
    for rows, _ in features.offline.batches(
        view, version, version.files, start=None, end=None, rows=_BATCH_ROWS
    ):
        batch = pl.DataFrame(rows).sort(_CREATED)
        names = batch.select(keys).hash_rows().to_list()
        contents = batch.select(columns).hash_rows().to_list()
        made = batch[_CREATED].to_physical().to_list()
        for name, content, at in zip(names, contents, made, strict=True):
            if at >= newest.get(name, at):
                newest[name], found.rows[name] = at, content
    return found
