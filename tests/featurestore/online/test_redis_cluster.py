"""A Redis Cluster instead of one server: equal values, and no call with keys in two slots."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
import redis
from redis.crc import key_slot

from toque.featurestore import Entity, FeatureStore, FeatureView, Field, Float64, OnlineStoreUnavailable
from toque.featurestore.online.redis_store import NEWEST_WINS

START = datetime(2013, 6, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
PLANES = [f"N{i}" for i in range(40)]
view = FeatureView("late", [Entity("plane")], [Field("x", Float64)])


@pytest.fixture
def clustered(make_store: Callable[..., FeatureStore], redis_cluster: Any) -> FeatureStore:
    fs = make_store(redis_cluster.url.replace("redis://", "redis+cluster://"))
    fs.online.client.flushall()
    fs.apply([view])
    return fs


def row(number: int, minute: int, x: float) -> dict[str, Any]:
    return {"plane": PLANES[number % 40], "x": x, "event_timestamp": START + minute * MINUTE}


async def test_a_cluster_ends_as_one_server_does(clustered: FeatureStore, clock: Any) -> None:
    fs = clustered
    clock.now = START + 60 * MINUTE
    fs.write_offline(view, [row(n, n % 7, float(n)) for n in range(200)])
    assert fs.materialize_incremental()[0].written == 40
    fs.push(view, [row(n, 9 - n, -float(n)) for n in range(10)])
    fs.write_offline(view, [row(3, 8, 1.5)])
    assert fs.materialize_incremental()[0].rows == 11
    asked = [{"plane": plane} for plane in PLANES]
    entities = pa.Table.from_pylist([a | {"event_timestamp": clock.now} for a in asked])
    offline = fs.get_historical_features(entities, features=view).to_arrow().select(["x"]).to_pydict()
    assert fs.get_online_features(view, asked).columns() == offline
    assert (await fs.get_online_features_async(view, asked)).columns() == offline
    await fs.online.aclose()


def test_rows_spread_over_the_slots_and_a_views_own_keys_share_one(clustered: FeatureStore) -> None:
    clustered.write_offline(view, [row(n, 1, float(n)) for n in range(40)])
    clustered.materialize_incremental()
    keys = list(clustered.online.client.scan_iter("*"))
    slots = {key: key_slot(key) for key in keys if key.startswith(b"toque:")}
    assert len(set(slots.values())) > 35
    claim, run, done = (f"toque-{what}:{{default:late}}" for what in ("claim", "run", "done"))
    assert claim.encode() in keys
    assert key_slot(claim.encode()) == key_slot(run.encode()) == key_slot(f"{done}:0123".encode())


def test_the_node_would_refuse_a_script_over_several_slots(redis_cluster: Any) -> None:
    client = redis.Redis.from_url(redis_cluster.url)
    with pytest.raises(redis.exceptions.ResponseError, match=r"CROSSSLOT|same slot"):
        client.eval(NEWEST_WINS, 2, "toque:default:late:N1", "toque:default:late:N2", b"a", b"b")
    client.close()


def test_an_unreachable_cluster_is_reported(make_store: Callable[..., FeatureStore]) -> None:
    fs = make_store("redis+cluster://127.0.0.1:1?patience=0.1")
    fs.apply([view])
    fs.write_offline(view, [row(0, 1, 1.0)])  # the offline store does without
    with pytest.raises(OnlineStoreUnavailable, match=r"Redis at 127\.0\.0\.1:1 \(Cluster\): "):
        fs.materialize_incremental()
