"""Benchmark of the feature store: run `python -m toque.load.benchmarks.prep.features [--feast PYTHON] [--rows 1000000]`.

Each case runs in a process of its own, so that its peak memory is its own. Baselines, in the same run: for the online
store plain MGET and MSET of the same bytes on the same redis-server; for the training set polars' `join_asof`; for
windowed aggregates polars' `rolling` by key, window by window; and for what Feast has, Feast, if the interpreter of an
environment that has it is given.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from toque.featurestore import FeatureStore, FeatureView, Windows, aggregations
from toque.load.benchmarks.prep.fixtures import (
    FEATURES,
    KEYS,
    NOW,
    entity_rows,
    event_rows,
    feature_rows,
    redis_server,
    wide,
)
from toque.load.benchmarks.timing import Timing, print_machine, timed
from toque.registry import open_store

FEAST_ROWS = 50_000  # that Feast materializes; at its rate more would take minutes
training = FeatureView("training", wide.entities, wide.schema)


def main() -> None:
    """Run every case, or the chosen one, and print one line for each figure."""
    arguments = _parser().parse_args()
    if arguments.case:
        _CASES[arguments.case](arguments)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{'  peak memory of the process':46}{peak:9.2f} GB", flush=True)
        return
    print_machine("polars", "pyarrow", "redis", "deltalake")
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        for case in arguments.cases.split(","):
            command = [
                sys.executable,
                "-m",
                "toque.load.benchmarks.prep.features",
                "--case",
                case,
                "--folder",
                folder,
            ]
            sizes = ["--rows", str(arguments.rows), "--events", str(arguments.events)]
            subprocess.run([*command, "--redis", url, "--feast", arguments.feast, *sizes], check=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="feature rows (default 1,000,000)")
    parser.add_argument(
        "--events", type=int, default=10_000_000, help="events to aggregate (default 10,000,000)"
    )
    parser.add_argument("--feast", default="", help="python of an environment that has feast[redis]")
    parser.add_argument(
        "--cases", default=",".join(_CASES), help="which, in this order (default: %(default)s)"
    )
    for internal in ("--case", "--folder", "--redis"):
        parser.add_argument(internal, default="", help=argparse.SUPPRESS)
    return parser


def store_of(arguments: argparse.Namespace) -> FeatureStore:
    """Open the store that all cases share."""
    return FeatureStore(open_store(f"file://{arguments.folder}/store"), arguments.redis, clock=lambda: NOW)


def line(what: str, timing: Timing, *, rows: int, baseline: Timing | None = None) -> None:
    """Print one case's timing: quantiles, rows a second, and time relative to the baseline."""
    ratio = "" if baseline is None else f"{timing.p50_s / baseline.p50_s:9.2f}x"
    print(f"{what:46}{timing}{rows / timing.p50_s:14,.0f} rows/s{ratio}", flush=True)


def once(call: Callable[[], object]) -> Timing:
    """Time a call that is too long to repeat."""
    start = time.perf_counter()
    call()
    took = time.perf_counter() - start
    return Timing(took, took, took)


def bench_write(arguments: argparse.Namespace) -> None:
    """Benchmark offline writes, one key per row; writes the tables that the other cases and Feast read, too."""
    fs = store_of(arguments)
    fs.apply([wide, training])
    rows = feature_rows(arguments.rows, keys=arguments.rows)
    took = once(lambda: fs.write_offline(wide, rows))
    line(f"write offline {rows.num_rows:,} x {FEATURES}", took, rows=rows.num_rows)
    pq.write_table(rows.slice(0, FEAST_ROWS), f"{arguments.folder}/online.parquet")
    features, entities = feature_rows(arguments.rows, keys=KEYS), entity_rows(arguments.rows // 10)
    fs.write_offline(training, features)
    pq.write_table(features, f"{arguments.folder}/features.parquet")
    pq.write_table(entities, f"{arguments.folder}/entities.parquet")


def bench_materialize(arguments: argparse.Namespace) -> None:
    """Benchmark the materialization of offline rows to Redis."""
    fs = store_of(arguments)
    before = _memory(fs)
    took = once(lambda: fs.materialize_incremental(views=[wide]))
    line(f"materialize {arguments.rows:,} x {FEATURES}", took, rows=arguments.rows)
    allocator = fs.online.client.info("memory")["mem_allocator"]
    print(f"{'  bytes a row in Redis':46}{(_memory(fs) - before) / arguments.rows:9.1f} ({allocator})")


def bench_floor(arguments: argparse.Namespace) -> None:
    """Benchmark the floor of materialization: MSET of the same bytes, a thousand at a time."""
    fs = store_of(arguments)
    keys = [f"toque:default:wide:{n}".encode() for n in range(arguments.rows)]
    values = [v or b"" for at in range(0, len(keys), 1_000) for v in fs.online.read(keys[at : at + 1_000])]

    def write() -> None:
        for at in range(0, len(keys), 1_000):
            batch = dict(zip(keys[at : at + 1_000], values[at : at + 1_000], strict=True))
            fs.online.client.mset(dict(batch))

    line(f"MSET of {arguments.rows:,} packed rows", once(write), rows=arguments.rows)


def _memory(fs: FeatureStore) -> int:
    """Read the memory that Redis uses, in bytes."""
    return int(fs.online.client.info("memory")["used_memory"])


def bench_online(arguments: argparse.Namespace) -> None:
    """Benchmark online reads of 1 and 100 entities against MGET of the same keys."""
    fs = store_of(arguments)
    rng = np.random.default_rng(1)
    for entities in (1, 100):
        known = [str(n) for n in rng.integers(0, arguments.rows, entities)]
        requested = [{"key": key} for key in known]
        keys = [f"toque:default:wide:{key}".encode() for key in known]
        floor = timed(lambda keys=keys: fs.online.client.mget(keys), repeats=1_000)  # type: ignore[misc]
        full = timed(lambda rows=requested: fs.get_online_features(wide, rows).columns(), repeats=1_000)  # type: ignore[misc]
        line(f"MGET {entities} x {FEATURES}", floor, rows=entities)
        line(f"online read {entities} x {FEATURES}", full, rows=entities, baseline=floor)


def alternately(*calls: Callable[[], object], repeats: int) -> list[Timing]:
    """Time calls in turn, so that other load on the machine meets them alike."""
    seconds = [[once(call).p50_s for call in calls] for _ in range(repeats + 1)][1:]
    return [
        Timing(*map(float, np.quantile(column, [0.2, 0.5, 0.8]))) for column in zip(*seconds, strict=True)
    ]


def bench_training(arguments: argparse.Namespace) -> None:
    """Benchmark building a training set from the store."""
    fs = store_of(arguments)
    entities = pq.read_table(f"{arguments.folder}/entities.parquet")
    ours = timed(lambda: fs.get_historical_features(entities, features=training).to_arrow(), repeats=5)
    shape = f"{entities.num_rows:,} x {arguments.rows:,}"
    line(f"training set {shape}, from the store", ours, rows=entities.num_rows)


def bench_asof(arguments: argparse.Namespace) -> None:
    """Benchmark the point-in-time join against polars, which ignores ties and returns sorted rows."""
    fs = store_of(arguments)
    paths = [f"{arguments.folder}/{name}.parquet" for name in ("entities", "features")]
    entities, feature_frames = pq.read_table(paths[0]), [pl.read_parquet(path) for path in paths]
    memory, file, ours = alternately(
        lambda: _asof(*feature_frames),
        lambda: _asof(*map(pl.read_parquet, paths)),
        lambda: fs.get_historical_features(entities, features=training).to_arrow(),
        repeats=7,
    )
    shape = f"{entities.num_rows:,} x {arguments.rows:,}"
    line(f"polars join_asof {shape}, in memory", memory, rows=entities.num_rows)
    line("  the training set beside it", ours, rows=entities.num_rows, baseline=memory)
    line(f"polars join_asof {shape}, from a file", file, rows=entities.num_rows)
    line("  the training set beside it", ours, rows=entities.num_rows, baseline=file)


def _asof(entities: pl.DataFrame, features: pl.DataFrame) -> pl.DataFrame:
    """Join with polars, sorting included, which it needs and does not check."""
    left, right = entities.sort("event_timestamp"), features.sort("event_timestamp")
    return left.join_asof(right, on="event_timestamp", by="key", strategy="backward", check_sortedness=False)


def bench_windows(arguments: argparse.Namespace) -> None:
    """Benchmark three windows of four aggregates per event against polars' rolling."""
    table = event_rows(arguments.events)
    spans = {"3h": timedelta(hours=3), "1d": timedelta(days=1), "7d": timedelta(days=7)}
    wanted = aggregations({"x": ["count", "mean", "std", "max"]}, windows=spans.values())
    floor, ours, grid = alternately(
        lambda: [_rolling(table, span) for span in spans],
        lambda: Windows(wanted).compute(table, keys=["key"]),
        lambda: Windows(wanted, every=timedelta(hours=6)).compute(table, keys=["key"]),
        repeats=2,
    )
    line(f"polars rolling, {arguments.events:,} events, 3 windows", floor, rows=arguments.events)
    line("windows, a row an event", ours, rows=arguments.events, baseline=floor)
    line("windows, a row each six hours", grid, rows=arguments.events, baseline=floor)


def _rolling(table: pa.Table, period: str) -> pl.DataFrame:
    """Compute one window over all keys with polars."""
    x = pl.col("x")
    return (
        pl.DataFrame(table)
        .sort("key", "event_timestamp")
        .rolling("event_timestamp", period=period, group_by="key")
        .agg(x.count().alias("n"), x.mean().alias("mean"), x.std().alias("std"), x.max().alias("max"))
    )


def bench_feast(arguments: argparse.Namespace) -> None:
    """Benchmark Feast on the same rows and redis-server, in its own environment."""
    if not arguments.feast:
        print("Feast: not measured; give --feast the python of an environment with feast[redis]")
        return
    script = Path(__file__).resolve().parents[2] / "peers" / "feast.py"
    command = [arguments.feast, str(script), arguments.folder, arguments.redis]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=arguments.folder)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"Feast {measured['version']}:")
    for what, seconds, rows in (
        (f"materialize {measured['materialized_rows']:,} x {FEATURES}", "materialize_s", "materialized_rows"),
        (f"online read 1 x {FEATURES}", "read_1_s", 1),
        (f"online read 100 x {FEATURES}", "read_100_s", 100),
        (f"training set {arguments.rows // 10:,} x {arguments.rows:,}", "training_s", "training_rows"),
    ):
        count = measured[rows] if isinstance(rows, str) else rows
        line(f"  Feast: {what}", Timing(*[measured[seconds]] * 3), rows=count)
    print(f"{'  Feast: bytes a row in Redis':46}{measured['bytes_a_row']:9.0f}")
    print(f"{'  Feast: rows of the training set':46}{measured['training_rows']:9,}")
    print(f"{'  Feast: peak memory':46}{measured['peak_gb']:9.2f} GB")


_CASES: dict[str, Callable[[argparse.Namespace], None]] = {
    "write": bench_write,
    "materialize": bench_materialize,
    "floor": bench_floor,
    "online": bench_online,
    "training": bench_training,
    "asof": bench_asof,
    "feast": bench_feast,
    "windows": bench_windows,
}

if __name__ == "__main__":
    main()
