"""Materialization: online ends equal to offline as of now, with late, repeated or unordered rows."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.featurestore.killed_process import MINUTE, NOW, PLANES, START, row, view
from toque.featurestore import (
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    Int64,
    InvalidRows,
    OnlineStoreUnavailable,
)
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.online import Materializer
from toque.registry import open_store


def assert_online_equals_offline(fs: FeatureStore, now: datetime) -> None:
    asked = [{"plane": plane} for plane in PLANES]
    entities = pa.Table.from_pylist([{**a, "event_timestamp": now} for a in asked])
    offline = fs.get_historical_features(entities, features=view).to_arrow()
    online = fs.get_online_features(view, asked, now=now).columns()
    assert online == {name: offline[name].to_pylist() for name in view.features}


ROW = st.builds(
    row,
    st.sampled_from(PLANES),
    st.integers(0, 8),
    st.integers(0, 4),
    st.one_of(st.none(), st.sampled_from([1.0, 2.0])),
    st.one_of(st.none(), st.sampled_from(["", "b"])),
)
STEP = st.tuples(
    st.lists(ROW, min_size=1, max_size=6), st.sampled_from(["offline", "both"]), st.integers(0, 3)
)


HISTORY = st.lists(STEP, max_size=6)
a_few = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@a_few
@given(HISTORY)
def test_after_any_history_an_incremental_run_makes_online_equal_offline(
    tmp_path_factory: pytest.TempPathFactory, redis_server: Any, clock: Any, steps: list[Any]
) -> None:
    after_a_history_they_are_equal(tmp_path_factory.mktemp("store"), redis_server.url, clock, steps)


@pytest.mark.proof
@settings(a_few, max_examples=300)
@given(HISTORY)
def test_after_three_hundred_histories_online_equals_offline(
    tmp_path_factory: pytest.TempPathFactory, redis_server: Any, clock: Any, steps: list[Any]
) -> None:
    after_a_history_they_are_equal(tmp_path_factory.mktemp("store"), redis_server.url, clock, steps)


def after_a_history_they_are_equal(folder: Path, redis_url: str, clock: Any, steps: list[Any]) -> None:
    fs = FeatureStore(open_store(folder.as_uri()), redis_url, clock=clock)
    fs.online.client.flushall()
    fs.apply([view])
    for hour, (rows, to, ahead) in enumerate(steps):
        clock.now = START + timedelta(minutes=hour + 8 if to == "both" else hour)
        fs.push(view, rows, to=to)
        if ahead < 3:
            fs.materialize_incremental(START + (hour + ahead) * MINUTE)
    end = START + 20 * MINUTE
    fs.materialize_incremental(end)
    assert_online_equals_offline(fs, end)
    fs.online.close()


def test_the_next_run_writes_late_rows_and_corrections(fs: FeatureStore) -> None:
    fs.apply([view])
    fs.write_offline(view, [row("N1", 10, 10, 1.0), row("N2", 10, 10, 1.0)])
    assert fs.materialize_incremental(START + 20 * MINUTE)[0].written == 2
    fs.write_offline(view, [row("N1", 10, 11, 2.0), row("N2", 5, 30, 9.0), row("N3", 3, 30, 3.0)])
    done = fs.materialize_incremental(START + 21 * MINUTE)[0]
    assert (done.rows, done.written) == (3, 2)
    assert_online_equals_offline(fs, START + 21 * MINUTE)


def test_future_rows_are_written_once_their_time_has_come(fs: FeatureStore) -> None:
    fs.apply([view])
    fs.write_offline(view, [row("N1", minute, 0, float(minute)) for minute in range(10)])
    for minute in (3, 3, 7, 5):
        fs.materialize_incremental(START + minute * MINUTE)
    assert fs.get_online_features(view, [{"plane": "N1"}]).columns(["x"]) == {"x": [7.0]}


def test_a_window_writes_only_its_rows(fs: FeatureStore) -> None:
    fs.apply([view])
    fs.write_offline(view, [row(plane, i, 0, float(i)) for i, plane in enumerate(PLANES)])
    done = fs.materialize(["late"], start=START + 2 * MINUTE, end=START + 3 * MINUTE)
    assert [d.rows for d in done] == [2]
    got = fs.get_online_features(view, [{"plane": plane} for plane in PLANES]).columns(["x"])
    assert got == {"x": [None, None, 2.0, 3.0, None, None]}


def test_a_window_without_rows_writes_nothing_and_an_inverted_one_is_refused(fs: FeatureStore) -> None:
    fs.apply([view])
    fs.write_offline(view, [row("N1", 5, 5, 1.0)])
    done = fs.materialize(start=START + 6 * MINUTE, end=START + 9 * MINUTE)[0]
    assert (done.rows, done.written) == (0, 0)
    with pytest.raises(InvalidRows, match=r"'late': start 2013-06-01T00:09:00\+00:00 is after end"):
        fs.materialize(start=START + 9 * MINUTE, end=START + 6 * MINUTE)


def test_an_emptied_redis_is_filled_again(fs: FeatureStore) -> None:
    fs.apply([view])
    fs.write_offline(view, [row("N1", 1, 1, 1.0)])
    fs.materialize_incremental()
    fs.online.client.flushall()
    assert fs.materialize_incremental()[0].written == 1


def test_nothing_new_reads_nothing(fs: FeatureStore) -> None:
    fs.apply([view])
    assert fs.materialize_incremental(START)[0].table_version is None
    fs.write_offline(view, [row("N1", 1, 1, 1.0)])
    fs.materialize_incremental(START + 5 * MINUTE)
    assert fs.materialize_incremental(START + 5 * MINUTE)[0].rows == 0


def test_progress_is_reported_and_memory_bounded(fs: FeatureStore) -> None:
    fs.apply([view])
    fs.write_offline(view, [row(PLANES[i % 6], i, 0, float(i)) for i in range(100)])
    told: list[tuple[str, int, int]] = []
    mover = Materializer(fs.offline, fs.online, progress=lambda *at: told.append(at), rows_at_once=30)
    mover.window(view, start=None, end=NOW)
    assert [t[0] for t in told] == ["late"] * len(told)
    assert len(told) >= 3
    assert told[-1] == ("late", 100, 100)
    assert_online_equals_offline(fs, NOW)


def test_eight_writers_in_any_order_end_with_the_newest(
    fs: FeatureStore, make_store: Callable[..., FeatureStore], redis_url: str
) -> None:
    fs.apply([view])
    rows = [row(PLANES[i % 6], i // 24, i % 4, float(i)) for i in range(240)]
    order = np.random.default_rng(3).permutation(len(rows))
    shares = [[rows[i] for i in order[start::8]] for start in range(8)]
    gate = threading.Barrier(8)

    def write(share: list[dict[str, Any]]) -> None:
        store = make_store(redis_url)
        gate.wait()
        for at in range(0, len(share), 10):
            store.push("late", share[at : at + 10], to="online")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, shares))
    fs.write_offline(view, rows)
    assert_online_equals_offline(fs, NOW)


def test_eight_writers_of_both_stores_and_a_materializer_end_with_the_newest(
    fs: FeatureStore, make_store: Callable[..., FeatureStore], redis_url: str
) -> None:
    """Corrections with equal event times, late rows and exact ties, while incremental runs go on."""
    fs.apply([view])
    order = np.random.default_rng(4).permutation(96)
    rows = [row(PLANES[i % 6], i // 24, i % 3, float(i), "ab"[i % 2]) for i in order]
    gate = threading.Barrier(9)

    def write(share: list[dict[str, Any]]) -> None:
        store = make_store(redis_url)
        gate.wait()
        for at, to in zip(
            range(0, len(share), 4), itertools.cycle(["both", "offline", "both"]), strict=False
        ):
            store.push("late", share[at : at + 4], to=to)

    def follow() -> None:
        store = make_store(redis_url)
        gate.wait()
        for minute in (0, 1, 1, 2):
            store.materialize_incremental(START + minute * MINUTE)

    with ThreadPoolExecutor(9) as pool:
        following = pool.submit(follow)
        list(pool.map(write, [rows[start::8] for start in range(8)]))
        following.result()
    fs.materialize_incremental(NOW)
    assert_online_equals_offline(fs, NOW)
    assert fs.offline.read(view).num_rows == len(rows)


def test_a_push_that_ends_between_the_two_stores_is_completed_by_the_next_run(
    make_store: Callable[..., FeatureStore], spare_redis: Any
) -> None:
    fs = make_store(f"{spare_redis.url}?patience=0.1")
    fs.apply([view])
    spare_redis.kill()
    with pytest.raises(OnlineStoreUnavailable):
        fs.push(view, [row("N1", 1, 1, 1.0)])
    spare_redis.start()
    assert fs.get_online_features(view, [{"plane": "N1"}]).statuses["x"] == ["NOT_FOUND"]
    fs.materialize_incremental(NOW)
    assert_online_equals_offline(fs, NOW)
    assert fs.get_online_features(view, [{"plane": "N1"}]).columns(["x"]) == {"x": [1.0]}


def test_a_rerun_skips_what_an_interrupted_run_had_finished(fs: FeatureStore) -> None:
    fs.apply([view])
    fs.write_offline(view, [row("N1", 1440 * day, 0, float(day)) for day in range(6)])

    class Killed(Exception):  # noqa: N818  # it plays a signal
        pass

    def stop(_name: str, rows: int, _total: int) -> None:
        if rows == 4:
            raise Killed

    with pytest.raises(Killed):
        Materializer(fs.offline, fs.online, progress=stop, rows_at_once=1).incremental(view, end=NOW)
    fs.write_offline(view, [row("N2", 1, 1, 7.0)])
    done = fs.materialize_incremental(NOW)[0]
    assert (done.rows, done.resumed) == (2 + 1, True)
    assert_online_equals_offline(fs, NOW)


def test_redis_lost_during_a_run_is_a_clear_error_and_a_rerun_completes(
    make_store: Callable[..., FeatureStore], spare_redis: Any
) -> None:
    server = spare_redis
    fs = make_store(f"{server.url}?patience=0.1")
    fs.apply([view])
    fs.write_offline(view, [row(PLANES[day % 6], 1440 * day, 0, float(day)) for day in range(12)])

    def stop_redis(_name: str, rows: int, _total: int) -> None:
        if rows == 5:
            server.kill()

    mover = Materializer(fs.offline, fs.online, progress=stop_redis, rows_at_once=1)
    with pytest.raises(OnlineStoreUnavailable, match=f"Redis at 127.0.0.1:{server.port}: "):
        mover.incremental(view, end=NOW)
    with pytest.raises(OnlineStoreUnavailable) as told:
        fs.get_online_features(view, [{"plane": "N1"}])
    assert "secret" not in str(told.value)
    server.start()
    done = fs.materialize_incremental(NOW)[0]
    assert done.resumed
    assert_online_equals_offline(fs, NOW)


def test_on_s3_it_is_the_same(s3_store_url: str, redis_url: str) -> None:
    fs = FeatureStore(open_store(s3_store_url), redis_url, clock=lambda: NOW)
    fs.apply([view])
    fs.write_offline(view, [row(PLANES[i % 6], 700 * i, 700 * i, float(i)) for i in range(9)])
    assert fs.materialize_incremental(START + 3 * 700 * MINUTE)[0].rows == 4
    fs.push(view, [row("N1", 1, 9, 7.0)])
    assert fs.materialize_incremental()[0].rows == 6
    assert_online_equals_offline(fs, NOW)
    fs.online.close()


def test_a_row_takes_less_than_300_bytes(fs: FeatureStore) -> None:
    wide = FeatureView("wide", [Entity("plane")], [Field(f"f{i}", Float64) for i in range(20)])
    fs.apply([wide])
    columns = {f"f{i}": [i * 0.1] for i in range(20)}
    fs.push(
        wide,
        pa.table(columns | {"plane": ["N000001"], "event_timestamp": pa.array([START], TIMESTAMP)}),
        to="online",
    )
    assert fs.online.client.memory_usage("toque:default:wide:N000001") < 300


def test_a_large_write_does_not_need_a_server_that_knows_the_script(make_store: Any, redis_url: str) -> None:
    fs: FeatureStore = make_store(redis_url)
    one = FeatureView("one", [Entity("number", dtype=Int64)], [Field("value", Float64)])
    fs.apply([one])

    def rows(at: datetime, value: float) -> pa.Table:
        count = 1_200
        return pa.table(
            {
                "number": range(count),
                "value": [value] * count,
                "event_timestamp": pa.array([at] * count, TIMESTAMP),
                "created_timestamp": pa.array([at] * count, TIMESTAMP),
            }
        )

    for value in (1.0, 2.0):
        fs.online.client.script_flush()
        assert fs.online.write(one, rows(START + value * MINUTE, value)) == 1_200
    assert fs.online.write(one, rows(START, 0.0)) == 0
    found = fs.get_online_features(one, [{"number": n} for n in (0, 1_199)], now=START + 3 * MINUTE).columns()
    assert found["value"] == [2.0, 2.0]
