"""Benchmark of filling a view anew from stored events, beside reading all events and writing them sorted to one Parquet file.

Each is a process of its own. Printed are the time, and how far the process's own memory grew, which for the filling should not follow the
events.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from toque.featurestore import (
    Aggregation,
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    RedisStream,
    StreamSource,
    String,
    Windows,
)
from toque.featurestore.stream_views import fill_views
from toque.featurestore.streams.decode import Place, event_schema, rejected_schema
from toque.featurestore.streams.table import Move, StreamTable
from toque.featurestore.windows.aggregations import Function
from toque.load.benchmarks.harness import Stopwatch, greatest_mib, in_child, main, say, temporary
from toque.registry import open_store

USERS, COMMITTED = 100_000, 100_000
HOUR = timedelta(hours=1)
BEGIN_US = 1_704_067_200_000_000
SOURCE = StreamSource(
    "clicks",
    RedisStream("redis://localhost", "clicks"),
    [Field("user", String), Field("amount", Float64), Field("id", String)],
    timestamp="at",
    unique=["id"],
)
SPENT = FeatureView(
    "spent",
    [Entity("user", dtype=String)],
    source=Windows([Aggregation(Function.SUM, HOUR, "amount"), Aggregation(Function.COUNT, HOUR)]),
    events=SOURCE,
)


def run(
    *,
    events: tuple[int, ...] = (500_000, 2_000_000),
    folder: Annotated[Path | None, "for the store and what is spilled"] = None,
) -> None:
    """Run every size and print one line for each."""
    for size in events:
        with temporary(folder) as place:
            write_events(opened(place)[1], size)
            copy, fill = (
                in_child(measured, what, str(place), environment={"TMPDIR": str(place)})
                for what in ("copy", "fill")
            )
        say(
            f"{size:>11,} events: {fill[2]:,} rows in {fill[0]:.1f} s, memory grew {fill[1]:,.0f} MiB; read whole, sorted and "
            f"copied in {copy[0]:.1f} s, {copy[1]:,.0f} MiB"
        )


def opened(folder: Path) -> tuple[FeatureStore, StreamTable]:
    """Open the store of a folder, with the view applied."""
    store = FeatureStore(open_store((folder / "store").as_uri()))
    store.apply([SPENT])
    return store, store.stream_table("clicks")


def write_events(table: StreamTable, events: int) -> None:
    """Store events of a month, one in a hundred of them a correction."""
    place, schema, chance = None, event_schema(table.source), np.random.default_rng(1)
    for first in range(0, events, COMMITTED):
        numbers = np.arange(first, first + COMMITTED)
        micros = BEGIN_US + numbers * (30 * 86_400_000_000 // events)
        columns = {
            "event_timestamp": np.where(numbers % 100 == 1, micros - micros % 1_000_000, micros),
            "known_at": micros,
            "user": [f"u{number}" for number in chance.integers(0, USERS, COMMITTED)],
            "amount": chance.random(COMMITTED),
            "id": [f"e{number}" for number in numbers],
            "stream_partition": np.zeros(COMMITTED, np.int32),
            "stream_position": numbers,
        }
        rows = pa.table([pa.array(columns[column.name], column.type) for column in schema], schema=schema)
        after = Place(int(numbers[-1]) + 1, int(micros[-1]), int(micros[-1]))
        table.commit(rows, rejected_schema().empty_table(), {0: Move(place, after)})
        place = after


def measured(what: str, folder: str) -> tuple[float, float, int]:
    """Fill the view or copy the events: seconds, MiB that memory grew by, and rows."""
    store, table = opened(Path(folder))
    before_mib, watch = greatest_mib(), Stopwatch()
    if what == "fill":
        rows = fill_views(store, table)[0].rows
    else:
        events = table.events().sort_by([("user", "ascending"), ("known_at", "ascending")])
        pq.write_table(events, f"{folder}/copy.parquet")
        rows = events.num_rows
    return watch.wall_s, greatest_mib() - before_mib, rows


if __name__ == "__main__":
    main(run, "polars", "pyarrow", "deltalake")
