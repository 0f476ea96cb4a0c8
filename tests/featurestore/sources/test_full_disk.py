"""A load whose files cannot be written says so, stores nothing, and is made by the next one."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.featurestore.conftest import NOW
from toque.featurestore import BatchSource, Field, Float64, ParquetFiles
from toque.featurestore.sources import SourceTable, load_log
from toque.registry import open_store

ROWS = 40_000


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    """Have the system refuse to write on in a file of that size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("part_rows", [1_000, 1_000_000])
def test_a_load_onto_a_full_disk_stores_nothing_and_the_next_one_all(
    part_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_log, "PART_ROWS", part_rows)
    values = np.random.default_rng(1).normal(size=ROWS)
    for number, part in enumerate(
        (values[:10], values[10:])
    ):  # the first file of a load fits, the second does not
        times = pa.array([NOW] * len(part), pa.timestamp("us", "UTC"))
        pq.write_table(pa.table({"at": times, "x": part}), tmp_path / f"{number}.parquet")
    source = BatchSource("rows", ParquetFiles(f"{tmp_path}/*.parquet"), [Field("x", Float64)], timestamp="at")
    table = SourceTable(
        source, open_store(f"file://{tmp_path}/store"), "default", actor="tests", clock=lambda: NOW
    )

    def no_secrets(name: str) -> str:
        raise AssertionError(name)

    with files_no_larger_than(ROWS * 4), pytest.raises(OSError, match="File too large"):
        table.load(no_secrets)
    assert table.state().number == 0
    assert table.rows().num_rows == 0
    done = table.load(no_secrets)
    assert done is not None
    assert (done.number, done.rows) == (1, ROWS)
    assert sorted(table.rows()["x"].to_pylist()) == sorted(values.tolist())
