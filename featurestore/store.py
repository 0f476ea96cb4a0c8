"""The `FeatureStore` class, which joins definitions, offline tables and the online store."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import pyarrow.compute as pc

from toque.featurestore.applied import deserialize
from toque.featurestore.definitions.encoding import RowLayout
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView, ViewOrName
from toque.featurestore.errors import InvalidRows, OnlineStoreUnavailable, UnreadableRow
from toque.featurestore.offline.retrieval import Features
from toque.featurestore.offline_rows import OfflineRows
from toque.featurestore.online.materialize import Materialized, Materializer, Progress, Spread
from toque.featurestore.online.redis_store import OnlineStore, RecentKeys
from toque.featurestore.online.serving import CLOCK_SKEW, EntityRows, OnlineFeatures, Request, lookups_of
from toque.featurestore.rows import Clock, Tabular, to_table
from toque.featurestore.vectors import (
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
from toque.registry.store import ObjectStore, TableSnapshot
from toque.registry.times import as_utc, utc_now


class FeatureStore(OfflineRows):
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
        super().__init__(store, project, clock=clock, actor=actor)
        self._online = OnlineStore(redis_url, project) if redis_url else None
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
    def has_online(self) -> bool:
        """Whether the feature store has an online store."""
        return self._online is not None

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
        `online.spread.spread_files`, for large runs on a Ray cluster.
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
        Raises: InvalidRows, also for rows going online whose event time is seconds in the future; OnlineStoreUnavailable
            (then the next incremental run writes the offline rows online).
        """
        found, table = self._applied(view), to_table(rows)
        typed = self._expected(found, table)
        if to != "offline":
            self._refuse_future(found, typed.column(EVENT_TIMESTAMP))
        snapshot = None
        if to != "online":
            snapshot = self._write(found, typed, known=self._known_in(found, table))
        if to != "offline":
            if of_vectors(found):
                RecentKeys(self.online, found).add(typed)
            self.online.write(found, typed)
        return snapshot

    def _refuse_future(self, view: FeatureView, times: Any) -> None:
        latest, now = pc.max(times).as_py(), self._clock()
        if latest is not None and latest > now + CLOCK_SKEW:
            msg = (
                f"feature view {view.name!r}: event_timestamp {latest.isoformat()} is after now ({now.isoformat()}); "
                "push it to='offline' and materialize when its time has come"
            )
            raise InvalidRows(msg)

    def get_online_features(
        self, features: Features, entity_rows: EntityRows, now: datetime | None = None
    ) -> OnlineFeatures:
        """Read the features of some entities as of `now`, in one round trip.

        now: by default the clock's, and then rows count too that a writer whose clock is some seconds ahead has just written.
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
        as_of = self._clock() if now is None else as_utc(now, name="now")
        # Only what this host calls now may be behind; a time that was asked for is exact.
        ahead = CLOCK_SKEW if now is None else timedelta(0)
        try:
            return request.answer(entity_rows, values, now=as_of, ahead=ahead)
        except UnreadableRow:
            known = self._catalog.next
            self._catalog.refresh()
            if self._catalog.next == known:
                raise
            return self._request(features).answer(entity_rows, values, now=as_of, ahead=ahead)

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
        self._catalog.refresh()
        layouts = {lookup.view.name: self.layouts(lookup.view.name) for lookup in retrieval.lookups}
        request = Request(retrieval, lookups_of(self.project, retrieval, layouts))
        if not isinstance(features, list):  # a list may be changed by its owner
            self._requests[key] = (features, self._catalog.next, request)
        return request

    def layouts(self, view: str) -> list[RowLayout]:
        """Layouts of the packed rows of all versions of a view, as last read."""
        versions = self._catalog.state.versions("feature_view", view)
        return [RowLayout(deserialize.view(record.definition).schema) for record in versions]

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
