"""Benchmark of tables larger than memory, over a Ray cluster of this machine that spills to disk.

batch: scores rows. training_sets: joins features of 200,000 rows to them; `--share 1` joins in the driver, for comparison. joins: a dataset whose
rows are known, with ten feature rows for each. Printed are the time of a row, which should not grow, how much the driver's own memory grew, which
should not depend on the rows, and the peak of all processes together, each shared page counted once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from toque.featurestore import Entity, FeatureService, FeatureStore, FeatureView, Field, Float64, String
from toque.functions import Context, use_context
from toque.functions.evaluation.batch_inference import predict_batch
from toque.functions.features import build_training_set
from toque.functions.training import TabularParams, train_tabular
from toque.load.benchmarks import harness
from toque.load.benchmarks.harness import main, say
from toque.load.benchmarks.prep import fixtures
from toque.load.benchmarks.prep.fixtures import cluster
from toque.registry import Table, TableSnapshot, open_store

COLUMNS = [f"x{number}" for number in range(20)]
PIECE, KEYS = 500_000, 20_000
ROWS_OF_A_KEY = 5  # of a join, so that more rows are more keys
START = datetime(2013, 6, 1, tzinfo=UTC)
plane = Entity("plane", join_keys=[Field("tailnum", String)])
fields = [Field("delay", Float64), Field("seats", Float64)]
history = FeatureView("history", [plane], fields, ttl=timedelta(days=10))


def run(
    what: Literal["batch", "training_sets", "joins"],
    *,
    rows: Annotated[tuple[int, ...], "of the table"] = (500_000, 2_000_000),
    share: Annotated[float, "memory share; 1: all in the driver"] = 1e-9,
    object_store_gib: Annotated[float, "shared memory before Ray spills to disk"] = 1.0,
    folder: Annotated[Path | None, "for the tables and Ray's spilling"] = None,
) -> None:
    """Do every size and print one line for each."""
    for count in rows:
        with harness.temporary(folder) as place, cluster(place, int(object_store_gib * harness.GIB)):
            url = (place / "store").as_uri()
            used = Context(store=open_store(url), store_url=url, actor="benchmark", memory_share=share)
            with use_context(used):
                prepared = {"batch": _scoring, "training_sets": _training_set, "joins": _joining}[what]
                work = prepared(used, count)
                with (
                    harness.greatest(harness.own_bytes) as own,
                    harness.greatest(harness.family_bytes, every_s=0.5) as peak,
                ):
                    before, watch = own[0], harness.Stopwatch()
                    work()
                    took_s = watch.wall_s
        say(
            f"{what} {count:>11,}: {took_s:6.1f} s, {took_s / count * 1e6:7.1f} us a row, {count / took_s:9,.0f} rows/s, "
            f"driver grew {(own[0] - before) / harness.MIB:6.0f} MiB, peak of all {peak[0] / harness.GIB:5.2f} GiB"
        )


def _table(used: Context, rows: int) -> TableSnapshot:
    table = Table(used.store, "rows")
    for first in range(0, rows, PIECE):
        table.append(examples(min(PIECE, rows - first), seed=first))
    return table.snapshot()


def _scoring(used: Context, rows: int) -> Callable[[], object]:
    used.registry().create_model("bench")
    train = Table(used.store, "train").append(examples(2_000, seed=1))
    params = TabularParams(split="random", epochs=1, hidden=(16,))
    train_tabular("bench", train, "y", COLUMNS, [], params=params)
    return partial(predict_batch, "bench", _table(used, rows), version=1, output="out", max_actors=2)


def _training_set(used: Context, rows: int) -> Callable[[], object]:
    store, rng, count = used.features(), np.random.default_rng(0), KEYS * 10
    store.apply([plane, history, FeatureService("bench", [history])])
    columns = {name: rng.standard_normal(count) for name in ("delay", "seats")}
    store.write_offline(history, pa.table(_keys_and_times(rng, count) | columns))
    end = START + timedelta(days=30)
    return partial(build_training_set, "bench", _table(used, rows), "y", START, end, name="set")


def _joining(used: Context, rows: int) -> Callable[[], object]:
    store = FeatureStore(used.store, clock=lambda: fixtures.NOW)
    store.apply([fixtures.wide])
    keys = rows * 10 // ROWS_OF_A_KEY
    for number, first in enumerate(range(0, rows * 10, PIECE)):
        part = fixtures.feature_rows(min(PIECE, rows * 10 - first), keys=keys, seed=number + 2)
        store.write_offline(fixtures.wide, part)
    numbers = pa.array(range(rows), pa.int64())
    entities = fixtures.entity_rows(rows, keys=keys).append_column("number", numbers)
    out = used.store.url.removeprefix("file://") + "-out"

    def join() -> None:
        store.get_historical_features(entities, features=fixtures.wide).to_ray().write_parquet(out)
        joined = ds.dataset(out).count_rows()
        if joined != rows:
            raise RuntimeError(f"{joined} rows came out of {rows}")

    return join


def examples(rows: int, *, seed: int) -> pa.Table:
    """Simulate rows of floats with a label, a key and a time."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.standard_normal(rows) for name in COLUMNS}
    label = {"y": (columns["x0"] > 0).astype(np.float64)}
    return pa.table(columns | label | _keys_and_times(rng, rows))


def _keys_and_times(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    micros = int(START.timestamp() * 1e6) + rng.integers(0, 30 * 86_400_000_000, rows)
    keys = np.char.add("N", rng.integers(0, KEYS, rows).astype(str))
    return {"tailnum": pa.array(keys), "event_timestamp": pa.array(micros).cast(pa.timestamp("us", "UTC"))}


if __name__ == "__main__":
    main(run, "ray", "torch", "pyarrow", "deltalake")
