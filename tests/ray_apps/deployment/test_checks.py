"""The checks of a cluster, on what its nodes report."""

from __future__ import annotations

from pathlib import Path

import pytest

from toque.ray_apps.deployment.checks import NodeReport, check_promises, judged
from toque.registry import open_store

NOW = 1_800_000_000.0


def report(node: str = "10.0.0.5 (serve)", **changes: object) -> NodeReport:
    well = {
        "node": node, "python": "3.11.9", "ray": "2.60.0", "release": "abc", "missing": (), "store": "", "redis": "",
        "seen": "mark", "clock_s": NOW + 0.5, "busy_ports": (),
    }  # fmt: skip
    return NodeReport.model_validate(well | changes)


def failed(*reports: NodeReport, silent: tuple[str, ...] = ()) -> dict[str, str]:
    found = judged(reports, silent, marker="mark", begun=NOW, took_s=1.0)
    return {each.check: each.found for each in found if not each.ok}


def test_a_cluster_of_equal_nodes_passes() -> None:
    assert failed(report(), report("10.0.0.6 (cpu)")) == {}


@pytest.mark.parametrize(
    ("changes", "check", "found"),
    [
        ({"python": "3.12.1"}, "Python", "10.0.0.6 has 3.12.1"),
        ({"ray": "2.59.0"}, "Ray", "10.0.0.6 has 2.59.0"),
        ({"release": "old"}, "code and settings", "10.0.0.6 has old"),
        ({"missing": ("TOQUE_REDIS_URL",)}, "settings", "10.0.0.6 lacks TOQUE_REDIS_URL"),
        ({"seen": "", "store": "Unavailable: no route"}, "store", "no route"),
        ({"seen": "other"}, "store", "sees another store"),
        ({"redis": "TimeoutError"}, "Redis", "10.0.0.6: TimeoutError"),
        ({"clock_s": NOW + 30}, "clocks", "10.0.0.6: +30.0 s"),
        ({"busy_ports": (8000,)}, "ports", "10.0.0.6: 8000 taken"),
    ],
)
def test_a_node_that_differs_is_named(changes: dict[str, object], check: str, found: str) -> None:
    problems = failed(report(), report("10.0.0.7"), report("10.0.0.6", **changes))
    assert list(problems) == [check]
    assert found in problems[check]


def test_a_node_that_does_not_answer_is_named() -> None:
    assert failed(report(), silent=("10.0.0.9 (serve): lost",)) == {"nodes": "10.0.0.9 (serve): lost"}
    assert "nodes" in failed()


def test_clocks_are_judged_against_the_time_that_the_probes_took() -> None:
    assert failed(report(clock_s=NOW + 2.9)) == {}
    assert "clocks" in failed(report(clock_s=NOW - 2.1))


def test_a_store_that_breaks_a_promise_is_a_failed_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"file://{tmp_path}")
    assert check_promises(store).ok
    monkeypatch.setattr(type(store), "create", type(store).put)
    told = check_promises(store)
    assert not told.ok
    assert "the server ignores If-None-Match" in told.found
