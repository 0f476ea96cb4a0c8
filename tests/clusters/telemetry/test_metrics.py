"""Series of a node: what processes counted survives them, and a counter never goes back."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client import Metric

from toque.clusters.telemetry.metrics import node_metrics, render, together
from toque.clusters.telemetry.metrics.exposition import FOLDED, collect, fold_dead
from toque.clusters.telemetry.metrics.values import folder_held

ROOT = Path(__file__).parents[3]
BEGIN = """
    import os, signal, sys
    from pathlib import Path
    from prometheus_client import Counter, Gauge, Histogram
    early = Counter("toque_early", "Counted before the set-up.", ("kind",))
    held = early.labels("held")
    held.inc(3)
    from toque.clusters.telemetry import metrics as telemetry
    telemetry.keep_series(sys.argv[2], Path(sys.argv[1]))
    late = Counter("toque_late", "Counted after it.")
    seconds = Histogram("toque_wait_seconds", "Waits.", buckets=(0.1, 1.0))
    busy = Gauge("toque_busy", "Busy now.", multiprocess_mode="livesum")
"""


def run(folder: Path, body: str, role: str = "worker") -> subprocess.Popen[str]:
    """Start a process that writes series to a folder, and wait for its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(BEGIN) + textwrap.dedent(body), str(folder), role],
        stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def values(metrics: list[Metric]) -> dict[str, float]:
    """Values of our test's samples by name and first label."""
    names = ("toque_early", "toque_late", "toque_wait", "toque_busy")
    return {
        each.name + "".join(f" {v}" for k, v in each.labels.items() if k in {"kind", "le"}): each.value
        for metric in metrics
        for each in metric.samples
        if each.name.startswith(names)
    }


COUNT = """
    held.inc(); late.inc(2); seconds.observe(0.05); seconds.observe(5.0); busy.set(4)
    print("ready", flush=True)
    sys.stdin.read()
"""
ONCE = {
    "toque_early_total held": 4.0,
    "toque_late_total": 2.0,
    "toque_wait_seconds_sum": 5.05,
    "toque_wait_seconds_bucket 0.1": 1.0,
    "toque_wait_seconds_bucket 1.0": 1.0,
    "toque_wait_seconds_bucket +Inf": 2.0,
    "toque_wait_seconds_count": 2.0,
}


def test_counts_survive_sigkill_and_a_gauge_does_not(tmp_path: Path) -> None:
    first, second = run(tmp_path, COUNT), run(tmp_path, COUNT)
    twice = {name: 2 * value for name, value in ONCE.items()}
    assert values(collect(tmp_path)[0]) == twice | {"toque_busy": 8.0}
    first.kill()
    first.communicate()
    assert values(collect(tmp_path)[0]) == twice | {"toque_busy": 4.0}
    second.kill()
    second.communicate()
    assert values(collect(tmp_path)[0]) == twice
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".db"] == []
    third = run(tmp_path, COUNT)
    assert values(collect(tmp_path)[0])["toque_late_total"] == 6.0
    third.communicate()


def test_a_fold_that_was_killed_before_it_removed_files_counts_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, COUNT).communicate()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            fold_dead(tmp_path)
    assert len(list(tmp_path.glob("*.db"))) == 4
    for _ in range(2):
        assert values(collect(tmp_path)[0]) == ONCE
    assert list(tmp_path.glob("*.db")) == []


def test_a_fold_that_was_killed_before_its_commit_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, COUNT).communicate()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
        assert fold_dead(tmp_path) == 0
    assert not (tmp_path / FOLDED).exists()
    assert values(collect(tmp_path)[0]) == ONCE


def test_nobody_folds_while_another_reads(tmp_path: Path) -> None:
    run(tmp_path, COUNT).communicate()
    with folder_held(tmp_path, alone=False):
        assert fold_dead(tmp_path) == 0
        assert values(collect(tmp_path)[0]) == ONCE
    assert fold_dead(tmp_path) == 4


def test_series_that_nobody_counts_any_more_are_dropped_after_a_week(tmp_path: Path) -> None:
    run(tmp_path, COUNT).communicate()
    assert fold_dead(tmp_path, clock=lambda: 0.0) == 4
    other = run(tmp_path, 'late.inc(); print("ready", flush=True); sys.stdin.read()')
    run(tmp_path, 'print("ready", flush=True)').communicate()
    assert fold_dead(tmp_path, clock=lambda: 8 * 86400.0) > 0
    kept = values(collect(tmp_path, clock=lambda: 8 * 86400.0)[0])
    assert kept["toque_late_total"] == 3.0  # a living process counts it
    other.communicate()


def test_a_forked_child_counts_for_itself(tmp_path: Path) -> None:
    body = """
    late.inc(); held.inc()
    child = os.fork()
    late.inc(10)
    if child == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    print("ready", flush=True)
    sys.stdin.read()
    """
    process = run(tmp_path, body)
    found = values(collect(tmp_path)[0])
    assert (found["toque_late_total"], found["toque_early_total held"]) == (21.0, 4.0)
    process.communicate()


def test_a_full_disk_keeps_series_in_memory_until_there_is_room(tmp_path: Path) -> None:
    body = """
    reserve, full = os.posix_fallocate, True
    def fallocate(*args):
        if full:
            raise OSError(28, "No space left on device")
        reserve(*args)
    os.posix_fallocate = fallocate
    late.inc()
    many = Counter("toque_many", "Many.", ("n",))
    for n in range(2000):
        many.labels(str(n)).inc()
    full = False
    for n in range(2000):
        many.labels(str(n)).inc()
    print("ready", flush=True)
    sys.stdin.read()
    """
    process = run(tmp_path, body)
    many = next(each for each in collect(tmp_path)[0] if each.name == "toque_many")
    assert {each.value for each in many.samples} == {2.0}
    assert len(many.samples) == 2000
    process.communicate()


def test_a_damaged_file_is_read_up_to_its_damage(tmp_path: Path) -> None:
    run(tmp_path, COUNT).communicate()
    (tmp_path / "counter_1-x.db").write_bytes(b"\xff" * 100)
    (tmp_path / "counter_2-x.db").touch()
    assert values(collect(tmp_path)[0]) == ONCE


def test_nodes_together_keep_each_family_once_with_the_node_of_each_sample(tmp_path: Path) -> None:
    texts = []
    for node in ("10.0.0.1", "10.0.0.2"):
        folder = tmp_path / node
        folder.mkdir()
        run(folder, COUNT, role="predictor").communicate()
        texts += node_metrics(folder, node=node)
    text = together(texts).decode()
    assert text.count("# TYPE toque_late_total counter") == 1
    for node in ("10.0.0.1", "10.0.0.2"):
        assert f'toque_late_total{{node="{node}"}} 2.0' in text


def test_a_node_tells_its_processes_by_role_and_what_runs(tmp_path: Path) -> None:
    process = run(tmp_path, COUNT, role="gateway")
    text = render(node_metrics(tmp_path, node="n")).decode()
    assert 'toque_processes{node="n",role="gateway"} 1.0' in text
    assert "toque_build_info{" in text
    process.communicate()


def test_published_gauges_are_replaced_as_a_whole_and_end_with_their_process(tmp_path: Path) -> None:
    body = """
    from prometheus_client.metrics_core import GaugeMetricFamily
    def ages(**of):
        found = GaugeMetricFamily("toque_age_seconds", "Ages.", labels=["view"])
        for view, age in of.items():
            found.add_metric([view], age)
        telemetry.publish("ages", [found])
    ages(a=1, b=2)
    print("ready", flush=True)
    sys.stdin.readline()
    ages(b=3)
    print("again", flush=True)
    sys.stdin.read()
    """
    process = run(tmp_path, body)
    assert process.stdin is not None
    assert process.stdout is not None

    def ages(clock: float | None = None) -> dict[str, float]:
        given = {} if clock is None else {"clock": lambda: clock}
        found = [
            each for each in node_metrics(tmp_path, node="n", **given) if each.name == "toque_age_seconds"
        ]
        return {each.labels["view"]: each.value for metric in found for each in metric.samples}

    assert ages() == {"a": 1.0, "b": 2.0}
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "again\n"
    assert ages() == {"b": 3.0}
    assert ages(clock=next(tmp_path.glob("ages_*")).stat().st_mtime + 600) == {}
    later = run(tmp_path, body)  # of two that publish, as while one takes over, the newest counts
    assert ages() == {"a": 1.0, "b": 2.0}
    for each in (process, later):
        each.communicate()
    assert ages() == {}
    assert json.loads((tmp_path / FOLDED).read_text())["series"]["counter"]
