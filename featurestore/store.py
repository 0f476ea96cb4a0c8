"""The `FeatureStore` class, which joins definitions, offline tables and the online store."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.applied import deserialize
from featurestore.applied.definitions import Definitions, ViewOrName
from featurestore.definitions.encoding import RowLayout
from featurestore.definitions.expectations import Freshness
from featurestore.definitions.fields import EVENT_TIMESTAMP, check_name
from featurestore.definitions.views import (
    FeatureLike,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    Projection,
    projection,
)
from featurestore.errors import InvalidRows, OnlineStoreUnavailable, UnknownDefinition, UnreadableRow
from featurestore.offline.historical import RetrievalJob
from featurestore.offline.pinned_retrieval import check_entities, stored_view
from featurestore.offline.tables import OfflineStore
from featurestore.online.materialize import Materialized, Materializer, Progress, Spread
from featurestore.online.redis_store import OnlineStore
from featurestore.online.serving import EntityRows, OnlineFeatures, Request, lookups_of
from featurestore.retrieval import Features, Retrieval, plan_retrieval
from featurestore.rows import Clock, Tabular, check_rows, conform, to_table
from featurestore.sources import BatchSource, SourceTable
from featurestore.sources.refresh import Refreshed, new_rows
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
        return self.offline.write(found, self._expected(found, rows))

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
        if found.source is None:
            raise UnknownDefinition(
                f"feature view {found.name!r} has no source; write its rows with write_offline"
            )
        keys = [key.name for key in found.join_keys]
        start = None if since is None else as_utc(since, name="since")
        rows = found.source.compute(to_table(events), keys=keys, since=start)
        return self.offline.write(found, self._expected(found, rows))

    def source_table(self, source: BatchSource | str) -> SourceTable:
        """Open the table of a batch source that is in force, with the journal of its loads.

        Raises: UnknownDefinition.
        """
        found = self.get_batch_source(source if isinstance(source, str) else source.name)
        return SourceTable(found, self._store, self.project, actor=self._actor, clock=self._clock)

    def refresh_view(self, view: ViewOrName) -> Refreshed:
        """Bring rows that a view's batch source has loaded since the last refresh into its offline table, each once.

        Raises: InvalidRows, UnknownDefinition (also if the view has no batch source).
        """
        found = self._applied(view)
        if found.events is None:
            raise UnknownDefinition(
                f"feature view {found.name!r} has no batch source; give it events=… or write its rows with write_offline"
            )
        events = self.source_table(found.events)
        refreshed = new_rows(found, events, self.offline.consumed(found, events.source.name))
        if refreshed.rows is not None:
            typed = self._expected(found, refreshed.rows)
            self.offline.write(found, typed, loads={events.source.name: refreshed.until})
        return Refreshed(
            view=found.name,
            source=events.source.name,
            load=refreshed.until,
            rows=0 if refreshed.rows is None else refreshed.rows.num_rows,
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
        snapshot = self.offline.write(found, typed) if to != "online" else None
        if to != "offline":
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
        state = self._catalog.refresh()
        names = {lookup.view.name for lookup in retrieval.lookups}
        return {
            name: [
                RowLayout(deserialize.view(r.definition).schema) for r in state.versions("feature_view", name)
            ]
            for name in names
        }
