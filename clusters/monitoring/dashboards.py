"""Asks a Prometheus for every panel of the Grafana dashboards in `grafana/`, without Grafana.

    python -m toque.clusters.monitoring.dashboards check http://127.0.0.1:9090

prints each panel with the number of series that its queries return now. The exit code is 1 if a panel is empty that must not be:
one whose "No value" in Grafana is unset. The files themselves are edited in Grafana and saved from its JSON model.

Source: Grafana's dashboard JSON model, schema version 39.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

FOLDER = Path(__file__).resolve().parent / "grafana"
_TIMEOUT_S = 30


def dashboards() -> dict[str, dict[str, Any]]:
    """Read the dashboards, by the name of their file."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}


def charts(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Go through the panels that have queries, those in collapsed rows included."""
    for panel in dashboard["panels"]:
        yield from charts(panel) if panel["type"] == "row" else (panel,)


def plain_query(query: str, dashboard: Mapping[str, Any]) -> str:
    """Replace the variables that only Grafana knows: any value of each, and rates over five minutes."""
    for variable in dashboard["templating"]["list"]:
        query = query.replace(f"${variable['name']}", ".*")
    return query.replace("$__rate_interval", "5m")


def check(prometheus: str) -> list[str]:
    """Ask a Prometheus for every query; returns a line for each panel, and marks those that must not be empty and are.

    Raises: httpx.HTTPError if Prometheus does not answer, or refuses a query.
    """
    lines = []
    with httpx.Client(base_url=prometheus, timeout=_TIMEOUT_S) as client:
        for name, dashboard in dashboards().items():
            for panel in charts(dashboard):
                series = 0
                for target in panel["targets"]:
                    parameters = {"query": plain_query(target["expr"], dashboard)}
                    response = client.get("/api/v1/query", params=parameters).raise_for_status()
                    series += len(response.json()["data"]["result"])
                may_be_empty = "noValue" in panel["fieldConfig"]["defaults"]
                mark = "ok" if series or may_be_empty else "empty"
                lines.append(f"{mark}\t{name}\t{panel['title']}\t{series}")
    return lines


def main(arguments: Sequence[str]) -> int:
    """Run `check URL`; returns the exit code."""
    match list(arguments):
        case ["check", url]:
            lines = check(url)
            sys.stdout.writelines(f"{line}\n" for line in lines)
            return int(any(line.startswith("empty") for line in lines))
    sys.stderr.write(__doc__ or "")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
