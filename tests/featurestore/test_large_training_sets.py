"""Training sets joined over the cluster, from S3: row by row those of the small way, and none of it in the caller."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
import ray
import redis

from tests.memory import own_memory
from toque.featurestore import Entity, FeatureService, FeatureView, Field, Float64, InvalidRows, String
from toque.featurestore.offline import distributed
from toque.featurestore.online import materialize
from toque.featurestore.online.spread import spread_files
from toque.functions import Context, use_context
from toque.functions.features import joins_on_ray
from toque.functions.features.jobs import build_training_set, training_set_lineage
from toque.registry import Table, open_store

pytestmark = pytest.mark.ray
START = datetime(2013, 6, 1, tzinfo=UTC)
END = START + timedelta(days=30)
plane = Entity("plane", join_keys=[Field("tailnum", String)])
history = FeatureView(
    "history",
    [plane],
    [Field("delay", Float64), Field("seats", Float64)],
    ttl=timedelta(days=3),
)


@pytest.fixture(scope="module")
def context(s3_store_url: str) -> Context:
    made = Context(open_store(s3_store_url), s3_store_url, clock=lambda: END, actor="ada")
    with use_context(made):
        made.features().apply([plane, history, FeatureService("late", [history])])
        made.features().write_offline(history, events(60_000, seed=1, keys=500).drop_columns(["label"]))
    return made


@pytest.fixture(scope="module")
def cluster(context: Context) -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def events(rows: int, *, seed: int, keys: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    at = START.timestamp() * 1e6 + rng.integers(0, 30 * 86_400_000_000, rows)
    return pa.table(
        {
            "tailnum": pa.array([f"N{key}" for key in rng.integers(0, keys, rows)]),
            "event_timestamp": pa.array(at.astype(np.int64)).cast(pa.timestamp("us", "UTC")),
            "delay": rng.normal(size=rows),
            "seats": rng.normal(size=rows),
            "label": pa.array(rng.random(rows), mask=rng.random(rows) < 0.1),
        }
    )


def entities(context: Context, name: str, rows: int) -> Table:
    table = Table(context.store, name)
    for at in range(0, rows, 100_000):
        piece = events(min(100_000, rows - at), seed=at + 7, keys=600)
        table.append(piece.rename_columns(["tailnum", "event_timestamp", "distance", "wind", "label"]))
    return table


def built(context: Context, table: Table, name: str, *, share: float) -> Table:
    with use_context(replace(context, memory_share=share)):
        made = build_training_set(
            "late", table.snapshot(), "label", START + timedelta(days=2), END, name=f"training/{name}"
        )
        lineage = training_set_lineage(made)
    result = Table(context.store, made.name)
    assert lineage.rows == result.dataset(made.version).count_rows()
    assert set(lineage.tables) == {"history"}
    return result


@pytest.mark.long
def test_over_the_cluster_are_the_rows_of_the_small_way_in_their_order(context, cluster, monkeypatch):
    monkeypatch.setattr(joins_on_ray, "_ROWS_PER_TASK", 4_000)
    table = entities(context, "entities", 20_000)
    small = built(context, table, "small", share=1.0)
    large = built(context, table, "large", share=1e-9)
    assert small.dataset().files != large.dataset().files
    assert len(large.dataset().files) > 1
    rows = large.read()
    assert rows.num_rows < 20_000  # some have no label, or another time
    assert rows.schema.equals(small.read().schema)
    assert rows.equals(small.read())
    assert 0 < rows["delay"].null_count < rows.num_rows


def test_a_set_without_rows_is_refused_there_too(context, cluster):
    table = entities(context, "few", 10)
    with (
        use_context(replace(context, memory_share=1e-9)),
        pytest.raises(InvalidRows, match=r"few@1 has no rows with 'label' known by"),
    ):
        build_training_set("late", table.snapshot(), "label", START - timedelta(days=9), START)


def test_a_large_view_is_written_online_by_tasks_as_by_the_caller(
    context, cluster, redis_server, redis_url, monkeypatch
):
    monkeypatch.setattr(materialize, "SPREAD_ROWS", 1)
    monkeypatch.setattr(distributed, "_ROWS_PER_BLOCK", 10_000)
    spread = replace(context, redis_url=redis_url).features()
    progress: list[tuple[int, int]] = []
    done = spread.materialize_incremental(
        END, spread=spread_files, progress=lambda _, rows, total: progress.append((rows, total))
    )
    keys = [{"tailnum": f"N{key}"} for key in range(600)]
    online = spread.get_online_features("late", keys, now=END).to_dict()
    assert done[0].rows == 60_000
    assert done[0].written >= 500  # a key is written again where a task finds a newer row of it
    assert len(progress) > 1
    assert progress[-1] == (60_000, 60_000)
    again = spread.materialize_incremental(END, spread=spread_files)
    assert again[0].rows == 0  # nothing is new since the claim
    redis.Redis.from_url(redis_url).flushall()
    spread.materialize_incremental(END)
    assert spread.get_online_features("late", keys, now=END).to_dict() == online
    spread.online.close()


@pytest.mark.long
def test_what_the_caller_holds_does_not_grow_with_the_rows(context, cluster):
    grown = []
    for rows in (20_000, 400_000):
        table = entities(context, f"rows-{rows}", rows)
        with own_memory() as peak:
            built(context, table, f"rows-{rows}", share=1e-9)
        grown.append(max(peak))
    more_bytes = 380_000 * 7 * 8
    assert grown[1] - grown[0] < more_bytes / 2, grown  # the small way holds several times those bytes
