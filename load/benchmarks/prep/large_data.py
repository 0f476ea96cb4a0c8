"""Benchmark of large tables: run `python -m toque.load.benchmarks.prep.large_data batch|training_sets [--rows 500000,2000000]`.

Scores tables of 20 columns, or joins features to them, on a Ray cluster of this machine, and prints rows a second and how
much the driver's own memory grew, which should not depend on the rows. `--share 1` joins in the driver, for comparison.
"""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from toque.featurestore import Entity, FeatureService, FeatureView, Field, Float64, String
from toque.functions import Context, use_context
from toque.functions.evaluation.batch_inference import predict_batch
from toque.functions.features import build_training_set
from toque.functions.training import TabularParams, train_tabular
from toque.load.benchmarks.prep.features_big import cluster
from toque.load.benchmarks.timing import print_machine
from toque.registry import Table, open_store

COLUMNS = [f"x{number}" for number in range(20)]
PIECE, KEYS = 500_000, 20_000
START = datetime(2013, 6, 1, tzinfo=UTC)
plane = Entity("plane", join_keys=[Field("tailnum", String)])
history = FeatureView(
    "history", [plane], [Field("delay", Float64), Field("seats", Float64)], ttl=timedelta(days=10)
)


def main() -> None:
    """Do every size and print one line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["batch", "training_sets"])
    parser.add_argument("--rows", default="500000,2000000", help="of the table (default: %(default)s)")
    parser.add_argument("--share", type=float, default=1e-9, help="memory share; 1: all in the driver")
    parser.add_argument("--folder", default=None, help="for the tables and Ray's spilling")
    arguments = parser.parse_args()
    print_machine("ray", "torch", "pyarrow", "deltalake")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, cluster(folder, 1 << 30):
        url = (Path(folder) / "store").as_uri()
        context = Context(
            store=open_store(url), store_url=url, actor="benchmark", memory_share=arguments.share
        )
        with use_context(context):
            for rows in (int(size) for size in arguments.rows.split(",")):
                (_batch if arguments.what == "batch" else _training_set)(context, rows)


def _batch(context: Context, rows: int) -> None:
    if not Table(context.store, "train").exists():
        context.registry().create_model("bench")
        train = Table(context.store, "train").append(examples(2_000, seed=1))
        params = TabularParams(split="random", epochs=1, hidden=(16,))
        train_tabular("bench", train, "y", COLUMNS, [], params=params)
    table = _table(context, rows)
    with memory_growth() as grown:
        done = predict_batch("bench", table.snapshot(), version=1, output=f"out-{rows}", max_actors=2)
    _print(f"batch inference {rows:>11,} x {len(COLUMNS)}", rows, done.seconds, grown)


def _training_set(context: Context, rows: int) -> None:
    store = context.features()
    if not store.list_feature_views():
        store.apply([plane, history, FeatureService("bench", [history])])
        store.write_offline(history, feature_rows(KEYS * 10))
    table = _table(context, rows)
    begin = time.perf_counter()
    with memory_growth() as grown:
        build_training_set(
            "bench", table.snapshot(), "y", START, START + timedelta(days=30), name=f"set-{rows}"
        )
    _print(f"training set {rows:>11,} x {len(COLUMNS)}", rows, time.perf_counter() - begin, grown)


def _table(context: Context, rows: int) -> Table:
    table = Table(context.store, f"rows-{rows}")
    for at in range(0, rows, PIECE):
        table.append(examples(min(PIECE, rows - at), seed=at))
    return table


def _print(what: str, rows: int, seconds: float, grown: list[int]) -> None:
    print(
        f"{what}: {seconds:6.1f} s, {rows / seconds:9,.0f} rows/s, driver grew {grown[0] / 2**20:6.0f} MiB, "
        f"load {os.getloadavg()[0]:.0f}",
        flush=True,
    )


def examples(rows: int, *, seed: int) -> pa.Table:
    """Simulate rows of floats with a label, a key and a time."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.standard_normal(rows) for name in COLUMNS}
    made = pa.table(columns | {"y": (columns["x0"] > 0).astype(np.float64)})
    return made.append_column("tailnum", _keys(rng, rows)).append_column("event_timestamp", _times(rng, rows))


def feature_rows(rows: int) -> pa.Table:
    """Simulate stored rows of the view."""
    rng = np.random.default_rng(0)
    given = {"tailnum": _keys(rng, rows), "event_timestamp": _times(rng, rows)}
    return pa.table(given | {name: rng.standard_normal(rows) for name in ("delay", "seats")})


def _keys(rng: np.random.Generator, rows: int) -> pa.Array:
    return pa.array(np.char.add("N", rng.integers(0, KEYS, rows).astype(str)))


def _times(rng: np.random.Generator, rows: int) -> pa.Array:
    at = START.timestamp() * 1e6 + rng.integers(0, 30 * 86_400_000_000, rows)
    return pa.array(at.astype(np.int64)).cast(pa.timestamp("us", "UTC"))


@contextmanager
def memory_growth(every_s: float = 0.05) -> Iterator[list[int]]:
    """Track by how many bytes this process's own memory has grown at most; pages of the object store do not count."""
    before, ended = _own_bytes(), threading.Event()
    grown = [0]

    def watch() -> None:
        while not ended.wait(every_s):
            grown[0] = max(grown[0], _own_bytes() - before)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield grown
    finally:
        ended.set()
        watching.join()


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {
        name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines) if rest.split()
    }
    return int(sizes["RssAnon"]) * 1024


if __name__ == "__main__":
    main()
