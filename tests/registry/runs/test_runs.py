import math
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import until
from toque.registry import (
    Damaged,
    InvalidInput,
    NotFound,
    ObjectStore,
    Registry,
    Run,
    TableSnapshot,
    Unavailable,
    open_store,
)
from toque.registry.runs.record import Segment

DEADLINE_S = 20.0


def test_a_run_comes_back_whole(store: ObjectStore, tmp_path: Path):
    reg = Registry(store, actor="ada")
    snapshot = TableSnapshot(name="training", version=2)
    artifact = tmp_path / "plot.html"
    artifact.write_text("<html>")
    with reg.start_run(
        "exp", name="first", params={"lr": 0.01}, tags={"a": "b"}, datasets=[snapshot], code="c1", parent="p"
    ) as run:
        run.log_params({"layers": [1, 2]})
        for step in range(3):
            run.log_metrics({"loss": 1.0 / (step + 1), "acc": step}, step=step)
        run.set_tags({"a": "c"})
        run.log_artifact(artifact, "plots")
        run.log_datasets(TableSnapshot(name="extra", version=0), snapshot)
    record = Registry(open_store(store.url), actor="x").get_run(run.id).record()
    assert (record.status, record.name, record.actor, record.experiment) == (
        "FINISHED",
        "first",
        "ada",
        "exp",
    )
    assert record.params == {"lr": "0.01", "layers": "[1, 2]"}
    assert record.metrics == {"loss": 1 / 3, "acc": 2.0}
    assert record.tags == {"a": "c"}
    assert record.datasets == (snapshot, TableSnapshot(name="extra", version=0))
    assert record.facts["code"] == "c1"
    assert record.facts["parent"] == "p"
    assert record.facts["environment"]["python"].startswith("3.")
    assert record.facts["resources"]["cpu_s"] >= 0
    assert record.ended_at is not None
    assert record.ended_at >= record.started_at
    assert [(p.step, p.value) for p in run.series("loss")] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert run.series("nothing") == []
    assert run.download_artifact("plots/plot.html", tmp_path / "out").read_text() == "<html>"


def test_the_last_value_is_that_of_the_highest_step(reg: Registry):
    with reg.start_run("exp") as run:
        run.log_metric("loss", 1.0, step=5)
        run.flush()
        run.log_metric("loss", 9.0, step=2)
        run.log_metric("loss", 2.0, step=5)
    assert run.record().metrics == {"loss": 2.0}


def test_metrics_may_be_nan_and_numpy_but_not_text(reg: Registry):
    import numpy as np

    with reg.start_run("exp") as run:
        run.log_metrics({"a": float("nan"), "b": np.float32(0.5), "c": float("inf"), "d": np.int64(3)})
        with pytest.raises(InvalidInput, match="metrics="):
            run.log_metrics({"e": "high"})
    (record,) = reg.search_runs("exp")
    assert math.isnan(record.metrics["a"])
    assert {name: record.metrics[name] for name in "bcd"} == {"b": 0.5, "c": math.inf, "d": 3.0}
    cold = Registry(reg.store, actor="x").get_run(run.id).record()
    assert str(cold.metrics) == str(record.metrics)


def test_a_parameter_has_one_value(reg: Registry):
    with reg.start_run("exp", params={"lr": 1}) as run:
        run.log_params({"lr": 1, "x": 2})
        for wrong in ({"lr": 2}, {"x": 3}):
            with pytest.raises(InvalidInput, match="start another run"):
                run.log_params(wrong)


def test_a_run_whose_block_raises_has_failed_and_keeps_what_it_logged(reg: Registry):
    def fail() -> None:
        with reg.start_run("exp") as run:
            run.log_metric("loss", 1.0)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        fail()
    (record,) = reg.search_runs("exp", "attributes.status = 'FAILED'")
    assert record.metrics == {"loss": 1.0}
    assert record.tags["error"] == "RuntimeError: boom"


def test_a_thousand_points_are_one_write(reg: Registry, monkeypatch: pytest.MonkeyPatch):
    run = reg.start_run("exp")
    creates: list[str] = []
    create = type(reg.store).create
    monkeypatch.setattr(
        type(reg.store), "create", lambda self, key, data: (creates.append(key), create(self, key, data))[1]
    )
    monkeypatch.setattr("toque.registry.runs.run.FLUSH_EVERY_S", 60.0)
    for step in range(1000):
        run.log_metric("loss", step, step=step)
    run.flush()
    assert [key for key in creates if "segments" in key] == [f"runs/{run.id}/segments/000000.json"]
    run.finish()
    assert len(run.series("loss")) == 1000


def test_logged_values_are_stored_soon_without_flush(reg: Registry):
    run = reg.start_run("exp")
    run.log_metric("loss", 1.0)
    other = Registry(reg.store, actor="x")
    until(lambda: other.get_record(run.id).metrics == {"loss": 1.0})
    assert other.get_record(run.id).status == "RUNNING"
    run.finish()


def test_a_handle_works_after_pickle_and_by_id(reg: Registry):
    run = reg.start_run("exp")
    run.log_metric("a", 1.0)
    copy: Run = pickle.loads(pickle.dumps(run))  # noqa: S301 - our own
    copy.log_metric("b", 2.0)
    reg.get_run(run.id).log_metrics({"c": 3.0}, step=7)
    run.log_metric("d", 4.0)
    run.finish()
    assert run.record().metrics == {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}


def _log(run: Run, me: int) -> None:
    for step in range(20):
        run.log_metric(f"m{me}", step, step=step)
    run.flush()


def test_workers_that_log_to_one_run_lose_nothing(processes: ForkServerContext, store_url: str):
    run = Registry(open_store(store_url), actor="ada").start_run("exp")
    with ProcessPoolExecutor(3, mp_context=processes) as pool:
        for future in [pool.submit(_log, run, me) for me in range(3)]:
            future.result()
    run.finish()
    assert run.record().metrics == {f"m{me}": 19.0 for me in range(3)}
    assert all(len(run.series(f"m{me}")) == 20 for me in range(3))


KILLED = """
import os, signal, sys
from toque.registry import Registry, open_store
run = Registry(open_store(sys.argv[1]), actor="ada").start_run("exp", name="doomed")
run.log_metric("kept", 1.0)
run.flush()
run.log_metric("lost", 1.0)
print(run.id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_keeps_what_was_stored_and_shows_as_lost(
    folder_url: str, monkeypatch: pytest.MonkeyPatch
):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, folder_url], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    reg = Registry(open_store(folder_url), actor="bob")
    assert reg.search_runs("exp")[0].status == "RUNNING"  # its heart beat a moment ago
    monkeypatch.setattr("toque.registry.runs.record.LOST_AFTER", timedelta(0))
    (record,) = reg.search_runs("exp", "attributes.status = 'LOST' and metrics.kept = 1")
    assert record.id == done.stdout.strip()
    assert "lost" not in record.metrics
    assert reg.reap_runs("exp") == [record.id]
    assert reg.reap_runs("exp") == []
    assert Registry(reg.store, actor="x").get_record(record.id).status == "LOST"


def test_a_store_that_is_away_for_a_while_loses_nothing(reg: Registry, monkeypatch: pytest.MonkeyPatch):
    run = reg.start_run("exp")
    with monkeypatch.context() as patch:
        patch.setattr(type(reg.store), "create", lambda *_: (_ for _ in ()).throw(Unavailable("away")))
        run.log_metric("a", 1.0, step=1)
        with pytest.raises(Unavailable):
            run.flush()
        run.log_metric("a", 2.0, step=2)
        with pytest.raises(Unavailable):
            run.finish()
    run.finish()
    assert [p.value for p in run.series("a")] == [1.0, 2.0]
    assert run.record().status == "FINISHED"


def test_a_segment_whose_answer_was_lost_is_stored_once(reg: Registry, monkeypatch: pytest.MonkeyPatch):
    run = reg.start_run("exp")
    create = type(reg.store).create

    def lose(self: Any, key: str, data: bytes) -> None:
        create(self, key, data)
        raise Unavailable("lost")

    with monkeypatch.context() as patch:
        patch.setattr(type(reg.store), "create", lose)
        run.log_metric("a", 1.0)
        run.flush()
    run.finish()
    assert len(run.series("a")) == 1


def test_a_changed_artifact_is_refused(reg: Registry, tmp_path: Path):
    (tmp_path / "folder/sub").mkdir(parents=True)
    (tmp_path / "folder/sub/a.txt").write_text("abc")
    with reg.start_run("exp") as run:
        run.log_artifact(tmp_path / "folder", "out")
        with pytest.raises(InvalidInput, match="not a file"):
            run.log_artifact(tmp_path / "absent")
        with pytest.raises(InvalidInput):
            run.log_artifact(tmp_path / "folder/sub/a.txt", "../up")
    assert set(run.record().artifacts) == {"out/sub/a.txt"}
    with pytest.raises(NotFound, match="no artifact"):
        run.download_artifact("other", tmp_path)
    key = next(key for key in reg.store.list(f"runs/{run.id}/artifacts/"))
    reg.store.put(key, b"abd")
    with pytest.raises(Damaged, match="was changed"):
        run.download_artifact("out/sub/a.txt", tmp_path / "x")
    assert not (tmp_path / "x/out/sub/a.txt").exists()


def test_absent_names_are_not_found(reg: Registry):
    with pytest.raises(NotFound, match="does not exist"):
        reg.get_run("0" * 32)
    for bad in ("", "../x"):
        with pytest.raises(InvalidInput):
            reg.start_run(bad)
        with pytest.raises(InvalidInput):
            reg.get_run(bad)
    assert reg.search_runs("never") == []
    assert reg.list_experiments() == []


def test_experiments_are_listed(reg: Registry):
    for experiment in ("b", "a", "a.b"):
        reg.start_run(experiment).finish()
    assert reg.list_experiments() == ["a", "a.b", "b"]


def test_segments_survive_their_bytes_and_refuse_others():
    with pytest.raises(Damaged, match="here is not readable"):
        Segment.from_bytes(b"{}", "here")
    assert not Segment()


def test_runs_end_without_leaving_threads(reg: Registry):
    import threading

    with reg.start_run("exp") as run:
        run.log_metric("a", 1.0)
    assert not [thread for thread in threading.enumerate() if thread.name == f"run-{run.id}"]
    run.finish()
    assert len(reg.search_runs("exp")) == 1


def test_a_handle_by_id_leaves_no_thread_once_all_is_stored(reg: Registry, monkeypatch: pytest.MonkeyPatch):
    import threading

    monkeypatch.setattr("toque.registry.runs.run.FLUSH_EVERY_S", 0.01)
    run = reg.start_run("exp")
    run.finish()
    for number in range(5):
        reg.get_run(run.id).log_metric("a", number)
    until(lambda: not [t for t in threading.enumerate() if t.name == f"run-{run.id}"])


def test_compare_shows_what_differs(reg: Registry):
    ids = []
    for lr in (0.1, 0.2):
        with reg.start_run("exp", name=f"lr{lr}", params={"lr": lr, "same": 1}) as run:
            run.log_metric("loss", 1 - lr)
        ids.append(run.id)
    table = reg.compare_runs(ids)
    assert table.column_names == ["run", "name", "status", "params.lr", "metrics.loss"]
    assert table["params.lr"].to_pylist() == ["0.1", "0.2"]
    assert table["metrics.loss"].to_pylist() == [0.9, 0.8]
    page = reg.plot_runs(ids, "loss")
    assert all(f"lr{lr} " in page for lr in (0.1, 0.2))
