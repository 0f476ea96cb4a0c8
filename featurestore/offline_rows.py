"""The offline half of a feature store: rows written, computed, refreshed from sources, and retrieved as of their times."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa

from toque.featurestore.applied import deserialize
from toque.featurestore.applied.definitions import Definitions
from toque.featurestore.definitions.computed import Derived
from toque.featurestore.definitions.expectations import Freshness
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP, check_name
from toque.featurestore.definitions.views import (
    FeatureLike,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    Projection,
    ViewOrName,
    projection,
)
from toque.featurestore.errors import UnknownDefinition
from toque.featurestore.offline.derived import consumed_as, new_derived_rows
from toque.featurestore.offline.retrieval import (
    Features,
    PinnedRetrieval,
    Retrieval,
    check_entities,
    plan_retrieval,
    stored_view,
)
from toque.featurestore.offline.retrieval_job import RetrievalJob
from toque.featurestore.offline.tables import OfflineStore
from toque.featurestore.rows import Clock, Tabular, check_rows, computing, conform, to_table
from toque.featurestore.sources import BatchSource, SourceLineage, SourceTable
from toque.featurestore.sources.refresh import Refreshed, keep_aside, new_rows
from toque.featurestore.streams import StreamSource, StreamTable
from toque.featurestore.streams.refresh import new_rows as new_stream_rows
from toque.featurestore.vectors import FOLLOWERS
from toque.registry.journal import Journal
from toque.registry.store import ObjectStore, Table, TableSnapshot


@dataclass(frozen=True, slots=True)
class _Consumed:
    """Loads of a generation of a batch source, up to one that a view has the rows of."""

    source: BatchSource
    load: int

    def order(self) -> tuple[int, int]:
        return self.source.generation, self.load


class OfflineRows(Definitions):
    """Offline rows of one project's views, under the definitions in force.

    store: holds definitions and rows; clock: gives created times and "now"; actor: recorded with changes.
    """

    def __init__(self, store: ObjectStore, project: str, *, clock: Clock, actor: str) -> None:
        check_name("project", project)
        self.project = project
        self._clock, self._actor = clock, actor
        self._store = store
        self.offline = OfflineStore(store, project)
        super().__init__(Journal(store, f"features/{project}/definitions", actor=actor, clock=clock))

    @property
    def place(self) -> str:
        """Store and project, for what a process keeps of them."""
        return f"{self._store.url} {self.project}"

    def now(self) -> datetime:
        """Current time of this store's clock."""
        return self._clock()

    def write_offline(self, view: ViewOrName, rows: Tabular) -> TableSnapshot:
        """Append rows to a view's offline table: join keys, features, `event_timestamp`, optionally `created_timestamp`.

        rows: an Arrow table, a pandas or polars frame, or a list of dicts.
        Returns: the table's version that has them.
        Raises: InvalidRows, UnknownDefinition.
        """
        found, table = self._applied(view), to_table(rows)
        typed = self._expected(found, table)
        return self._write(found, typed, known=self._known_in(found, table))

    def _known_in(self, view: FeatureView, rows: pa.Table) -> str | None:
        """Name the column of written rows that says since when they are known, where the view's rows differ in that."""
        if CREATED_TIMESTAMP in rows.column_names:
            self.offline.note_created(view)
            return CREATED_TIMESTAMP
        return EVENT_TIMESTAMP if self.offline.says_when_created(view) else None

    def _write(
        self,
        view: FeatureView,
        typed: pa.Table,
        *,
        loads: Mapping[str, int] | None = None,
        known: str | None = None,
    ) -> TableSnapshot:
        """Append typed rows to a view's table; searches of this process find them at once."""
        snapshot = self.offline.write(view, typed, loads=loads, known=known)
        FOLLOWERS.expire(self.place, view.stored_as)
        return snapshot

    def _expected(self, view: FeatureView, rows: Tabular) -> pa.Table:
        """Cast rows to their stored form and check the view's expectations.

        Raises: InvalidRows.
        """
        typed = conform(view, rows, clock=self._clock)
        check_rows(view, typed)
        self.check_fresh(view, typed)
        return typed

    def check_fresh(self, view: FeatureView, rows: pa.Table) -> None:
        """Check rows to be written against the view's `Freshness`, if it has one.

        rows: any table with their `event_timestamp`.
        Raises: UnexpectedRows.
        """
        for each in view.expectations:
            if isinstance(each, Freshness):
                newest = self.offline.newest(view)
                each.check(f"feature view {view.name!r}", rows, newest=newest, now=self._clock())

    def compute_offline(
        self, view: ViewOrName, events: Tabular, *, since: datetime | None = None
    ) -> TableSnapshot:
        """Compute a view's rows from raw events by its `source` and append them.

        since: an earlier run had all events up to then; only rows that it could not settle are computed, from events that
            reach back to `since - source.reach`.
        Raises: InvalidRows, UnknownDefinition (also if the view has no source).
        """
        found = self._applied(view)
        rows = computing(found, since)(to_table(events))
        return self._write(found, self._expected(found, rows))

    def source_table(self, source: BatchSource | str) -> SourceTable:
        """Open the table of a batch source that is in force, with the journal of its loads.

        Raises: UnknownDefinition.
        """
        found = self.get_batch_source(source if isinstance(source, str) else source.name)
        return self._table_of(found)

    def _table_of(self, source: BatchSource) -> SourceTable:
        """Open the table of a source in the generation that is given, by what is in force of it if it is that one."""
        found = self.get_batch_source(source.name)
        source = found if found.generation == source.generation else source
        return SourceTable(source, self._store, self.project, actor=self._actor, clock=self._clock)

    def stream_table(self, source: StreamSource | str) -> StreamTable:
        """Open the table of events of a stream source that is in force.

        Raises: UnknownDefinition.
        """
        found = self.get_stream_source(source if isinstance(source, str) else source.name)
        return StreamTable(found, self._store, self.project)

    def refresh_view(self, view: ViewOrName) -> Refreshed:
        """Bring what is new at a view's source, or in the views that it is derived from, into its offline table, once.

        Raises: InvalidRows, UnknownDefinition (also if the view has no source of rows).
        """
        found = self._applied(view)
        if isinstance(found.source, Derived):
            return self._refresh_derived(found, found.source)
        if found.events is None:
            raise UnknownDefinition(
                f"feature view {found.name!r} has no batch source and no stream source; give it events=… or write its rows with write_offline"
            )
        if isinstance(found.events, StreamSource):
            return self._refresh_from_stream(found, found.events)
        events = self._table_of(found.events)
        refreshed = new_rows(found, events, self.offline.consumed(found, events.source.stored_as))
        if refreshed.aside is not None and refreshed.aside.num_rows:
            keep_aside(found, events, refreshed.aside)
        if refreshed.rows is not None:
            typed = self._expected(found, refreshed.rows)
            self._write(found, typed, loads={events.source.stored_as: refreshed.until})
        return Refreshed(
            view=found.name,
            source=events.source.name,
            load=refreshed.until,
            rows=0 if refreshed.rows is None else refreshed.rows.num_rows,
            rejected=sum(refreshed.reasons.values()),
            reasons=refreshed.reasons,
        )

    def _refresh_derived(self, view: FeatureView, source: Derived) -> Refreshed:
        described = {"name": view.name, "code": source.code, "reference": source.reference}
        transform: Any = source.transform or self._transform(described)
        source = replace(
            source,
            inputs=[replace(each, view=self.in_generation(stored_view(each))) for each in source.projections],
        )
        found = new_derived_rows(self.offline, view, source, transform=transform, now=self._clock())
        rows = 0 if found is None else found.rows.num_rows
        if found is not None:
            typed = self._expected(view, found.rows) if rows else found.rows
            self.offline.write(view, typed, loads=found.consumed)
        inputs = ", ".join(each.view.name for each in source.projections)
        return Refreshed(view=view.name, source=inputs, rows=rows)

    def _refresh_from_stream(self, view: FeatureView, source: StreamSource) -> Refreshed:
        table = StreamTable(source, self._store, self.project)
        names = {each: f"{source.stored_as}:{each}" for each in table.known_partitions()}
        after = {each: self.offline.consumed(view, name) for each, name in names.items()}
        new = new_stream_rows(view, table, after)
        if new is not None:
            self.offline.write(
                view,
                conform(view, new.rows, clock=self._clock),
                loads={f"{source.stored_as}:{each}": position for each, position in new.until.items()},
                after={names[each]: position for each, position in after.items()},
            )
        return Refreshed(
            view=view.name,
            source=source.name,
            load=sum((new.until if new else after).values()),
            rows=new.rows.num_rows if new else 0,
            rejected=new.rejected if new else 0,
        )

    def offline_table(self, view: ViewOrName) -> Table:
        """Open the Delta table that holds a view's rows."""
        return self.offline.table(self._applied(view))

    def get_historical_features(
        self,
        entity_df: Tabular | TableSnapshot,
        features: Features,
        *,
        as_known: bool | frozenset[str] = False,
    ) -> RetrievalJob:
        """Retrieve features as they were at each entity row's `event_timestamp`; rows out are rows in, in order.

        entity_df: a table with the join keys, `event_timestamp` and any other columns, or a snapshot of one.
        features: a service (or its name), views, or `view:feature` strings.
        as_known: use only rows whose `created_timestamp` is not after the entity row's time; of these views only, if it is names.
        Raises: InvalidRows, InvalidDefinition, UnknownDefinition.
        """
        retrieval = self.plan_features(features)
        if isinstance(entity_df, TableSnapshot):
            entities = Table(self._store, entity_df.name).read(version=entity_df.version)
        else:
            entities = to_table(entity_df)
        entities = check_entities(entities, retrieval)
        return RetrievalJob(entities, retrieval, self.offline, self._versions(retrieval), as_known)

    def views_with_known_times(self, features: Features) -> frozenset[str]:
        """Names of the stored views whose `created_timestamp` says when a row became known, and not just when it was stored.

        Those of a stream, of a batch source with `known_at`, those derived from one of them, and those whose rows were written with
        a `created_timestamp`. A row of any other view counts as known at its event time.
        """
        views = (stored_view(lookup) for lookup in self.plan_features(features).lookups)
        return frozenset(view.name for view in views if self._says_when_known(view))

    def sources_of(self, job: PinnedRetrieval) -> dict[str, SourceLineage]:
        """Describe the part of each batch source that a retrieval's rows came from, by the source's name.

        Of a source that several views read, the loads up to the last that one of them has, of its last generation that they read.
        Raises: UnknownDefinition.
        """
        loads: dict[str, _Consumed] = {}
        for lookup in job.retrieval.lookups:
            snapshot = job.versions[lookup.view.name]
            if snapshot is not None:
                self._add_loads(stored_view(lookup), snapshot.version, loads)
        return {name: self._table_of(read.source).lineage(read.load) for name, read in sorted(loads.items())}

    def _add_loads(self, view: FeatureView, version: int, loads: dict[str, _Consumed]) -> None:
        """Add the loads that a version of a view's table has the rows of, also through the views that it is derived from."""
        if isinstance(view.events, BatchSource):
            source = view.events
            read = _Consumed(source, self.offline.consumed(view, source.stored_as, version=version))
            if read.load:
                loads[source.name] = max(read, loads.get(source.name, read), key=_Consumed.order)
        for each in view.inputs:
            given = self.in_generation(stored_view(each))
            number = self.offline.consumed(view, consumed_as(given.stored_as), version=version) - 1
            if number >= 0:
                self._add_loads(given, number, loads)

    def _says_when_known(self, view: FeatureView) -> bool:
        if view.inputs:
            inputs = (self.in_generation(stored_view(each)) for each in view.inputs)
            return any(self._says_when_known(each) for each in inputs)
        if view.source is not None:  # a row of windows describes what was known at its event time
            return False
        if view.events is not None:
            return isinstance(view.events, StreamSource) or bool(view.events.known_at)
        return self.offline.says_when_created(view)

    def _versions(self, retrieval: Retrieval) -> dict[str, TableSnapshot | None]:
        versions: dict[str, TableSnapshot | None] = {}
        for lookup in retrieval.lookups:
            view = stored_view(lookup)
            found = self.offline.version(view)
            name = self.offline.table(view).name
            versions[view.name] = None if found is None else TableSnapshot(name=name, version=found.number)
        return versions

    def plan_features(self, features: Features) -> Retrieval:
        """Plan the retrieval of a list of features.

        Raises: UnknownDefinition, InvalidDefinition.
        """
        if isinstance(features, str) and ":" not in features:
            return plan_retrieval(self.get_feature_service(features))
        if isinstance(features, FeatureService):
            return self._in_generations(plan_retrieval(features))
        selected = (
            [features]
            if isinstance(features, (str, FeatureView, OnDemandFeatureView, Projection))
            else features
        )
        return self._in_generations(plan_retrieval([self._projection(feature) for feature in selected]))

    def _in_generations(self, retrieval: Retrieval) -> Retrieval:
        """Have views that were given as values read the table of the generation which has their meaning."""
        lookups = (replace(each, view=self.in_generation(stored_view(each))) for each in retrieval.lookups)
        return replace(retrieval, lookups=tuple(lookups))

    def _projection(self, given: FeatureLike | str) -> Projection:
        if not isinstance(given, str):
            return projection(given)
        view, _, feature = given.partition(":")
        if not feature:
            raise UnknownDefinition(f"{given!r} names no feature; write 'view:feature'")
        state = self._catalog.state
        if not (state.find("feature_view", view) or state.find("on_demand_feature_view", view)):
            state = self._catalog.refresh()
        return deserialize.any_view(state, view, transform=self._transform)[[feature]]
