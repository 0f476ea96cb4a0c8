"""Grafana's dashboards: each query is one that Prometheus can read, of series and labels that the platform exposes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.monitoring.answers import prometheus_that_answers
from toque.clusters.monitoring.dashboards import charts, dashboards, main, plain_query

SERIES = re.compile(r"\btoque_[a-z0-9_]+")
DOCS = Path(__file__).parents[3] / "docs"
METRICS = (DOCS / "metrics.md").read_text()  # a test holds it to the code
EXPOSED = set(SERIES.findall(METRICS))
LABELS = {
    name: {"node", *re.findall(r"`([a-z]+)`", labels)}
    for name, labels in re.findall(r"^\| `(toque_\w+)` \| \w+ \| (.+?) \|", METRICS, re.MULTILINE)
}
DASHBOARDS = dashboards()
UNITS = {"reqps", "percentunit", "s", "cps", "short", "none", "bytes", "bool_yes_no"}


def targets() -> Iterator[tuple[str, str, str]]:
    """Title, plain query and legend of each query of each dashboard."""
    for dashboard in DASHBOARDS.values():
        for panel in charts(dashboard):
            for target in panel["targets"]:
                yield panel["title"], plain_query(target["expr"], dashboard), target["legendFormat"]


def variables() -> Iterator[tuple[str, str]]:
    """Label and series of each variable whose values Grafana asks Prometheus for."""
    for dashboard in DASHBOARDS.values():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                [(series, label)] = re.findall(r"^label_values\((\w+), (\w+)\)$", variable["query"]["query"])
                assert label == variable["name"]
                yield label, series


def family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count|total)$", "", name)


def labels_of(query: str) -> set[str]:
    """Labels that the series of a query have in common."""
    names = SERIES.findall(re.sub(r"\w+:toque", "toque", query))
    return set.intersection(*(LABELS.get(name) or LABELS[family(name)] for name in names))


def test_the_page_names_every_dashboard() -> None:
    assert set(
        re.findall(r"^\| `(\w+)\.json` \|", (DOCS / "dashboards.md").read_text(), re.MULTILINE)
    ) == set(DASHBOARDS)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap_and_have_numbers_of_their_own(name: str) -> None:
    panels: list[dict[str, Any]] = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_asks_for_its_prometheus_instead_of_naming_that_of_its_editor(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == f"toque-{name}"
    assert "__inputs" not in dashboard
    assert dashboard.get("id") is None
    assert [each["type"] for each in dashboard["templating"]["list"]].count("datasource") == 1
    for panel in charts(dashboard):
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS


def test_every_series_is_one_that_the_platform_exposes() -> None:
    queried = {name for _, query, _ in targets() for name in SERIES.findall(query)}
    queried |= {series for _, series in variables()}
    assert len(queried) > 40
    assert {name for name in queried if name not in EXPOSED and family(name) not in EXPOSED} == set()


def test_every_label_of_a_query_and_of_a_legend_is_one_that_its_series_have():
    for title, query, legend in targets():
        grouped = [set(re.split(r",\s*", names)) for names in re.findall(r"by \((.*?)\)", query)]
        for names in grouped:
            assert names <= labels_of(query) | {"le"}, (title, query)
        shown = set(re.findall(r"{{(\w+)}}", legend))
        assert shown <= (grouped[0] if grouped else labels_of(query)), (title, legend)
    for label, series in variables():
        assert label in labels_of(series)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH")
def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{index}", "expr": query} for index, (_, query, _) in enumerate(targets())]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    checked = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_no_query_keeps_a_variable_that_only_grafana_knows() -> None:
    assert [query for _, query, _ in targets() if "$" in query] == []


def test_check_names_the_panels_that_are_empty_and_must_not_be(capsys: pytest.CaptureFixture[str]) -> None:
    with prometheus_that_answers(lambda query: "toque_redis_up" not in query) as url:
        assert main(["check", url]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("empty")] == ["empty\tplatform\tRedis answers\t0"]
    assert len(lines) == sum(len(list(charts(dashboard))) for dashboard in DASHBOARDS.values()) > 70
    with prometheus_that_answers(lambda _: True) as url:
        assert main(["check", url]) == 0


def test_check_excuses_panels_of_what_may_not_have_happened(capsys: pytest.CaptureFixture[str]) -> None:
    with prometheus_that_answers(lambda query: "toque_pool_bytes" not in query) as url:
        assert main(["check", url]) == 0
    assert "ok\tcosts\tMemory of models in pools\t0" in capsys.readouterr().out.splitlines()


def test_wrong_arguments_are_answered_by_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "http://127.0.0.1:9090", "all"]) == 2
    assert "dashboards check http" in capsys.readouterr().err
