"""Benchmark of batch sources: Parquet files of ten columns into a source's table, beside polars, in turn in the same run.

polars scans the same files and writes them to one. Each load is a process of its own, whose greatest memory is printed, so that it shows
whether that grows with the rows; a second load then reads one more file. Files that were made in `--folder` stay there for the next run;
`--only-files` makes them and does no more.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl

from toque.featurestore import BatchSource, FeatureStore, Field, Float64, Int64, ParquetFiles
from toque.load.benchmarks.harness import Stopwatch, greatest_mib, in_child, main, say, temporary
from toque.registry import open_store

FILE_ROWS = 500_000
FLOATS = [f"f{n}" for n in range(8)]
START = datetime(2024, 1, 1, tzinfo=UTC)


def run(
    *,
    rows: tuple[int, ...] = (2_000_000, 8_000_000),
    folder: Annotated[Path | None, "where files are kept; by default nowhere"] = None,
    only_files: bool = False,
) -> None:
    """Run every size and print a line for each."""
    with temporary() as own:
        for size in rows:
            files = [write_file(folder or own, number) for number in range(size // FILE_ROWS + 1)]
            if not only_files:
                with temporary(folder or own) as place:
                    compare(place, files)


def write_file(folder: Path, number: int) -> Path:
    """Write one file of rows, an hour after the one before, unless it is there."""
    path = folder / f"{number:05}.parquet"
    if not path.exists():
        chance = np.random.default_rng(number)
        offsets = np.arange(FILE_ROWS, dtype="timedelta64[ms]") * 7
        times = np.datetime64(START.replace(tzinfo=None) + number * timedelta(hours=1), "us") + offsets
        columns: dict[str, Any] = {"key": chance.integers(0, 100_000, FILE_ROWS), "at": times}
        columns |= {name: chance.normal(size=FILE_ROWS) for name in FLOATS}
        frame = pl.DataFrame(columns).with_columns(pl.col("at").dt.replace_time_zone("UTC"))
        frame.write_parquet(folder / "half.tmp")
        (folder / "half.tmp").rename(path)
    return path


def compare(folder: Path, files: list[Path]) -> None:
    """Load all files but the last, copy them by polars, then load the last; prints a line."""
    (folder / "in").mkdir()
    for file in files[:-1]:
        os.link(file, folder / "in" / file.name)
    rows = FILE_ROWS * (len(files) - 1)
    base_s, _, copied = in_child(measured, "copy", str(folder))
    first_s, memory_mib, first = in_child(measured, "load", str(folder))
    if not first == copied == rows:
        raise RuntimeError(f"{first} rows were loaded and {copied} copied of {rows}")
    os.link(files[-1], folder / "in" / files[-1].name)
    second_s, _, second = in_child(measured, "load", str(folder))
    say(
        f"{rows:>11,} rows: {first_s:6.1f} s, {first / first_s / 1e6:.2f} M rows/s, polars {base_s:6.1f} s, "
        f"{base_s / first_s:.2f} of its speed, at most {memory_mib:,.0f} MiB; {second:,} more: {second_s:.1f} s"
    )


def measured(work: str, folder: str) -> tuple[float, float, int]:
    """Load what is new in the folder, or copy all by polars; returns seconds, the greatest memory in MiB, and rows."""
    watch = Stopwatch()
    if work == "copy":
        pl.scan_parquet(f"{folder}/in/*.parquet").sink_parquet(f"{folder}/copy.parquet")
        rows = int(pl.scan_parquet(f"{folder}/copy.parquet").select(pl.len()).collect().item())
    else:
        schema = [Field("key", Int64), *(Field(name, Float64) for name in FLOATS)]
        source = BatchSource("rows", ParquetFiles(f"{folder}/in/*.parquet"), schema, timestamp="at")
        store = FeatureStore(open_store(f"file://{folder}/store"))
        store.apply([source])
        load = store.source_table(source).load(lambda name: name)
        rows = 0 if load is None else load.rows
    return watch.wall_s, greatest_mib(), rows


if __name__ == "__main__":
    main(run, "polars", "pyarrow", "deltalake")
