"""Benchmark of reading 90 days of a busy model's log: compacted, with an hour's small files, and with a day's.

python -m toque.load.benchmarks.prep.log_reading [--days 90] [--rows 86400] [--rounds 5]

A drain every ten seconds adds a file, here of ten rows. So there are 360 small files before an hourly compaction, which is the worst
that upkeep leaves now, and 8,640 before a nightly one. Read are the columns that a monitor of losses reads; a ratio is to the compacted log in the same round.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.transaction import AddAction, RemoveAction

from toque.functions.prediction_log import predictions, predictions_table
from toque.functions.prediction_log.records import LOGGED, PREDICTIONS
from toque.load.benchmarks.timing import print_machine
from toque.registry import ObjectStore, Table, open_store
from toque.registry.store.tables.upkeep import compact_days

START = datetime(2026, 3, 1, tzinfo=UTC)
COLUMNS = (
    "prediction_id",
    "version",
    "arm",
    "shadow",
    "unit",
    "predicted_at",
    "latency_ms",
    "outputs",
    "propensity",
)
DRAINED_ROWS = 10
FILES_OF_AN_HOUR, FILES_OF_A_DAY = 360, 8_640


def day_rows(day: datetime, rows: int, *, seed: int) -> pa.Table:
    """Make a day's rows: ten numbers and two texts each, one output."""
    rng = np.random.default_rng(seed)
    micros = np.sort(rng.integers(0, 86_400_000_000, rows)) + int(day.timestamp() * 1e6)
    texts = pa.array([["UA", "EWR"]] * rows, pa.list_(pa.string()))
    numbers = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=rows * 10).astype(np.float32)), 10)
    outputs = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(rows).astype(np.float32)), 1)
    same = {"model": "busy", "version": 1, "arm": "champion", "shadow": False, "propensity": 1.0}
    columns = {
        "prediction_id": pa.array([f"{seed:04d}-{i:08d}" for i in range(rows)]),
        "unit": pa.array([f"user-{n}" for n in rng.integers(0, 5_000, rows)]),
        "predicted_at": pa.array(micros, pa.int64()).cast(LOGGED.field("predicted_at").type),
        "latency_ms": pa.array(rng.random(rows).astype(np.float32)),
        "numeric": numbers.cast(pa.list_(pa.float32())),
        "categorical": texts,
        "outputs": outputs.cast(pa.list_(pa.float32())),
        "missing": pa.nulls(rows, pa.list_(pa.string())),
        "entities": pa.nulls(rows, pa.string()),
        "day": pa.array([f"{day:%Y-%m-%d}"] * rows),
        **{name: pa.array([value] * rows, LOGGED.field(name).type) for name, value in same.items()},
    }
    return pa.table(columns).select([*PREDICTIONS.names, "propensity"])


def fill(store: ObjectStore, arguments: argparse.Namespace) -> None:
    """Write all days, each as one file."""
    table = Table(store, predictions_table("busy"))
    for number in range(arguments.days):
        rows = day_rows(START + timedelta(days=number), arguments.rows, seed=number)
        table.append(rows, partition_by=["day"], bounds=["predicted_at"])


def add_drained(table: Table, day: datetime, files: int) -> None:
    """Add so many files of a drain to a day in one commit, since their commits are not what is measured.

    From the 361st on a file is another name of an earlier one, so that the disk does not fill.
    """
    opened, name = table.open(), f"{day:%Y-%m-%d}"
    rows = day_rows(day, FILES_OF_AN_HOUR * DRAINED_ROWS, seed=9_999)
    folder = Path(table.uri.removeprefix("file://")) / f"day={name}"
    actions: list[AddAction | RemoveAction] = []
    for number in range(files):
        path, first = folder / f"drained-{number}.parquet", number % FILES_OF_AN_HOUR
        if number == first:
            part = rows.slice(number * DRAINED_ROWS, DRAINED_ROWS)
            pq.write_table(part.drop_columns(["day"]), path)
        else:
            path.hardlink_to(folder / f"drained-{first}.parquet")
        where, size = f"day={name}/{path.name}", path.stat().st_size
        actions.append(
            AddAction(where, size, {"day": name}, modification_time=0, data_change=True, stats="{}")
        )
    opened.create_write_transaction(actions, "append", opened.schema(), partition_by=["day"])


def seconds_to_read(store: ObjectStore, days: int) -> float:
    """Read the whole span as a monitor does; returns seconds."""
    begin = time.perf_counter()
    found = predictions(store, "busy", START, START + timedelta(days=days), columns=COLUMNS)
    taken = time.perf_counter() - begin
    if not found.num_rows:
        raise RuntimeError("the log has no rows")
    return taken


def main() -> None:
    """Measure the three logs in turns, then the upkeep itself."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--rows", type=int, default=86_400, help="of a day")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print_machine("deltalake", "pyarrow")
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"compacted": 0, "hourly": FILES_OF_AN_HOUR, "nightly": FILES_OF_A_DAY}
        fill(open_store(f"file://{folder}/compacted"), arguments)
        for name in ("hourly", "nightly"):
            shutil.copytree(f"{folder}/compacted", f"{folder}/{name}", copy_function=os.link)
        stores = {name: open_store(f"file://{folder}/{name}") for name in kinds}
        day = START + timedelta(days=arguments.days - 1)
        for name in ("hourly", "nightly"):
            add_drained(Table(stores[name], predictions_table("busy")), day, kinds[name])
        rounds = [
            {name: seconds_to_read(store, arguments.days) for name, store in stores.items()}
            for _ in range(arguments.rounds)
        ]
        for name, files in kinds.items():
            ratios = [each[name] / each["compacted"] for each in rounds]
            print(
                f"{name:12}{files:6} small files{np.median([each[name] for each in rounds]):8.2f} s"
                f"{np.median(ratios):7.2f} x compacted (from {min(ratios):.2f} to {max(ratios):.2f})"
            )
        last = f"{START + timedelta(days=arguments.days - 1):%Y-%m-%d}"
        begin = time.perf_counter()
        merged, made = compact_days(Table(stores["hourly"], predictions_table("busy")), [last], at_least=32)
        print(f"hourly upkeep merges {merged} files to {made} in {time.perf_counter() - begin:.2f} s")


if __name__ == "__main__":
    main()
