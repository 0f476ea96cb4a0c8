"""Benchmark of batch sources: run `python -m toque.load.benchmarks.prep.sources [--rows 2000000,8000000]`.

Loads Parquet files of ten columns into a source's table, beside polars, which scans the same files and writes them to one, in
turn in the same run. Each load is a process of its own, whose greatest memory is printed, so that it shows whether that grows
with the rows; a second load then reads one more file. Files that were made in `--folder` stay there for the next run; `--only-files`
makes them and does no more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from toque.featurestore import BatchSource, Field, Float64, Int64, ParquetFiles
from toque.load.benchmarks.timing import print_machine

FILE_ROWS = 500_000
FLOATS = [f"f{n}" for n in range(8)]
START = datetime(2024, 1, 1, tzinfo=UTC)
_PROGRAM = """
import resource, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
began = time.perf_counter()
{work}
took = time.perf_counter() - began
print(took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, rows)
"""
_LOAD = """
from toque.load.benchmarks.prep.sources import loaded
rows = loaded(folder)
"""
_POLARS = """
import polars as pl
pl.scan_parquet(folder / "in" / "*.parquet").sink_parquet(folder / "copy.parquet")
rows = pl.scan_parquet(folder / "copy.parquet").select(pl.len()).collect().item()
"""


def write_file(folder: Path, number: int) -> Path:
    """Write one file of rows, an hour after the one before, unless it is there."""
    path = folder / f"{number:05}.parquet"
    if not path.exists():
        chance = np.random.default_rng(number)
        offsets = np.arange(FILE_ROWS, dtype="timedelta64[ms]") * 7
        times = np.datetime64(START.replace(tzinfo=None) + number * timedelta(hours=1), "us") + offsets
        frame = pl.DataFrame(
            {"key": chance.integers(0, 100_000, FILE_ROWS), "at": times}
            | {name: chance.normal(size=FILE_ROWS) for name in FLOATS}
        ).with_columns(pl.col("at").dt.replace_time_zone("UTC"))
        frame.write_parquet(folder / "half.tmp")
        (folder / "half.tmp").rename(path)
    return path


def loaded(folder: Path) -> int:
    """Load what is new in the folder; returns the rows."""
    from toque.featurestore import FeatureStore  # late: its import is part of what is timed
    from toque.registry import open_store

    schema = [Field("key", Int64), *(Field(name, Float64) for name in FLOATS)]
    source = BatchSource("rows", ParquetFiles(f"{folder}/in/*.parquet"), schema, timestamp="at")
    store = FeatureStore(open_store((folder / "store").as_uri()))
    store.apply([source])
    found = store.source_table(source).load(lambda name: name)
    return 0 if found is None else found.rows


def measured(work: str, folder: Path) -> tuple[float, float, int]:
    """Run a work in a process of its own; returns seconds, its greatest memory in MiB, and rows."""
    command = [sys.executable, "-c", _PROGRAM.format(work=work), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, memory, rows = done.stdout.split()
    return float(seconds), float(memory), int(rows)


def main() -> None:
    """Run every size and print two lines for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="2000000,8000000", help="(default: %(default)s)")
    parser.add_argument("--folder", default=None, help="where files are kept; by default nowhere")
    parser.add_argument("--only-files", action="store_true")
    arguments = parser.parse_args()
    print_machine("polars", "pyarrow", "deltalake")
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(arguments.folder or temporary)
        for rows in (int(size) for size in arguments.rows.split(",")):
            made = [write_file(files, number) for number in range(rows // FILE_ROWS + 1)]
            if not arguments.only_files:
                with tempfile.TemporaryDirectory(dir=files) as folder:
                    compare(Path(folder), made)


def compare(folder: Path, files: list[Path]) -> None:
    """Load all files but the last, copy them by polars, then load the last; prints a line."""
    (folder / "in").mkdir()
    for each in files[:-1]:
        os.link(each, folder / "in" / each.name)
    rows = FILE_ROWS * (len(files) - 1)
    floor_s, _, copied = measured(_POLARS, folder)
    first_s, memory, first = measured(_LOAD, folder)
    if not first == copied == rows:
        raise RuntimeError(f"{first} rows were loaded and {copied} copied of {rows}")
    os.link(files[-1], folder / "in" / files[-1].name)
    second_s, _, second = measured(_LOAD, folder)
    print(
        f"{rows:>11,} rows: {first_s:6.1f} s, {first / first_s / 1e6:.2f} M rows/s, polars {floor_s:6.1f} s, "
        f"{floor_s / first_s:.2f} of its speed, at most {memory:,.0f} MiB; {second:,} more: {second_s:.1f} s; "
        f"load {os.getloadavg()[0]:.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
