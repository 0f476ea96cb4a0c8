"""Benchmark of the feature store, by cases.

Each case runs in a process of its own, so that its peak memory is its own. Baselines, in the same run: for the online
store plain MGET and MSET of the same bytes on the same redis-server; for the training set polars' `join_asof`; for
windowed aggregates polars' `rolling` by key, window by window.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from toque.featurestore import FeatureStore, FeatureView, Windows, aggregations
from toque.load.benchmarks import harness
from toque.load.benchmarks.harness import line, main, say
from toque.load.benchmarks.prep import fixtures
from toque.load.benchmarks.prep.fixtures import FEATURES, wide
from toque.load.benchmarks.servers import redis_server
from toque.registry import open_store

Case = Literal["write", "materialize", "floor", "online", "asof", "windows"]
training = FeatureView("training", wide.entities, wide.schema)


def run(
    *,
    rows: Annotated[int, "feature rows"] = 1_000_000,
    events: Annotated[int, "events to aggregate"] = 10_000_000,
    cases: Annotated[
        tuple[Case, ...], "in this order; all but `windows` need what `write` and `materialize` leave"
    ] = ("write", "materialize", "floor", "online", "asof", "windows"),
) -> None:
    """Run the cases, each in a process of its own, and print one line for each figure."""
    with harness.temporary() as folder, redis_server(folder, password="") as url:
        for case in cases:
            harness.in_child(run_case, case, str(folder), url, events if case == "windows" else rows)


def run_case(case: Case, folder: str, redis_url: str, rows: int) -> None:
    """Run one case in this process, and print its peak memory."""
    store = FeatureStore(open_store(f"file://{folder}/store"), redis_url, clock=lambda: fixtures.NOW)
    cases: dict[Case, Callable[[FeatureStore, Path, int], None]] = {"write": _write, "floor": _floor}
    cases |= {"materialize": _materialize, "online": _online, "asof": _asof, "windows": _windows}
    cases[case](store, Path(folder), rows)
    say(f"  peak memory of the process: {harness.greatest_mib() / 1024:.2f} GiB")


def _once(call: Callable[[], object]) -> harness.Timing:
    """Time a call that is too long to repeat."""
    return harness.Timing.of([harness.seconds_of(call)])


def _write(store: FeatureStore, folder: Path, rows: int) -> None:
    """Write offline, one key per row, and the tables that the other cases read."""
    store.apply([wide, training])
    table = fixtures.feature_rows(rows, keys=rows)
    line(f"write offline {rows:,} x {FEATURES}", _once(lambda: store.write_offline(wide, table)), rows=rows)
    features = fixtures.feature_rows(rows, keys=fixtures.KEYS)
    store.write_offline(training, features)
    pq.write_table(features, folder / "features.parquet")
    pq.write_table(fixtures.entity_rows(rows // 10), folder / "entities.parquet")


def _materialize(store: FeatureStore, _: Path, rows: int) -> None:
    """Materialize offline rows to Redis, and count the bytes of each there."""
    client = store.online.client
    before = client.info("memory")["used_memory"]
    took = _once(lambda: store.materialize_incremental(views=[wide]))
    after = client.info("memory")
    line(f"materialize {rows:,} x {FEATURES}", took, rows=rows)
    say(f"  bytes a row in Redis: {(after['used_memory'] - before) / rows:.1f} ({after['mem_allocator']})")


def _floor(store: FeatureStore, _: Path, rows: int) -> None:
    """Write the same bytes by MSET, a thousand at a time: the floor of materialization."""
    keys = [f"toque:default:wide:{n}".encode() for n in range(rows)]
    batches = [keys[first : first + 1_000] for first in range(0, rows, 1_000)]
    values = [[value or b"" for value in store.online.read(batch)] for batch in batches]
    mset = store.online.client.mset
    took = _once(lambda: [mset(dict(zip(*pair, strict=True))) for pair in zip(batches, values, strict=True)])
    line(f"MSET of {rows:,} packed rows", took, rows=rows)


def _online(store: FeatureStore, _: Path, rows: int) -> None:
    """Read 1 and 100 entities online, and by MGET of the same keys."""
    rng = np.random.default_rng(1)
    for entities in (1, 100):
        names = [str(n) for n in rng.integers(0, rows, entities)]
        keys = [f"toque:default:wide:{name}".encode() for name in names]
        asked = [{"key": name} for name in names]
        base = harness.timed(partial(store.online.client.mget, keys), repeats=1_000)
        read = partial(store.get_online_features, wide, asked)
        line(f"MGET {entities} x {FEATURES}", base, base, rows=entities)
        took = harness.timed(lambda read=read: read().columns(), repeats=1_000)  # type: ignore[misc]
        line(f"online read {entities} x {FEATURES}", took, base, rows=entities)


def _asof(store: FeatureStore, folder: Path, rows: int) -> None:
    """Join point in time, and by polars, which ignores ties and returns sorted rows."""
    paths = [folder / f"{name}.parquet" for name in ("entities", "features")]
    entities, frames = pq.read_table(paths[0]), [pl.read_parquet(path) for path in paths]

    def join(left: pl.DataFrame, right: pl.DataFrame) -> pl.DataFrame:
        # it needs them sorted, and does not check
        left, right = (side.sort("event_timestamp") for side in (left, right))
        return left.join_asof(right, on="event_timestamp", by="key", check_sortedness=False)

    calls: dict[str, Callable[[], object]] = {
        "polars join_asof in memory": lambda: join(*frames),
        "polars join_asof from a file": lambda: join(*map(pl.read_parquet, paths)),
        "the training set": lambda: store.get_historical_features(entities, features=training).to_arrow(),
    }
    timings = harness.timed_in_turns(calls, rounds=7)
    for what, timing in timings.items():
        line(f"{what}, {entities.num_rows:,} x {rows:,}", timing, timings["the training set"])


def _windows(_: FeatureStore, __: Path, rows: int) -> None:
    """Compute three windows of four aggregates per event, and by polars' rolling."""
    table, x = fixtures.event_rows(rows), pl.col("x")
    spans = {"3h": timedelta(hours=3), "1d": timedelta(days=1), "7d": timedelta(days=7)}
    declared = aggregations({"x": ["count", "mean", "std", "max"]}, windows=spans.values())

    sparse = Windows(declared, every=timedelta(hours=6))

    def rolling(period: str) -> pl.DataFrame:
        windows = pl.DataFrame(table).sort("key", "event_timestamp")
        windows_of = windows.rolling("event_timestamp", period=period, group_by="key")
        return windows_of.agg(n=x.count(), mean=x.mean(), std=x.std(), max=x.max())

    calls: dict[str, Callable[[], object]] = {
        "polars rolling": lambda: [rolling(span) for span in spans],
        "a row an event": lambda: Windows(declared).compute(table, keys=["key"]),
        "a row each six hours": lambda: sparse.compute(table, keys=["key"]),
    }
    timings = harness.timed_in_turns(calls, rounds=2)
    for what, timing in timings.items():
        line(f"3 windows of {rows:,} events, {what}", timing, timings["polars rolling"], rows=rows)


if __name__ == "__main__":
    main(run, "polars", "pyarrow", "redis", "deltalake")
