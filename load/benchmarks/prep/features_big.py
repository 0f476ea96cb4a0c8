"""Benchmark of training sets larger than memory: the time an entity row, which should not grow, and the memory of all processes together.

Ten feature rows for each entity row, simulated on disk piece by piece, joined over a Ray cluster of this machine and
written to Parquet. Each shared page of memory is counted once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.dataset as ds

from toque.featurestore import FeatureStore
from toque.load.benchmarks.harness import GIB, Stopwatch, family_bytes, greatest, main, say, temporary
from toque.load.benchmarks.prep.fixtures import FEATURES, NOW, cluster, entity_rows, feature_rows, wide
from toque.registry import open_store

PIECE = 1_000_000
ROWS_OF_A_KEY = 5  # so that more rows are more keys


def run(
    *,
    entities: Annotated[tuple[int, ...], "entity rows"] = (100_000, 300_000),
    object_store_gib: Annotated[float, "shared memory before Ray spills to disk"] = 0.75,
    folder: Annotated[Path | None, "for the simulated tables and Ray's spilling"] = None,
) -> None:
    """Run every size and print one line for each."""
    for size in entities:
        with temporary(folder) as place, cluster(place, int(object_store_gib * GIB)):
            measure(place, size)


def measure(folder: Path, entities: int) -> None:
    """Benchmark a training set of one size."""
    store = FeatureStore(open_store((folder / "store").as_uri()), clock=lambda: NOW)
    store.apply([wide])
    rows, keys = entities * 10, entities * 10 // ROWS_OF_A_KEY
    for number, first in enumerate(range(0, rows, PIECE)):
        store.write_offline(wide, feature_rows(min(PIECE, rows - first), keys=keys, seed=number + 2))
    table = entity_rows(entities, keys=keys).append_column("number", pa.array(range(entities), pa.int64()))
    with greatest(family_bytes, every_s=0.5) as peak:
        watch = Stopwatch()
        store.get_historical_features(table, features=wide).to_ray().write_parquet(str(folder / "out"))
        took_s = watch.wall_s
    joined = ds.dataset(folder / "out").count_rows()
    if joined != entities:
        raise RuntimeError(f"{joined} rows came out of {entities}")
    say(
        f"training set {entities:>10,} x {rows:>11,} x {FEATURES}: {took_s:8.1f} s, {took_s / entities * 1e6:7.1f} us a row, "
        f"peak {peak[0] / GIB:5.2f} GiB"
    )


if __name__ == "__main__":
    main(run, "ray", "polars", "pyarrow", "deltalake")
