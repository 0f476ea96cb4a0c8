"""Queries of panels, asked of a Prometheus itself: without the variables that only Grafana knows."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

ANY = ".*"
_TIMEOUT_S = 30


def plain_query(query: str, *, window: str = "5m") -> str:
    """Replace the variables that only Grafana knows, so that Prometheus itself can be asked. window: of rates."""
    for name in ("workspace", "model", "view", "function", "node"):
        query = query.replace(f"${name}", ANY)
    return query.replace("$__rate_interval", window)


def values_now(prometheus: str, query: str) -> list[dict[str, Any]]:
    """Ask for the series of a query as they are now. Raises: OSError if Prometheus does not answer, or refuses it."""
    return _asked(prometheus, "query", query=plain_query(query))


def values_between(
    prometheus: str, query: str, start: float, end: float, *, step_s: float, window: str = "5m"
) -> list[dict[str, Any]]:
    """Ask for the series of a query from `start` to `end`, in seconds since the epoch. window: of rates. Raises: as `values_now`."""
    asked = plain_query(query, window=window)
    return _asked(prometheus, "query_range", query=asked, start=start, end=end, step=step_s)


def _asked(prometheus: str, path: str, **parameters: str | float) -> list[dict[str, Any]]:
    url = f"{prometheus.rstrip('/')}/api/v1/{path}?{urlencode(parameters)}"
    with urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310  # the caller's own
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found
