"""Maintenance of offline tables: no row is lost or doubled under concurrent writers and kills."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from toque.featurestore import (
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    InvalidDefinition,
    Upkeep,
    compact,
    erase,
    expire,
)
from toque.featurestore.online import Materializer
from toque.functions import Context, use_context
from toque.functions.maintenance.features import compact_features, erase_features, expire_features
from toque.functions.runtime import catalog
from toque.registry import open_store

NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
PLANES = [f"N{i}" for i in range(4)]
view = FeatureView("late", [Entity("plane")], [Field("x", Float64)], ttl=3 * DAY)


def row(hours_ago: int, x: float, plane: int = 0) -> dict[str, Any]:
    return {"plane": PLANES[plane % 4], "x": x, "event_timestamp": NOW - hours_ago * HOUR}


def values(fs: FeatureStore) -> Counter[float]:
    return Counter(fs.offline.read(view)["x"].to_pylist())


def files(fs: FeatureStore) -> int:
    version = fs.offline.version(view)
    assert version is not None
    return len(version.files)


def as_of_now(fs: FeatureStore) -> dict[str, list[Any]]:
    asked = pa.Table.from_pylist([{"plane": p, "event_timestamp": fs.now()} for p in PLANES])
    return fs.get_historical_features(asked, features=view).to_arrow().select(["x"]).to_pydict()


def test_compaction_leaves_one_file_a_day_and_every_row(offline_fs: FeatureStore) -> None:
    offline_fs.apply([view])
    assert compact(offline_fs, view) == Upkeep(view="late")
    for n in range(20):
        offline_fs.write_offline(view, [row(8 * n, float(n), n)])
    before = as_of_now(offline_fs)
    done = compact(offline_fs, "late")
    assert (files(offline_fs), done.table_version) == (7, 21)
    assert done.removed - done.added == 20 - 7
    assert values(offline_fs) == Counter(float(n) for n in range(20))
    assert as_of_now(offline_fs) == before
    assert compact(offline_fs, view) == Upkeep(view="late", table_version=21)


def test_materialized_rows_are_not_written_again_after_compaction(fs: FeatureStore) -> None:
    fs.apply([view])
    for n in range(6):
        fs.write_offline(view, [row(8 * n, float(n), n)])
    assert fs.materialize_incremental()[0].rows == 6
    compact(fs, view)
    fs.write_offline(view, [row(1, 7.0), row(60, 8.0)])
    fs.write_offline(view, [row(2, 9.0)])
    assert fs.materialize_incremental()[0].rows == 3
    fs.write_offline(view, [row(3, 10.0)])
    compact(fs, view)  # what is new went into one file with what is known
    assert fs.materialize_incremental()[0].rows >= 1
    assert fs.materialize_incremental()[0].rows == 0
    online = fs.get_online_features(view, [{"plane": p} for p in PLANES]).columns()
    assert online == as_of_now(fs)


def test_appends_and_expiry_go_on_during_compaction(
    offline_fs: FeatureStore, make_store: Callable[..., FeatureStore]
) -> None:
    offline_fs.apply([view])
    offline_fs.write_offline(view, [row(24 * 20 + n, -1.0) for n in range(5)])

    def write(writer: int) -> None:
        store = make_store()
        for n in range(8):
            store.write_offline("late", [row(n, float(10 * writer + n), n)])

    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(write, writer) for writer in range(4)]
        expiring = pool.submit(lambda: expire(make_store(), "late", keep=5 * DAY))
        while not all(w.done() for w in writers):
            compact(offline_fs, view)
        for ended in (*writers, expiring):
            ended.result()
    compact(offline_fs, view)
    assert values(offline_fs) == Counter(float(10 * w + n) for w in range(4) for n in range(8))
    assert files(offline_fs) <= 2


def test_after_kill_9_a_compaction_is_as_if_it_had_not_begun_or_had_ended(
    offline_fs: FeatureStore, tmp_path: Path
) -> None:
    offline_fs.apply([view])
    for n in range(3):
        rows = [row(24 * day, float(1_000 * n + i), i) for day in range(20) for i in range(100)]
        offline_fs.write_offline(view, rows)
    before, folder = values(offline_fs), Path(offline_fs.offline_table(view).uri.removeprefix("file://"))
    there = len(list(folder.rglob("*.parquet")))
    script = Path(__file__).with_name("killed_process.py")
    command = [sys.executable, str(script), f"file://{tmp_path}/store", "redis://127.0.0.1:1/0", "compact"]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(script.parents[2])})
    deadline = time.monotonic() + 60
    while len(list(folder.rglob("*.parquet"))) < there + 3:
        assert time.monotonic() < deadline, "the process wrote nothing"
    process.kill()
    process.wait()
    assert values(offline_fs) == before
    compact(offline_fs, view)
    assert values(offline_fs) == before
    assert files(offline_fs) == 20


def test_expiry_changes_no_read_as_of_now_and_keeps_old_versions(fs: FeatureStore) -> None:
    fs.apply([view])
    for n in range(20):
        fs.push(view, [row(8 * n, float(n), n)])
    before, version = as_of_now(fs), fs.offline_table(view).version()
    done = expire(fs, view, keep=3 * DAY)
    assert (done.rows, done.removed) == (9, 9)
    assert sum(values(fs).values()) == 11
    assert as_of_now(fs) == before
    assert fs.get_online_features(view, [{"plane": p} for p in PLANES]).columns() == before
    assert fs.offline.read(view, version=version).num_rows == 20
    assert expire(fs, view, keep=3 * DAY) == Upkeep(view="late", table_version=done.table_version)


def test_rows_that_may_still_be_used_do_not_expire(offline_fs: FeatureStore) -> None:
    lasting = FeatureView("lasting", [Entity("plane")], [Field("x", Float64)])
    offline_fs.apply([view, lasting])
    with pytest.raises(InvalidDefinition, match=r"'late' uses rows for 3 days.* keep them at least as long"):
        expire(offline_fs, view, keep=2 * DAY)
    with pytest.raises(InvalidDefinition, match="'lasting' has no ttl"):
        expire(offline_fs, lasting, keep=900 * DAY)
    with pytest.raises(InvalidDefinition, match="must have been unused for at least 1 day"):
        erase(offline_fs, view, grace=HOUR)


def test_erased_files_are_those_out_of_use_for_long(offline_fs: FeatureStore) -> None:
    offline_fs.apply([view])
    for n in range(4):
        offline_fs.write_offline(view, [row(n, float(n))])
    folder = Path(offline_fs.offline_table(view).uri.removeprefix("file://"))
    orphan = folder / "event_day=2013-07-01" / "part-of-a-killed-writer.parquet"
    orphan.write_bytes(b"half")
    os.utime(orphan, (0, 0))
    compact(offline_fs, view)
    assert (
        erase(offline_fs, view, grace=DAY).removed == 1
    )  # what compaction took out of use has just been used
    assert not orphan.exists()
    assert offline_fs.offline.read(view, version=3).num_rows > 0
    assert sum(values(offline_fs).values()) == 4


def test_an_interrupted_run_whose_files_were_erased_starts_over(fs: FeatureStore) -> None:
    fs.apply([view])
    for n in range(6):
        fs.write_offline(view, [row(8 * n, float(n), n)])
    old = {f.path for f in (fs.offline.version(view) or pytest.fail("no table")).files}

    def stop(_name: str, _rows: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Materializer(fs.offline, fs.online, progress=stop, rows_at_once=1).incremental(view, end=NOW)
    compact(fs, view)
    folder = Path(fs.offline_table(view).uri.removeprefix("file://"))
    for path in old - {f.path for f in (fs.offline.version(view) or pytest.fail("no table")).files}:
        (folder / path).unlink()  # as erase does when its grace is over
    assert fs.materialize_incremental()[0].rows == 6
    assert fs.materialize_incremental()[0].rows == 0
    assert fs.get_online_features(view, [{"plane": p} for p in PLANES]).columns() == as_of_now(fs)
    assert not [key for key in fs.online.client.scan_iter("toque-*") if b"claim" not in key]


@pytest.fixture
def ctx(tmp_path: Path, clock: Any) -> Iterator[Context]:
    url = f"file://{tmp_path}/store"
    context = Context(open_store(url), url, None, clock=clock, actor="ada")
    with use_context(context):
        yield context


def test_the_maintenance_functions_cover_all_views(ctx: Context) -> None:
    ctx.features().apply([view])
    for n in range(12):
        ctx.features().write_offline(view, [row(12 * n, float(n), n)])
    assert [(u.view, u.removed > u.added) for u in compact_features()] == [("late", True)]
    assert [u.rows for u in expire_features({"late": 4.0})] == [2]
    assert [u.removed for u in erase_features(["late"], 2.0)] == [0]
    assert {"compact_features", "expire_features", "erase_features"} <= {
        f.name for f in catalog.discover(["toque.functions.maintenance.features"])
    }
