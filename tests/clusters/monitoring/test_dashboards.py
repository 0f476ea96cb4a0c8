"""Grafana's dashboards: their files are what the panels say, and each query is one that Prometheus and the code know."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.monitoring.answers import prometheus_that_answers
from toque.clusters.monitoring.dashboards import FOLDER, main, render
from toque.clusters.monitoring.panels import DASHBOARDS, Dashboard
from toque.clusters.monitoring.queries import plain_query

SERIES = re.compile(r"\btoque_[a-z0-9_]+")
METRICS = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
KNOWN = set(SERIES.findall(METRICS))
LABELS = {
    name: {"node", *re.findall(r"`([a-z]+)`", labels)}
    for name, labels in re.findall(r"^\| `(toque_\w+)` \| \w+ \| (.+?) \|", METRICS, re.MULTILINE)
}


def queries() -> list[str]:
    return [
        plain_query(query) for each in DASHBOARDS for panel in each.panels() for query, _ in panel.queries
    ]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.name)
def test_the_file_is_what_the_panels_say(dashboard: Dashboard) -> None:
    assert (FOLDER / f"{dashboard.name}.json").read_text() == render(dashboard), (
        "run `python -m toque.clusters.monitoring.dashboards write`"
    )


def test_no_file_lies_beside_those_of_the_panels() -> None:
    assert {each.stem for each in FOLDER.iterdir()} == {each.name for each in DASHBOARDS}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.name)
def test_panels_do_not_overlap_and_have_numbers_of_their_own(dashboard: Dashboard) -> None:
    panels: list[dict[str, Any]] = json.loads(render(dashboard))["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (each["gridPos"] for each in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_every_series_is_one_that_the_code_counts() -> None:
    asked = {name for query in queries() for name in SERIES.findall(query)}
    assert len(asked) > 40
    assert {name for name in asked if name not in KNOWN and _family(name) not in KNOWN} == set()


def _family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count|total)$", "", name)


def labels_of(query: str) -> set[str]:
    """Labels that the series of a query have in common."""
    found = [
        LABELS.get(name) or LABELS[_family(name)]
        for name in SERIES.findall(re.sub(r"\w+:toque", "toque", query))
    ]
    return set.intersection(*found)


def test_every_label_of_a_query_and_of_a_legend_is_one_that_its_series_have():
    for each in DASHBOARDS:
        for panel in each.panels():
            for query, legend in panel.queries:
                grouped = [set(re.split(r",\s*", names)) for names in re.findall(r"by \((.*?)\)", query)]
                for names in grouped:
                    assert names <= labels_of(query) | {"le"}, (panel.title, query)
                shown = set(re.findall(r"{{(\w+)}}", legend))
                assert shown <= (grouped[0] if grouped else labels_of(query)), (panel.title, legend)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH")
def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{index}", "expr": query} for index, query in enumerate(queries())]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    checked = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_check_names_the_panels_that_stay_empty(capsys: pytest.CaptureFixture[str]) -> None:
    with prometheus_that_answers(lambda query: "toque_redis_up" not in query) as url:
        assert main(["check", url]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [each for each in lines if each.startswith("empty")] == ["empty\tplatform\tRedis answers\t0"]
    assert len(lines) == len([panel for each in DASHBOARDS for panel in each.panels()])
    with prometheus_that_answers(lambda _: True) as url:
        assert main(["check", url]) == 0


def test_check_all_excuses_no_panel_and_takes_no_series_without_a_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with prometheus_that_answers(lambda query: "toque_pool_bytes" not in query) as url:
        assert main(["check", url]) == 0
        capsys.readouterr()
        assert main(["check", url, "--all", "5"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [each for each in lines if each.startswith("empty")] == [
        "empty\tcosts\tMemory of models in pools\t0"
    ]
    with prometheus_that_answers(lambda _: True, values=["NaN", "NaN"]) as url:
        assert main(["check", url, "--all"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(each.startswith("empty") for each in lines)


def test_wrong_arguments_are_answered_by_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "http://127.0.0.1:9090", "all"]) == 2
    assert "--all [MINUTES]" in capsys.readouterr().err


def test_draw_makes_a_picture_of_each_dashboard(tmp_path: Path) -> None:
    with prometheus_that_answers(lambda query: "toque_redis_up" not in query) as url:
        assert main(["draw", url, str(tmp_path), "10"]) == 0
    for each in DASHBOARDS:
        assert (tmp_path / f"{each.name}.png").read_bytes().startswith(b"\x89PNG")
