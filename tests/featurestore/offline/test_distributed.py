"""Results over Ray Data equal those of the local code for any blocks and partitions."""

import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from tests.featurestore.oracle import Cases, features_of, store_of
from toque.featurestore import (
    Aggregation,
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    Freshness,
    Int64,
    InvalidRows,
    OnDemandFeatureView,
    UnexpectedRows,
    Windows,
)
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.offline import distributed

pytestmark = [pytest.mark.ray, pytest.mark.slow]

START = datetime(2013, 6, 1, tzinfo=UTC)
plane = Entity("plane")
place = Entity("place", dtype=Int64)
late = FeatureView("late", [plane], [Field("x", Float64), Field("n", Int64)], ttl=timedelta(hours=20))
both = FeatureView("both", [plane, place], [Field("y", Float64)])


def doubled(inputs: Any) -> Any:
    return {"twice": inputs["x"] * 2}


service = FeatureService(
    "s",
    [late[["x"]], both, OnDemandFeatureView("twice", [late[["x"]]], [Field("twice", Float64)], doubled)],
)


def some_rows(view: FeatureView, count: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    hours = rng.integers(0, 96, (2, count))
    times = [pa.array([START + timedelta(hours=int(h)) for h in row], TIMESTAMP) for row in hours]
    columns: dict[str, Any] = {
        "plane": [f"N{i}" for i in rng.integers(0, 9, count)],
        "place": rng.integers(0, 3, count),
        "x": rng.normal(size=count),
        "n": rng.integers(0, 5, count),
        "y": rng.normal(size=count),
        "event_timestamp": times[0],
        "created_timestamp": times[1],
    }
    names = [f.name for f in (*view.join_keys, *view.schema)] + ["event_timestamp", "created_timestamp"]
    return pa.table({name: columns[name] for name in names})


def some_entities(count: int) -> pa.Table:
    rng = random.Random(5)
    planes = [rng.choice([None, *(f"N{i}" for i in range(11))]) for _ in range(count)]
    times = [START + timedelta(hours=rng.randrange(100)) for _ in range(count)]
    return pa.table(
        {
            "label": list(range(count)),
            "plane": planes,
            "place": [rng.randrange(3) for _ in range(count)],
            "event_timestamp": pa.array(times, TIMESTAMP),
        }
    )


@pytest.fixture
def filled(offline_fs: FeatureStore) -> FeatureStore:
    offline_fs.apply([service])
    for seed in (1, 2):
        offline_fs.write_offline(late, some_rows(late, 300, seed))
        offline_fs.write_offline(both, some_rows(both, 300, seed))
    return offline_fs


@pytest.mark.parametrize(("partitions", "how"), [(1, "as_stored"), (5, "as_stored"), (5, "as_known")])
def test_training_sets_are_the_same(cluster: None, filled: FeatureStore, partitions: int, how: str) -> None:
    job = filled.get_historical_features(some_entities(200), "s", as_known=how == "as_known")
    assert collected(job.to_ray(partitions=partitions)).equals(job.to_arrow())


def test_rows_come_in_order_whichever_block_is_ready_first(cluster: None, filled: FeatureStore) -> None:
    def first_last(rows: pa.Table) -> pa.Table:
        time.sleep(0.5 if 0 in rows["label"].to_pylist() else 0.0)  # a slow block
        return rows

    rows = filled.get_historical_features(some_entities(200), "s").to_ray(partitions=5)
    got = collected(rows.map_batches(first_last, batch_format="pyarrow"))
    assert got["label"].to_pylist() == list(range(200))


def test_an_entity_table_that_is_a_dataset_gives_the_same(cluster: None, filled: FeatureStore) -> None:
    entities = some_entities(120)
    blocks = ray.data.from_arrow([entities.slice(at, 30) for at in (90, 0, 60, 30)])
    got = distributed.get_historical_features(filled, blocks, "s", row_number="label", partitions=3)
    assert collected(got).equals(filled.get_historical_features(entities, "s").to_arrow())
    with pytest.raises(InvalidRows, match="row number column 'row' is missing"):
        distributed.get_historical_features(filled, blocks, "s", row_number="row")


@pytest.mark.parametrize("mode", ["as_stored", "as_known"])
def test_five_hundred_cases_match_the_definition(cluster: None, tmp_path: Path, mode: str) -> None:
    cases, as_known = Cases(), mode == "as_known"
    fs = store_of(cases, tmp_path, files=5, seed=3)
    entities = cases.entity_table(1)
    one = fs.get_historical_features(entities, "all", as_known=as_known).to_ray(partitions=1)
    numbered = entities.append_column("n", pa.array(range(entities.num_rows)))
    size = -(-numbered.num_rows // 7)
    blocks = ray.data.from_arrow([numbered.slice(at * size, size) for at in (4, 0, 6, 1, 5, 3, 2)])
    several = distributed.get_historical_features(
        fs, blocks, "all", row_number="n", as_known=as_known, partitions=5
    )
    for out in map(collected, (one, several)):
        assert out.select(entities.column_names).to_pylist() == cases.entities
        assert features_of(out) == cases.expected[as_known]


def test_keys_of_another_number_type_meet_their_rows(cluster: None, offline_fs: FeatureStore) -> None:
    """Float keys (pandas integers with nulls): hashed as text, 10^15 and 1e+15 would land in two partitions."""
    view = FeatureView("flights", [Entity("flight", dtype=Int64)], [Field("x", Float64)])
    offline_fs.apply([view])
    flights = [10**15 + n for n in range(40)]
    offline_fs.write_offline(
        view, [{"flight": f, "x": float(n), "event_timestamp": START} for n, f in enumerate(flights)]
    )
    times = pa.array([START] * 41, TIMESTAMP)
    entities = pa.table({"flight": pa.array([*map(float, flights), None]), "event_timestamp": times})
    job = offline_fs.get_historical_features(entities, features=view)
    assert collected(job.to_ray(partitions=8))["x"].to_pylist() == [*map(float, range(40)), None]


def test_a_view_without_rows_gives_nulls(cluster: None, offline_fs: FeatureStore) -> None:
    offline_fs.apply([late])
    job = offline_fs.get_historical_features(some_entities(5), features=late)
    assert collected(job.to_ray(partitions=2)).equals(job.to_arrow())


def test_aggregates_are_the_same_and_written_in_one_commit(
    cluster: None, offline_fs: FeatureStore, clock: Any
) -> None:
    wanted = [Aggregation(f, timedelta(hours=12), "x") for f in ("mean", "max", "count")]
    view = FeatureView("recent", [plane], source=Windows(wanted, every=timedelta(hours=2)))
    offline_fs.apply([view])
    before = offline_fs.offline.create(view).version()
    events = some_rows(late, 400, 3).rename_columns({"created_timestamp": "known_at"})
    blocks = ray.data.from_arrow([events.slice(at, 100) for at in (300, 100, 0, 200)])
    snapshot = distributed.compute_offline(offline_fs, "recent", blocks, partitions=3)
    assert snapshot.version == before + 1
    order = [("plane", "ascending"), ("event_timestamp", "ascending")]
    got = offline_fs.offline.read(view).sort_by(order)
    expected = view.source.compute(events, keys=["plane"]) if view.source else None
    assert got.drop_columns(["created_timestamp"]).equals(expected)
    assert set(got["created_timestamp"].to_pylist()) == {clock.now}


def test_rows_that_are_not_fresh_are_refused_whole(
    cluster: None, offline_fs: FeatureStore, clock: Any
) -> None:
    view = FeatureView("brisk", [plane], [Field("x", Float64)], expectations=[Freshness(timedelta(hours=4))])
    offline_fs.apply([view])
    rows = [{"plane": f"N{n}", "x": 1.0, "event_timestamp": START + timedelta(hours=n)} for n in range(6)]
    blocks = ray.data.from_arrow([pa.Table.from_pylist(rows[at : at + 2]) for at in (2, 4, 0)])
    clock.now = START + timedelta(hours=10)
    with pytest.raises(UnexpectedRows, match=r"column .event_timestamp. ends at 2013-06-01T05:00:00"):
        distributed.write_offline(offline_fs, view, blocks, partitions=2)
    assert offline_fs.offline.read(view).num_rows == 0
    clock.now = START + timedelta(hours=9)
    distributed.write_offline(offline_fs, view, blocks, partitions=2)
    assert offline_fs.offline.read(view).num_rows == 6


def collected(dataset: ray.data.Dataset) -> pa.Table:
    return pa.concat_tables(ray.get(dataset.to_arrow_refs()))
