"""Batch sources as functions: load what is new, bring it into the views that use it, and tell how far each was read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from toque.featurestore import (
    BatchSource,
    FeatureStoreError,
    FeatureView,
    OnDemandFeatureView,
    Projection,
    Refreshed,
    SourceLoad,
)
from toque.featurestore.sources import IcebergRows, SqlTable
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Retries
from toque.functions.runtime.function import function
from toque.functions.runtime.secret import secret_value, use_secrets


class SourceStatus(BaseModel):
    """State of a batch source. loads: the last ones, newest first; views: that take their rows or events from it."""

    model_config = ConfigDict(frozen=True)

    source: str
    reads: str
    owner: str
    views: list[str]
    loads: list[SourceLoad]


class FeatureRefresh(BaseModel):
    """Result of a refresh: what was loaded, and the rows that came into each view."""

    model_config = ConfigDict(frozen=True)

    loads: list[SourceLoad]
    views: list[Refreshed]


class RefreshError(FeatureStoreError):
    """Some sources or views could not be refreshed; all others were."""


@function(http=True, timeout_s=3600, retries=Retries(max_attempts=3), max_concurrency=1)
def load_source(source: str, start: datetime | None = None, end: datetime | None = None) -> SourceLoad | None:
    """Load what is new at a batch source into its table, once; None if nothing is.

    start: load again what happened from then on, before `end` (default: now), wherever the source was read up to: rows that
    are not stored as they are there. The source must say what is `unique`.
    Raises: UnknownDefinition; UnreadableSource if it cannot be read as declared, and UnexpectedRows if too many rows do not
    fit: then nothing is stored.
    """
    table = context().features().source_table(source)
    reads = table.source.reads
    needed = reads.secret_names if isinstance(reads, SqlTable | IcebergRows) else []
    with use_secrets(f"batch source {source!r}", needed, context().find_secret):
        if start is None:
            return table.load(secret_value)
        return table.backfill(secret_value, start=start, end=context().clock() if end is None else end)


@function(http=True, timeout_s=7200, retries=Retries(max_attempts=3), max_concurrency=1)
def refresh_features(
    views: list[str] | None = None, start: datetime | None = None, end: datetime | None = None
) -> FeatureRefresh:
    """Load the batch sources of views, and bring what is new into the views' offline tables, each row once.

    Of streams it brings what their consumers have stored.

    views: by default all that have a source. start, end: load this range of the sources again, as `load_source` does.
    Safe to repeat, and to kill, at any time; `materialize` brings the rows online.
    Raises: RefreshError, once all others had their turn; UnknownDefinition.
    """
    features = context().features()
    chosen = _with_sources(features.list_feature_views(), views)
    loads: list[SourceLoad] = []
    refreshed: list[Refreshed] = []
    failed: dict[str, str] = {}
    batch = {view.events.name for view in chosen if isinstance(view.events, BatchSource)}
    for source in sorted(batch):
        try:
            loaded = load_source(source, start, end)
        except FeatureStoreError as error:
            failed[f"batch source {source!r}"] = str(error)
        else:
            loads += [] if loaded is None else [loaded]
    for view in chosen:
        try:
            refreshed.append(features.refresh_view(view))
        except FeatureStoreError as error:
            failed[f"feature view {view.name!r}"] = str(error)
    if failed:
        raise RefreshError("; ".join(f"{name}: {text}" for name, text in failed.items()))
    return FeatureRefresh(loads=loads, views=refreshed)


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
def source_status(sources: list[str] | None = None, loads: int = 5) -> list[SourceStatus]:
    """Tell of batch sources what they read, what their last loads brought, and which views use them.

    sources: by default all. Raises: UnknownDefinition.
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
