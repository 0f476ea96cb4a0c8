"""Benchmark of large tables: `large_data batch` scores them, `large_data training_sets` joins features to them, on a Ray cluster of this machine.

Prints rows a second and how much the driver's own memory grew, which should not depend on the rows. `--share 1` joins in the driver, for
comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa

from toque.featurestore import Entity, FeatureService, FeatureView, Field, Float64, String
from toque.functions import Context, use_context
from toque.functions.evaluation.batch_inference import predict_batch
from toque.functions.features import build_training_set
from toque.functions.training import TabularParams, train_tabular
from toque.load.benchmarks.harness import GIB, MIB, Stopwatch, greatest, main, own_bytes, say, temporary
from toque.load.benchmarks.prep.fixtures import cluster
from toque.registry import Table, TableSnapshot, open_store

COLUMNS = [f"x{number}" for number in range(20)]
PIECE, KEYS = 500_000, 20_000
START = datetime(2013, 6, 1, tzinfo=UTC)
plane = Entity("plane", join_keys=[Field("tailnum", String)])
history = FeatureView(
    "history", [plane], [Field("delay", Float64), Field("seats", Float64)], ttl=timedelta(days=10)
)


def run(
    what: Literal["batch", "training_sets"],
    *,
    rows: Annotated[tuple[int, ...], "of the table"] = (500_000, 2_000_000),
    share: Annotated[float, "memory share; 1: all in the driver"] = 1e-9,
    folder: Annotated[Path | None, "for the tables and Ray's spilling"] = None,
) -> None:
    """Do every size and print one line for each."""
    with temporary(folder) as place, cluster(place, GIB):
        url = (place / "store").as_uri()
        used = Context(store=open_store(url), store_url=url, actor="benchmark", memory_share=share)
        with use_context(used):
            work = _scoring(used) if what == "batch" else _joining(used)
            for count in rows:
                table = Table(used.store, f"rows-{count}")
                for first in range(0, count, PIECE):
                    table.append(examples(min(PIECE, count - first), seed=first))
                with greatest(own_bytes) as most:
                    before, watch = most[0], Stopwatch()
                    work(table.snapshot())
                    took_s = watch.wall_s
                say(
                    f"{what} {count:>11,} x {len(COLUMNS)}: {took_s:6.1f} s, {count / took_s:9,.0f} rows/s, "
                    f"driver grew {(most[0] - before) / MIB:6.0f} MiB"
                )


def _scoring(used: Context) -> Callable[[TableSnapshot], object]:
    used.registry().create_model("bench")
    train = Table(used.store, "train").append(examples(2_000, seed=1))
    params = TabularParams(split="random", epochs=1, hidden=(16,))
    train_tabular("bench", train, "y", COLUMNS, [], params=params)
    return lambda table: predict_batch("bench", table, version=1, output=f"out-{table.name}", max_actors=2)


def _joining(used: Context) -> Callable[[TableSnapshot], object]:
    store, rng, rows = used.features(), np.random.default_rng(0), KEYS * 10
    store.apply([plane, history, FeatureService("bench", [history])])
    columns = {name: rng.standard_normal(rows) for name in ("delay", "seats")}
    store.write_offline(history, pa.table(_keys_and_times(rng, rows) | columns))
    end = START + timedelta(days=30)
    return lambda table: build_training_set("bench", table, "y", START, end, name=f"set-{table.name}")


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
