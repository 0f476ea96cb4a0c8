"""Prometheus series of vector searches: how long they took, how they were made, and how good the index is."""

from __future__ import annotations

from prometheus_client import Gauge, Histogram

from toque.featurestore import Neighbours

__all__ = ["RECALL", "SEARCH_SECONDS", "observe"]

_LABELS = ("workspace", "view", "field")

SEARCH_SECONDS = Histogram(
    "toque_vector_search_seconds",
    "Seconds of a search for nearest rows, by whether an index was used.",
    (*_LABELS, "how"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0),
)
RECALL = Gauge(
    "toque_vector_index_recall",
    "Share of the ten nearest that the index in use was measured to find when it was built.",
    _LABELS,
    multiprocess_mode="livemostrecent",
)


def observe(workspace: str, found: Neighbours, seconds: float) -> None:
    """Record a search and the recall of the index that it used."""
    labels = (workspace, found.view, found.field)
    SEARCH_SECONDS.labels(*labels, "exact" if found.exact else "index").observe(seconds)
    if found.recall is not None:
        RECALL.labels(*labels).set(found.recall)
