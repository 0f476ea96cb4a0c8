"""Builds the Grafana dashboards of `grafana/` from the panels of `panels`, and asks a Prometheus for each of them.

    python -m toque.clusters.monitoring.dashboards write
    python -m toque.clusters.monitoring.dashboards check http://127.0.0.1:9090
    python -m toque.clusters.monitoring.dashboards check http://127.0.0.1:9090 --all [MINUTES]
    python -m toque.clusters.monitoring.dashboards draw http://127.0.0.1:9090 FOLDER [MINUTES]

`write` makes the files anew; `check` prints each panel with how many series its queries find now, and ends with exit code
1 if a panel stays empty that needs no failure to be filled; with `--all` no panel may have been without a number in the last
MINUTES; `draw` makes a picture of each dashboard. MINUTES are an hour unless given.

Source: Grafana's dashboard JSON model, schema version 39.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from toque.clusters.monitoring.drawing import draw
from toque.clusters.monitoring.panels import DASHBOARDS, Dashboard, Panel
from toque.clusters.monitoring.queries import ANY, values_between, values_now

FOLDER = Path(__file__).resolve().parent / "grafana"
SCHEMA_VERSION = 39
_COLUMNS, _WIDTH, _HEIGHT = 24, 8, 8
_MINUTES, _LOOKS = 60.0, 240  # of a picture, and at how many moments of them panels are looked at
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def render(dashboard: Dashboard) -> str:
    """Render a dashboard as the text of its file."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in dashboard.rows:
        panels.append(_row(title, len(panels) + 1, y))
        for index, panel in enumerate(row):
            x = index * _WIDTH % _COLUMNS
            panels.append(_panel(panel, len(panels) + 1, x, y + 1 + index * _WIDTH // _COLUMNS * _HEIGHT))
        y += 1 + -(-len(row) * _WIDTH // _COLUMNS) * _HEIGHT
    document = {
        "uid": f"toque-{dashboard.name}",
        "title": f"Toque: {dashboard.title}",
        "description": dashboard.question,
        "tags": ["toque"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "utc",
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "tags": ["toque"], "title": "Toque", "asDropdown": True}],
        "templating": {"list": [_datasource(), *map(_variable, dashboard.variables)]},
        "panels": panels,
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _row(title: str, number: int, y: int) -> dict[str, Any]:
    place = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place}


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": _DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _DATASOURCE, "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _variable(name_and_series: tuple[str, str]) -> dict[str, Any]:
    name, series = name_and_series
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": f"label_values({series}, {name})", "refId": name},
        "refresh": 2,
        "includeAll": True,
        "allValue": ANY,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def check(prometheus: str) -> list[str]:
    """Ask a Prometheus for every query as of now; returns a line for each panel, and marks those that must not be empty and are.

    Raises: OSError if Prometheus does not answer, or refuses a query.
    """
    lines = []
    for dashboard, panel in _panels():
        found = sum(len(values_now(prometheus, query)) for query, _ in panel.queries)
        lines.append(_line(dashboard, panel, found, must=not panel.may_be_empty))
    return lines


def check_all(prometheus: str, *, minutes: float = _MINUTES) -> list[str]:
    """As `check`, for the last minutes and without excuse: a series counts that had a number in them, and no panel may be empty."""
    lines, end = [], time.time()
    for dashboard, panel in _panels():
        found = 0
        for query, _ in panel.queries:
            between = values_between(
                prometheus, query, end - 60 * minutes, end, step_s=max(1.0, 60 * minutes / _LOOKS)
            )
            found += sum(
                any(math.isfinite(float(value)) for _, value in series["values"]) for series in between
            )
        lines.append(_line(dashboard, panel, found, must=True))
    return lines


def _panels() -> Iterable[tuple[Dashboard, Panel]]:
    return ((dashboard, panel) for dashboard in DASHBOARDS for panel in dashboard.panels())


def _line(dashboard: Dashboard, panel: Panel, found: int, *, must: bool) -> str:
    mark = "empty" if must and not found else "ok"
    return f"{mark}\t{dashboard.name}\t{panel.title}\t{found}"


def main(arguments: Sequence[str]) -> int:
    """Run `write`, `check URL [--all [MINUTES]]` or `draw URL FOLDER [MINUTES]`; returns the exit code."""
    match list(arguments):
        case ["write"]:
            for dashboard in DASHBOARDS:
                (FOLDER / f"{dashboard.name}.json").write_text(render(dashboard))
            return 0
        case ["check", url]:
            return _print(check(url))
        case ["check", url, "--all", *minutes] if len(minutes) <= 1:
            return _print(check_all(url, minutes=_minutes(minutes)))
        case ["draw", url, folder, *minutes] if len(minutes) <= 1:
            draw_all(url, Path(folder), minutes=_minutes(minutes))
            return 0
    sys.stderr.write(__doc__ or "")
    return 2


def draw_all(prometheus: str, folder: Path, *, minutes: float = _MINUTES) -> None:
    """Draw every dashboard into a folder, each as a PNG of its name. Raises: as `draw`."""
    folder.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        draw(dashboard, prometheus, folder / f"{dashboard.name}.png", minutes=minutes)


def _minutes(given: Sequence[str]) -> float:
    return float(given[0]) if given else _MINUTES


def _print(lines: Iterable[str]) -> int:
    empty = 0
    for line in lines:
        sys.stdout.write(f"{line}\n")
        empty += line.startswith("empty")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
