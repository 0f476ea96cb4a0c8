"""Reading of large tables by few tasks, each table opened once in a process."""

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from toque.featurestore import Entity, FeatureStore, FeatureView, Field, Float64
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.offline import distributed
from toque.featurestore.offline import tables as offline
from toque.featurestore.offline.versions import File

START = datetime(2013, 6, 1, tzinfo=UTC)
late = FeatureView("late", [Entity("plane")], [Field("x", Float64)])


def files(*rows: int) -> list[File]:
    days = [START + timedelta(days=number) for number in range(len(rows))]
    fragment: Any = None
    return [
        File(f"f{day:%d}", f"{day:%Y-%m-%d}", count, day, day + timedelta(days=1), fragment)
        for day, count in zip(days, rows, strict=True)
    ]


def test_small_tables_are_read_in_tasks_of_a_quarter_of_a_million_rows() -> None:
    shares = list(
        distributed.file_shares(files(100_000, 200_000, 50_000, 300_000, 10), (None, None), most=10**6)
    )
    assert shares == [[0, 1], [2, 3], [4]]


def test_large_tables_are_read_in_some_thirty_tasks_and_more_only_beyond_a_bound_of_rows() -> None:
    assert len(list(distributed.file_shares(files(*[100_000] * 160), (None, None), most=10**6))) == 32
    assert len(list(distributed.file_shares(files(*[100_000] * 600), (None, None), most=10**6))) == 60


def test_files_beyond_the_bounds_are_left_out() -> None:
    within = (START + timedelta(days=1, hours=1), START + timedelta(days=1, hours=2))
    assert list(distributed.file_shares(files(1, 1, 1), within, most=10**6)) == [[1]]


def test_a_worker_lists_the_files_of_a_table_once(
    offline_fs: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline_fs.apply([late])
    rows = pa.table(
        {"plane": ["N1", "N2"], "event_timestamp": pa.array([START] * 2, TIMESTAMP), "x": [1.0, 2.0]}
    )
    number = offline_fs.write_offline(late, rows).version
    opened = []
    monkeypatch.setattr(
        offline, "open_version", lambda *table, first=offline.open_version: opened.append(1) or first(*table)
    )
    for _ in range(3):  # as it travels to each task
        there = copy.copy(offline_fs.offline)
        piece = pa.table({"files": [[0]]})
        known = there.known_else(late)
        read = distributed._read_files(piece, offline=there, view=late, number=number, known_else=known)
        assert read["x"].to_pylist() == [1.0, 2.0]
    assert opened == [1]
