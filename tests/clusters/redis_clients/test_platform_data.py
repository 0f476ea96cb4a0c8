"""Features, the prediction log, erasure and the replayed clock on each kind of Redis."""

import uuid
from datetime import UTC, datetime
from pathlib import Path

from tests.functions.prediction_log.logbook import all_rows, record
from toque.featurestore import Entity, FeatureStore, FeatureView, Field, Float64
from toque.functions.maintenance.erasure.jobs import clear_log, rewrite_files
from toque.functions.prediction_log import LogWriter, drain
from toque.functions.runtime import ReplayClock
from toque.registry import open_store

NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)


def test_features_are_materialized_and_read(any_url: str, tmp_path: Path) -> None:
    view = FeatureView("late", [Entity("plane")], [Field("x", Float64)])
    project = f"p{uuid.uuid4().hex}"
    fs = FeatureStore(
        open_store(f"file://{tmp_path}"), any_url, project=project, clock=lambda: NOW, actor="ada"
    )
    fs.apply([view])
    rows = [{"plane": f"N{n}", "x": float(n), "event_timestamp": NOW} for n in range(30)]
    fs.write_offline(view, rows)
    assert fs.materialize_incremental()[0].written == 30
    asked = [{"plane": f"N{n}"} for n in range(31)]
    found = fs.get_online_features(view, asked)
    assert found.columns(["x"]) == {"x": [*map(float, range(30)), None]}
    fs.online.close()


def test_records_reach_their_table(any_url: str, tmp_path: Path) -> None:
    store, workspace = open_store(f"file://{tmp_path}/store"), f"w{uuid.uuid4().hex}"
    logs = [
        LogWriter(tmp_path / "wal", "predictions", any_url, workspace=workspace, poll_s=0.01)
        for _ in range(3)
    ]
    for number in range(30):
        logs[number % 3].append(record(f"r{number}"))
    logs[0].commit([record("confirmed")])
    for log in logs:
        log.close(timeout_s=30)
    drained = drain(store, any_url, workspace=workspace, wal_root=tmp_path / "wal")
    assert (drained.predictions, drained.writers) == (31, 3)
    assert set(all_rows(store)["prediction_id"].to_pylist()) == {
        "confirmed",
        *(f"r{number}" for number in range(30)),
    }
    assert clear_log(store, any_url, workspace=workspace, wal_root=tmp_path / "wal", timeout_s=30) == []


def test_files_are_rewritten_and_time_is_set(any_url: str) -> None:
    assert rewrite_files(any_url) == ""
    ReplayClock(any_url).set(NOW)
    assert ReplayClock(any_url)() == NOW
