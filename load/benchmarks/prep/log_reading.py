"""Benchmark of reading 90 days of a busy model's log: compacted, with an hour's small files, and with a day's.

A drain every ten seconds adds a file, here of ten rows. So there are 360 small files before an hourly compaction, which is the worst
that upkeep leaves now, and 8,640 before a nightly one. Read are the columns that a monitor of losses reads; a ratio is to the compacted log
in the same round.
"""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.transaction import AddAction, RemoveAction

from toque.functions.prediction_log import predictions, predictions_table
from toque.load.benchmarks.harness import Ratio, in_turns, main, say, seconds_of, temporary
from toque.load.benchmarks.prep.logged import logged_rows
from toque.registry import Table, open_store
from toque.registry.store.tables.upkeep import compact_days

START = datetime(2026, 3, 1, tzinfo=UTC)
READ = (
    "prediction_id", "version", "arm", "shadow", "unit", "predicted_at", "latency_ms", "outputs", "propensity",
)  # fmt: skip
DRAINED_ROWS = 10
FILES_OF_AN_HOUR, FILES_OF_A_DAY = 360, 8_640


def run(*, days: int = 90, rows: Annotated[int, "of a day"] = 86_400, rounds: int = 5) -> None:
    """Measure the three logs in turns, then the upkeep itself."""
    last, name = START + timedelta(days=days - 1), predictions_table("busy")
    kinds = {"compacted": 0, "hourly": FILES_OF_AN_HOUR, "nightly": FILES_OF_A_DAY}
    with temporary() as folder:
        stores = {kind: open_store(f"file://{folder}/{kind}") for kind in kinds}
        for number in range(days):
            table = day_rows(START + timedelta(days=number), rows, seed=number)
            Table(stores["compacted"], name).append(table, partition_by=["day"], bounds=["predicted_at"])
        for kind in ("hourly", "nightly"):
            shutil.copytree(folder / "compacted", folder / kind, copy_function=os.link, dirs_exist_ok=True)
            add_drained(Table(stores[kind], name), last, kinds[kind])
        read = partial(predictions, model="busy", start=START, end=last + timedelta(days=1), columns=READ)
        calls = {kind: partial(seconds_of, partial(read, store)) for kind, store in stores.items()}
        took = in_turns(calls, rounds)
        for kind, files in kinds.items():
            ratio = Ratio.of(took[kind], took["compacted"])
            say(f"{kind:12}{files:6} small files{np.median(took[kind]):8.2f} s, {ratio} compacted")
        upkeep = partial(compact_days, Table(stores["hourly"], name), [f"{last:%Y-%m-%d}"], at_least=32)
        say(f"hourly upkeep merges the small files in {seconds_of(upkeep):.2f} s")


def day_rows(day: datetime, rows: int, *, seed: int) -> pa.Table:
    """Make a day's rows: ten numbers and two texts each, one output."""
    rng = np.random.default_rng(seed)
    return logged_rows(
        "busy",
        np.sort(rng.integers(0, 86_400_000_000, rows)) + int(day.timestamp() * 1e6),
        rng.normal(size=(rows, 10)).astype(np.float32),
        rng.random((rows, 1)).astype(np.float32),
        ids=[f"{seed:04d}-{i:08d}" for i in range(rows)],
        units=[f"user-{n}" for n in rng.integers(0, 5_000, rows)],
        categorical=np.array([["UA", "EWR"]] * rows),
        propensity=True,
    )


def add_drained(table: Table, day: datetime, files: int) -> None:
    """Add so many files of a drain to a day in one commit, since their commits are not what is measured.

    From the 361st on a file is another name of an earlier one, so that the disk does not fill.
    """
    opened, name = table.open(), f"{day:%Y-%m-%d}"
    rows = day_rows(day, FILES_OF_AN_HOUR * DRAINED_ROWS, seed=9_999).drop_columns(["day"])
    folder = Path(table.uri.removeprefix("file://")) / f"day={name}"
    actions: list[AddAction | RemoveAction] = []
    for number in range(files):
        path, first = folder / f"drained-{number}.parquet", number % FILES_OF_AN_HOUR
        if number == first:
            pq.write_table(rows.slice(number * DRAINED_ROWS, DRAINED_ROWS), path)
        else:
            path.hardlink_to(folder / f"drained-{first}.parquet")
        where, size = f"day={name}/{path.name}", path.stat().st_size
        actions.append(
            AddAction(where, size, {"day": name}, modification_time=0, data_change=True, stats="{}")
        )
    opened.create_write_transaction(actions, "append", opened.schema(), partition_by=["day"])


if __name__ == "__main__":
    main(run, "deltalake", "pyarrow")
