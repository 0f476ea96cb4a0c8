"""Worlds of the feature store's verbs: views written by hand, filled from files, with an index, and online."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis

from tests.conditions.faults import FaultyStore, KilledError, Verb
from tests.faults.templates import fill_once, redis_of_the_matrix
from toque.featurestore import (
    BatchSource,
    CsvFiles,
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    Int64,
)
from toque.featurestore.errors import OnlineStoreUnavailable
from toque.functions import Context, use_context
from toque.functions.features.jobs import build_training_set, materialize, record_feature_health
from toque.functions.features.sources import load_source, refresh_features
from toque.functions.maintenance.features import compact_features, erase_features, expire_features
from toque.functions.training_data.formats import SetRef
from toque.functions.training_data.jobs import delete_sample_set, write_sample_set
from toque.registry import Table, TableSnapshot
from toque.registry.errors import Forbidden, Unavailable
from toque.registry.history import audit

NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
airport = Entity("airport", join_keys=["origin"])
weather = FeatureView("weather", [airport], [Field("temp", Float64)], ttl=timedelta(days=30))
service = FeatureService("late", [weather])
ROWS = [
    {"origin": origin, "temp": temp, "event_timestamp": NOW - age * DAY}
    for origin, temp, age in (("EWR", 20.0, 40), ("EWR", 21.0, 2), ("EWR-2", 5.0, 2))
]
MORE = [{"origin": "EWR", "temp": 30.0, "event_timestamp": NOW - DAY / 2}]


@cache
def incoming() -> TemporaryDirectory[str]:
    folder = TemporaryDirectory()
    lines = ["origin,flights,at", *(f"EWR,{number},2013-06-{number:02d}T00:00:00Z" for number in (1, 2, 3))]
    (Path(folder.name) / "a.csv").write_text("\n".join(lines))
    return folder


@cache
def traffic() -> FeatureView:
    files = BatchSource(
        "counts",
        CsvFiles(f"{incoming().name}/*.csv"),
        [Field("origin", airport.dtype), Field("flights", Int64)],
        timestamp="at",
        unique=["flights"],
    )
    return FeatureView("traffic", [airport], [Field("flights", Int64)], events=files)


class FeatureWorld:
    """Feature store over an object store that may fail, and over Redis."""

    def __init__(self, faulty: FaultyStore) -> None:
        self.faulty = faulty
        self.set_ref: SetRef | None = None
        self.entities: TableSnapshot | None = None
        self.restart()

    def restart(self) -> None:
        """Start the process anew, with nothing but what is stored."""
        self.context = self._context(self.faulty)
        self.features = self.context.features()

    def _context(self, store: Any) -> Context:
        return Context(
            store, self.faulty.store.url, redis_url=redis_of_the_matrix(), clock=lambda: NOW, actor="ada"
        )

    def reader(self) -> FeatureStore:
        return self._context(self.faulty.store).features()

    def call(self, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        with use_context(self.context):
            return function(*args, **named)

    def check(self) -> None:
        report = audit(self.faulty.store)
        assert not report.findings, report.findings

    def rows(self) -> object:
        """Say which rows the views have offline and what is read online; a row that was sent twice counts once."""
        reader = self.reader()
        offline = {}
        for view in (weather, traffic()):
            if view.name in {item.name for item in reader.list_feature_views()}:
                rows = Table(self.faulty.store, reader.offline_table(view.name).name)
                table = rows.read() if rows.exists() else None
                names = ["origin", "event_timestamp", *(item.name for item in view.schema)]
                offline[view.name] = sorted(
                    {
                        repr([row[name] for name in names])
                        for row in ([] if table is None else table.to_pylist())
                    }
                )
        return offline, self.online()

    def online(self) -> object:
        reader = self.reader()
        if weather.name not in {item.name for item in reader.list_feature_views()}:
            return None
        rows = [{"origin": "EWR"}, {"origin": "EWR-2"}]
        return reader.get_online_features(["weather:temp"], rows).to_dict()

    def loaded(self) -> object:
        """Say which rows the source's table and the view have: each exactly once."""
        reader = self.reader()
        table = reader.source_table("counts").table
        stored = sorted(table.read().column("flights").to_pylist()) if table.exists() else []
        view = reader.offline_table("traffic")
        return stored, sorted(view.read().column("flights").to_pylist()) if view.exists() else []


def _fill(faulty: FaultyStore) -> None:
    features = FeatureWorld(faulty).features
    features.apply([weather, traffic(), service])
    features.write_offline(weather, ROWS)


def empty(faulty: FaultyStore) -> FeatureWorld:
    redis.Redis.from_url(redis_of_the_matrix()).flushall()
    return FeatureWorld(faulty)


def world(faulty: FaultyStore) -> FeatureWorld:
    fill_once(faulty, _fill)
    return empty(faulty)


def with_loaded(faulty: FaultyStore) -> FeatureWorld:
    filled = world(faulty)
    filled.call(load_source, "counts")
    filled.restart()
    return filled


def with_online(faulty: FaultyStore) -> FeatureWorld:
    filled = world(faulty)
    filled.features.materialize_incremental(NOW)
    filled.restart()
    return filled


def with_pieces(faulty: FaultyStore) -> FeatureWorld:
    filled = world(faulty)
    for temp in (1.0, 2.0, 3.0):
        filled.features.write_offline(
            weather, [{"origin": "JFK", "temp": temp, "event_timestamp": NOW - 2 * DAY}]
        )
    filled.restart()
    return filled


def with_entities(faulty: FaultyStore) -> FeatureWorld:
    import pyarrow as pa

    filled = world(faulty)
    rows = pa.Table.from_pylist([{"origin": "EWR", "late": 1.0, "event_timestamp": NOW - DAY}])
    filled.entities = Table(faulty.store, "flights").append(rows)
    return filled


def with_sample_set(faulty: FaultyStore) -> FeatureWorld:
    filled = with_entities(faulty)
    filled.set_ref = filled.call(write_sample_set, filled.entities, "flights")
    return filled


def build(world: FeatureWorld) -> None:
    world.call(build_training_set, "late", world.entities, "late", NOW - 30 * DAY, NOW, NOW, as_known=False)


def training_rows(world: FeatureWorld) -> object:
    return Table(world.faulty.store, "training/late").read().select(["origin", "temp", "late"]).to_pylist()


def whole_sets(world: FeatureWorld) -> None:
    """Check that whatever version of the sample set is listed has all of its shards."""
    from toque.functions.training_data.formats import read_index

    world.check()
    assert world.set_ref is not None
    index = read_index(world.faulty.store, world.set_ref)
    assert sum(shard.rows for shard in index.shards) == 1


def write_set(world: FeatureWorld) -> None:
    world.set_ref = world.call(write_sample_set, world.entities, "flights")


def no_set(world: FeatureWorld) -> None:
    world.check()
    assert not list(world.faulty.store.list("sample-sets/"))


def healthy(world: FeatureWorld) -> object:
    """A figure that was recorded at one time counts once, as those who read the history take the last of item."""
    rows = Table(world.faulty.store, "feature_health").read().to_pylist()
    return sorted({repr((row["view"], row.get("feature"), row.get("rows"))) for row in rows})


def verb(
    name: str,
    act: Callable[[FeatureWorld], object],
    *,
    prepare: Callable[[FaultyStore], FeatureWorld] = world,
    outcome: Callable[[FeatureWorld], object] = FeatureWorld.rows,
    check: Callable[[FeatureWorld], object] = FeatureWorld.check,
) -> Verb[FeatureWorld]:
    return Verb(
        name,
        prepare=prepare,
        act=act,
        check=check,
        outcome=outcome,
        restart=FeatureWorld.restart,
        tolerated=(Unavailable, Forbidden, redis.RedisError, OnlineStoreUnavailable, KilledError),
    )


VERBS = [
    verb("FeatureStore.apply", lambda w: w.features.apply([weather, service]), prepare=empty),
    verb("FeatureStore.write_offline", lambda w: w.features.write_offline(weather, MORE)),
    verb("FeatureStore.push", lambda w: w.features.push(weather, MORE), prepare=with_online),
    verb("FeatureStore.materialize", lambda w: w.features.materialize(end=NOW)),
    verb("FeatureStore.materialize_incremental", lambda w: w.features.materialize_incremental(NOW)),
    verb("FeatureStore.refresh_view", lambda w: w.features.refresh_view("traffic"), prepare=with_loaded, outcome=FeatureWorld.loaded),
    verb("load_source", lambda w: w.call(load_source, "counts"), outcome=FeatureWorld.loaded),
    verb("refresh_features", lambda w: w.call(refresh_features), outcome=FeatureWorld.loaded),
    verb("materialize", lambda w: w.call(materialize)),
    verb("build_training_set", build, prepare=with_entities, outcome=training_rows),
    verb("record_feature_health", lambda w: w.call(record_feature_health), prepare=with_online, outcome=healthy),
    verb("compact_features", lambda w: w.call(compact_features), prepare=with_pieces),
    verb("expire_features", lambda w: w.call(expire_features, {"weather": 35.0})),
    verb("erase_features", lambda w: w.call(erase_features, grace_days=30.0)),
    verb("write_sample_set", write_set, prepare=with_entities, check=whole_sets, outcome=lambda _: None),
    verb("delete_sample_set", lambda w: w.call(delete_sample_set, w.set_ref), prepare=with_sample_set, check=no_set, outcome=lambda _: None),
]  # fmt: skip
