"""The `FeatureStore` class, which joins definitions, offline tables and the online store."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.applied import deserialize
from featurestore.applied.definitions import Definitions, ViewOrName
from featurestore.definitions.derived import Derived
from featurestore.definitions.encoding import RowLayout
from featurestore.definitions.expectations import Freshness
from featurestore.definitions.fields import EVENT_TIMESTAMP, check_name
from featurestore.definitions.views import (
    FeatureLike,
    FeatureService,
    FeatureView,
    FromEvents,
    OnDemandFeatureView,
    Projection,
    projection,
)
from featurestore.errors import InvalidRows, OnlineStoreUnavailable, UnknownDefinition, UnreadableRow
from featurestore.offline.derived_refresh import new_derived_rows
from featurestore.offline.historical import RetrievalJob
from featurestore.offline.pinned_retrieval import check_entities, stored_view
from featurestore.offline.tables import OfflineStore
from featurestore.online.materialize import Materialized, Materializer, Progress, Spread
from featurestore.online.recent import RecentKeys
from featurestore.online.redis_store import OnlineStore
from featurestore.online.serving import EntityRows, OnlineFeatures, Request, lookups_of
from featurestore.retrieval import Features, Retrieval, plan_retrieval
from featurestore.rows import Clock, Tabular, check_rows, conform, to_table
from featurestore.sources import BatchSource, SourceTable
from featurestore.sources.refresh import Refreshed, new_rows
from featurestore.streams import StreamSource, StreamTable
from featurestore.streams.refresh import new_rows as new_stream_rows
from featurestore.vectors import (
    FOLLOWERS,
    Ask,
    Embed,
    IndexBuild,
    IndexBuilds,
    Neighbours,
    Options,
    Where,
    indexed_fields,
    of_vectors,
    refresh,
    search,
)
from registry.journal import Journal
from registry.store import ObjectStore, Table, TableSnapshot
from registry.times import as_utc, utc_now


class FeatureStore(Definitions):
    """Store of one project's features, which gives the same numbers in training and in serving.

    store: holds definitions and offline rows; redis_url: of the online store, None to go without.
    clock: gives created times, and "now" for online reads and pushes; actor: recorded with changes.
    """

    def __init__(
        self,
        store: ObjectStore,
        redis_url: str | None = None,
        project: str = "default",
        *,
        clock: Clock = utc_now,
        actor: str = "local",
    ) -> None:
        check_name("project", project)
        self.project = project
        self._clock, self._actor = clock, actor
        self._store = store
        self.offline = OfflineStore(store, project)
        self._online = OnlineStore(redis_url, project) if redis_url else None
        super().__init__(Journal(store, f"features/{project}/definitions", actor=actor, clock=clock))
        self._builds: dict[tuple[str, str], IndexBuilds] = {}
        self._requests: dict[str | int, tuple[Features, int, Request]] = {}

    @property
    def online(self) -> OnlineStore:
        """Online store of this feature store.

        Raises: OnlineStoreUnavailable if it was made without one.
        """
        if self._online is None:
            raise OnlineStoreUnavailable(
                "this feature store has no online store; pass redis_url (or set TOQUE_REDIS_URL)"
            )
        return self._online

    @property
    def place(self) -> str:
        """Store and project, for what a process keeps of them."""
        return f"{self._store.url} {self.project}"

    def builds(self, view: str, field: str) -> IndexBuilds:
        """Builds of the index of a vector field."""
        key = (view, field)
        if key not in self._builds:
            self._builds[key] = IndexBuilds(
                self._store, self.project, view, field, actor=self._actor, clock=self._clock
            )
        return self._builds[key]

    def drop_indexes(self, view: str) -> int:
        """Drop every index over a view, as after an erasure; returns how many there were. Searches are exact until a refresh."""
        fields = indexed_fields(self._store, self.project, view)
        return sum(self.builds(view, field).drop() for field in fields)

    def refresh_index(self, view: ViewOrName, field: str | None = None) -> IndexBuild | None:
        """Bring an index of a view up to date with its offline table; returns the build, or None if no row came.

        field: by default the only one that has an index.
        Raises: InvalidDefinition, UnknownDefinition; RecallTooLow, after which searches go on as before.
        """
        return refresh(self, self._applied(view), field)

    @property
    def has_online(self) -> bool:
        """Whether the feature store has an online store."""
        return self._online is not None

    def now(self) -> datetime:
        """Current time of this store's clock."""
        return self._clock()

    def write_offline(self, view: ViewOrName, rows: Tabular) -> TableSnapshot:
        """Append rows to a view's offline table: join keys, features, `event_timestamp`, optionally `created_timestamp`.

        rows: an Arrow table, a pandas or polars frame, or a list of dicts.
        Returns: the table's version that has them.
        Raises: InvalidRows, UnknownDefinition.
        """
        found = self._applied(view)
        return self._write(found, self._expected(found, rows))

    def _write(
        self, view: FeatureView, typed: pa.Table, *, loads: Mapping[str, int] | None = None
    ) -> TableSnapshot:
        """Append typed rows to a view's table; searches of this process find them at once."""
        snapshot = self.offline.write(view, typed, loads=loads)
        FOLLOWERS.expire(self.place, view.name)
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
        if not isinstance(found.source, FromEvents):
            raise UnknownDefinition(
                f"feature view {found.name!r} has no source that computes from events; write its rows with write_offline"
            )
        keys = [key.name for key in found.join_keys]
        start = None if since is None else as_utc(since, name="since")
        rows = found.source.compute(to_table(events), keys=keys, since=start)
        return self._write(found, self._expected(found, rows))

    def source_table(self, source: BatchSource | str) -> SourceTable:
        """Open the table of a batch source that is in force, with the journal of its loads.

        Raises: UnknownDefinition.
        """
        found = self.get_batch_source(source if isinstance(source, str) else source.name)
        return SourceTable(found, self._store, self.project, actor=self._actor, clock=self._clock)

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
        events = self.source_table(found.events)
        refreshed = new_rows(found, events, self.offline.consumed(found, events.source.name))
        if refreshed.rows is not None:
            typed = self._expected(found, refreshed.rows)
            self._write(found, typed, loads={events.source.name: refreshed.until})
        return Refreshed(
            view=found.name,
            source=events.source.name,
            load=refreshed.until,
            rows=0 if refreshed.rows is None else refreshed.rows.num_rows,
        )

    def _refresh_derived(self, view: FeatureView, source: Derived) -> Refreshed:
        described = {"name": view.name, "code": source.code, "reference": source.reference}
        transform: Any = source.transform or self._transform(described)
        found = new_derived_rows(self.offline, view, source, transform=transform, now=self._clock())
        rows = 0 if found is None else found.rows.num_rows
        if found is not None:
            typed = self._expected(view, found.rows) if rows else found.rows
            self.offline.write(view, typed, loads=found.consumed)
        inputs = ", ".join(each.view.name for each in source.projections)
        return Refreshed(view=view.name, source=inputs, rows=rows)

    def _refresh_from_stream(self, view: FeatureView, source: StreamSource) -> Refreshed:
        table = self.stream_table(source)
        names = {each: f"{source.name}:{each}" for each in table.known_partitions()}
        after = {each: self.offline.consumed(view, name) for each, name in names.items()}
        new = new_stream_rows(view, table, after)
        if new is not None:
            self.offline.write(
                view,
                conform(view, new.rows, clock=self._clock),
                loads={f"{source.name}:{each}": position for each, position in new.until.items()},
                after={names[each]: position for each, position in after.items()},
            )
        return Refreshed(
            view=view.name,
            source=source.name,
            load=sum((new.until if new else after).values()),
            rows=new.rows.num_rows if new else 0,
        )

    def offline_table(self, view: ViewOrName) -> Table:
        """Open the Delta table that holds a view's rows."""
        return self.offline.table(self._applied(view))

    def get_historical_features(
        self, entity_df: Tabular | TableSnapshot, features: Features, *, as_known: bool = False
    ) -> RetrievalJob:
        """Retrieve features as they were at each entity row's `event_timestamp`; rows out are rows in, in order.

        entity_df: a table with the join keys, `event_timestamp` and any other columns, or a snapshot of one.
        features: a service (or its name), views, or `view:feature` strings.
        as_known: use only rows whose `created_timestamp` is not after the entity row's time.
        Raises: InvalidRows, InvalidDefinition, UnknownDefinition.
        """
        retrieval = self.plan_features(features)
        if isinstance(entity_df, TableSnapshot):
            entities = Table(self._store, entity_df.name).read(version=entity_df.version)
        else:
            entities = to_table(entity_df)
        entities = check_entities(entities, retrieval)
        return RetrievalJob(entities, retrieval, self.offline, self._versions(retrieval), as_known)

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
            return plan_retrieval(features)
        selected = (
            [features]
            if isinstance(features, (str, FeatureView, OnDemandFeatureView, Projection))
            else features
        )
        return plan_retrieval([self._projection(feature) for feature in selected])

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

    def materialize(
        self,
        views: Sequence[ViewOrName] | None = None,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        progress: Progress | None = None,
        spread: Spread | None = None,
    ) -> list[Materialized]:
        """Write rows with `start <= event time <= end` online, newest wins; safe to repeat.

        views: by default all; start: None for everything up to `end`; end: by default now; spread: as
        `offline.distributed.spread_files`, for large runs on a Ray cluster.
        Raises: InvalidRows if `start` is after `end`; OnlineStoreUnavailable, UnknownDefinition.
        """
        materializer = Materializer(self.offline, self.online, progress=progress, spread=spread)
        until = self._now(end)
        since = None if start is None else as_utc(start, name="start")
        return [materializer.window(view, start=since, end=until) for view in self._views_or_all(views)]

    def materialize_incremental(
        self,
        end: datetime | None = None,
        *,
        views: Sequence[ViewOrName] | None = None,
        progress: Progress | None = None,
        spread: Spread | None = None,
    ) -> list[Materialized]:
        """Write online what is new up to `end` (by default now), late rows and corrections included.

        Raises: OnlineStoreUnavailable, UnknownDefinition.
        """
        materializer = Materializer(self.offline, self.online, progress=progress, spread=spread)
        until = self._now(end)
        return [materializer.incremental(view, end=until) for view in self._views_or_all(views)]

    def _views_or_all(self, views: Sequence[ViewOrName] | None) -> list[FeatureView]:
        return self.list_feature_views() if views is None else [self._applied(view) for view in views]

    def _now(self, given: datetime | None) -> datetime:
        return self._clock() if given is None else as_utc(given, name="end")

    def push(
        self, view: ViewOrName, rows: Tabular, to: Literal["both", "online", "offline"] = "both"
    ) -> TableSnapshot | None:
        """Write rows as they happen; offline first, so that rows seen online can be trained on.

        Returns: the offline table's version that has them, or None if they only went online.
        Raises: InvalidRows, also for rows going online whose event time is in the future; OnlineStoreUnavailable
            (then the next incremental run writes the offline rows online).
        """
        found = self._applied(view)
        typed = self._expected(found, rows)
        if to != "offline":
            self._refuse_future(found, typed.column(EVENT_TIMESTAMP))
        snapshot = self._write(found, typed) if to != "online" else None
        if to != "offline":
            if of_vectors(found):
                RecentKeys(self.online, found).add(typed)
            self.online.write(found, typed)
        return snapshot

    def _refuse_future(self, view: FeatureView, times: Any) -> None:
        latest, now = pc.max(times).as_py(), self._clock()
        if latest is not None and latest > now:
            msg = (
                f"feature view {view.name!r}: event_timestamp {latest.isoformat()} is after now ({now.isoformat()}); "
                "push it to='offline' and materialize when its time has come"
            )
            raise InvalidRows(msg)

    def get_online_features(
        self, features: Features, entity_rows: EntityRows, now: datetime | None = None
    ) -> OnlineFeatures:
        """Read the features of some entities as of `now` (by default the clock's), in one round trip.

        entity_rows: dicts with the join keys and the values that on-demand views take from the request.
        Raises: InvalidRows, UnknownDefinition, OnlineStoreUnavailable.
        """
        request = self._request(features)
        values = self.online.read(request.keys(entity_rows))
        return self._answer(request, features, entity_rows, values, now)

    async def get_online_features_async(
        self, features: Features, entity_rows: EntityRows, now: datetime | None = None
    ) -> OnlineFeatures:
        """Read features as `get_online_features` does, without blocking the event loop."""
        request = self._request(features)
        values = await self.online.read_async(request.keys(entity_rows))
        return self._answer(request, features, entity_rows, values, now)

    def _answer(
        self,
        request: Request,
        features: Features,
        entity_rows: EntityRows,
        values: Sequence[bytes | None],
        now: datetime | None,
    ) -> OnlineFeatures:
        """Decode packed rows; retry an unknown layout with definitions that another process may just have applied."""
        as_of = self._as_of(now)
        try:
            return request.answer(entity_rows, values, now=as_of)
        except UnreadableRow:
            known = self._catalog.next
            self._catalog.refresh()
            if self._catalog.next == known:
                raise
            return self._request(features).answer(entity_rows, values, now=as_of)

    def _as_of(self, now: datetime | None) -> datetime:
        return self._clock() if now is None else as_utc(now, name="now")

    def _request(self, features: Features) -> Request:
        """Plan the read of some features; cached, because a server repeats the same reads."""
        key = features if isinstance(features, str) else id(features)
        cached = self._requests.get(key)
        if (
            cached is not None
            and (cached[0] is features or key == features)
            and cached[1] == self._catalog.next
        ):
            return cached[2]
        retrieval = self.plan_features(features)
        request = Request(retrieval, lookups_of(self.project, retrieval, self._layouts(retrieval)))
        if not isinstance(features, list):  # a list may be changed by its owner
            self._requests[key] = (features, self._catalog.next, request)
        return request

    def _layouts(self, retrieval: Retrieval) -> dict[str, list[RowLayout]]:
        self._catalog.refresh()
        return {lookup.view.name: self.layouts(lookup.view.name) for lookup in retrieval.lookups}

    def layouts(self, view: str) -> list[RowLayout]:
        """Layouts of the packed rows of all versions of a view, as last read."""
        versions = self._catalog.state.versions("feature_view", view)
        return [RowLayout(deserialize.view(record.definition).schema) for record in versions]

    def search(
        self,
        view: ViewOrName,
        *,
        vector: Any = None,
        key: Any = None,
        text: str | None = None,
        field: str | None = None,
        k: int = 10,
        where: Where | None = None,
        at: datetime | None = None,
        exact: bool = False,
        embed: Embed | None = None,
        max_age_s: float = 1.0,
    ) -> Neighbours:
        """Find the `k` rows of a view whose vector is nearest to a vector, to that of a stored key, or to that of a text.

        field: by default the view's only vector. where: conditions on other columns, as `{"lang": "de", "year": {"ge": 2020}}`.
        at: what would have been found then, of the rows known then; by default now, with the rows that were just pushed.
        exact: compare every row, even where there is an index. embed: asks the index's text model. max_age_s: how long ago the offline table may have been looked at.
        Raises: InvalidRows, InvalidDefinition, UnknownDefinition, OnlineStoreUnavailable.
        """
        as_of = None if at is None else as_utc(at, name="at")
        options = Options(field, k, where, as_of, exact, embed, max_age_s)
        return search(self, self._applied(view), Ask(vector, key, text), options)
