"""Prometheus series of the gateway: its requests, labels, and searches of vectors."""

from __future__ import annotations

import time

from prometheus_client import Counter, Gauge, Histogram
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toque.featurestore import Neighbours

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_DAY_S = 86_400.0
_INDEX_LABELS = ("workspace", "view", "field")
REQUESTS = Counter("toque_gateway_requests", "Answered requests.", ("method", "route", "status"))
SECONDS = Histogram(
    "toque_gateway_request_seconds",
    "Seconds until the answer was complete.",
    ("method", "route"),
    buckets=_BUCKETS_S,
)
LABELS = Counter("toque_labels_received", "Labels acknowledged.", ("workspace",))
LABEL_DELAY = Histogram(
    "toque_label_delay_seconds",
    "Seconds from when a label was observed until it was received.",
    ("workspace",),
    buckets=(1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, _DAY_S, 7 * _DAY_S, 30 * _DAY_S),
)
SEARCH_SECONDS = Histogram(
    "toque_vector_search_seconds",
    "Seconds of a search for nearest rows, by whether an index was used.",
    (*_INDEX_LABELS, "how"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0),
)
RECALL = Gauge(
    "toque_vector_index_recall",
    "Share of the ten nearest that the index in use was measured to find when it was built.",
    _INDEX_LABELS,
    multiprocess_mode="livemostrecent",
)


class RequestMetrics:
    """ASGI middleware that counts and times each request under the pattern of its route, never under its path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; record its status and duration."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = _pattern(scope)
            REQUESTS.labels(scope["method"], route, str(status)).inc()
            SECONDS.labels(scope["method"], route).observe(time.perf_counter() - begun)


def _pattern(scope: Scope) -> str:
    route = scope.get("route")
    if route is not None:
        return str(route.path)
    routes = getattr(scope.get("app"), "routes", ())
    found = (str(getattr(each, "path", "")) for each in routes if each.matches(scope)[0] is not Match.NONE)
    return next(found, "unmatched")


def observe(workspace: str, found: Neighbours, seconds: float) -> None:
    """Record a search and the recall of the index that it used."""
    labels = (workspace, found.view, found.field)
    SEARCH_SECONDS.labels(*labels, "exact" if found.exact else "index").observe(seconds)
    if found.recall is not None:
        RECALL.labels(*labels).set(found.recall)
