"""Benchmark of filling a view anew from stored events: run `python -m toque.load.benchmarks.prep.stream_replay [--events 500000,2000000]`.

Each size is a process of its own. Printed are the time, beside that of reading all events and writing them sorted to one Parquet file,
and how far the process's own memory grew in either, which for the filling should not follow the events.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

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
from toque.featurestore.streams.decode import Place, event_schema, rejected_schema
from toque.featurestore.streams.replay import fill_views
from toque.featurestore.streams.table import Move, StreamTable
from toque.featurestore.windows.aggregations import Function
from toque.load.benchmarks.timing import print_machine
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
        known = BEGIN_US + numbers * (30 * 86_400_000_000 // events)
        columns = {
            "event_timestamp": np.where(numbers % 100 == 1, known - known % 1_000_000, known),
            "known_at": known,
            "user": [f"u{number}" for number in chance.integers(0, USERS, COMMITTED)],
            "amount": chance.random(COMMITTED),
            "id": [f"e{number}" for number in numbers],
            "stream_partition": np.zeros(COMMITTED, np.int32),
            "stream_position": numbers,
        }
        rows = pa.table([pa.array(columns[each.name], each.type) for each in schema], schema=schema)
        after = Place(int(numbers[-1]) + 1, int(known[-1]), int(known[-1]))
        table.commit(rows, rejected_schema().empty_table(), {0: Move(place, after)})
        place = after


def measured(what: str, folder: Path) -> None:
    """Fill the view or copy the events, and print seconds, memory in MiB and rows."""
    store, table = opened(folder)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    if what == "fill":
        rows = fill_views(store, table)[0].rows
    else:
        events = table.events()
        pq.write_table(
            events.sort_by([("user", "ascending"), ("known_at", "ascending")]), folder / "copy.parquet"
        )
        rows = events.num_rows
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(time.perf_counter() - began, grown / 1024, rows)


def main() -> None:
    """Run every size and print one line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", default="500000,2000000", help="(default: %(default)s)")
    parser.add_argument("--folder", default=None, help="for the store and what is spilled")
    parser.add_argument("--measured", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measured:
        measured(arguments.measured[0], Path(arguments.measured[1]))
        return
    print_machine("polars", "pyarrow", "deltalake")
    for events in (int(size) for size in arguments.events.split(",")):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            write_events(opened(Path(folder))[1], events)
            found = {}
            for what in ("copy", "fill"):
                command = [
                    sys.executable,
                    "-m",
                    "toque.load.benchmarks.prep.stream_replay",
                    "--measured",
                    what,
                    folder,
                ]
                environment = {**os.environ, "TMPDIR": folder}
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                found[what] = [float(each) for each in done.stdout.split()]
            (copy_s, copy_mib, _), (fill_s, fill_mib, rows) = found["copy"], found["fill"]
            print(
                f"{events:>11,} events: {rows:,.0f} rows in {fill_s:.1f} s, memory grew {fill_mib:,.0f} MiB; read whole, sorted and "
                f"copied in {copy_s:.1f} s, {copy_mib:,.0f} MiB; load {os.getloadavg()[0]:.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
